"""Answer questions about the versions of names, about what a removal frees, and about disk usage.

Source: `docs/http-api.md`, which is the specification.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from filestore.core.digest import Digest
from filestore.core.records import checked_file_id, parse_json, value_count
from filestore.core.references import Reference
from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.http.server.measuring import MEASURING
from filestore.http.server.routes.api import RECORDS_LIMIT
from filestore.http.server.routes.queries import limited_number, number_in, seconds_in
from filestore.http.server.slow import answer_slowly
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread

IDS_LIMIT = 65536
"""The largest number of ids in one request."""
_ID_SIZE = 48
"""Bytes of an id in JSON, with what may be around it."""
NAMES_LIMIT = 1000
"""The largest number of names in a report on disk usage."""
_NAME_SIZE = 2048
"""Bytes of a name and its figures in JSON, at most, and once more as the name of a damaged record."""


async def list_versions(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the records that an id, a digest or a name covers, the newest first."""
    request = context.request
    query = request.query
    file_id, digest, name = (query.get(key) for key in ("id", "digest", "name"))
    if (file_id is None) == (digest is None and name is None):
        raise InvalidInput("give an id, a digest, a name, or a digest and a name")
    revision = query.get("revision")
    if name is not None and digest is None and file_id is None:
        reference = Reference.of_name(name, revision)
    else:
        digest_asked = Digest.parse(digest) if digest is not None else None
        reference = Reference(id=file_id, digest=digest_asked, name=name, revision=revision)
    page = await repository.versions(
        reference,
        limit=limited_number(request, "limit", RECORDS_LIMIT),
        before=number_in(request, "before"),
        keep_last=number_in(request, "keep_last"),
        older_than_seconds=seconds_in(request, "older_than_seconds"),
    )
    files = [
        record.as_json() | ({"pipelines": page.users[record.id]} if record.id in page.users else {}) for record in page.records
    ]
    return web.json_response({"files": files, "total": page.total})


async def measure_freed(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with what a collection can free after the removal of records."""
    async with context.whole_body(what="the size of the request body in bytes", limit=IDS_LIMIT * _ID_SIZE) as body:
        ids = await in_cpu_thread(_ids, body)

    async def measured() -> web.Response:
        measuring = context.request.app[MEASURING]
        freed = await measuring.run(repository.namespace, partial(repository.freed_by, ids))
        return web.json_response(freed._asdict())

    return await answer_slowly(context, measured(), goes_on=False)


async def measure_usage(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with what the namespace of the token takes on disk."""
    limit = limited_number(context.request, "names", NAMES_LIMIT)
    asked = seconds_in(context.request, "grace_seconds")
    grace_seconds = context.grace_seconds if asked is None else asked

    async def measured() -> web.Response:
        measuring = context.request.app[MEASURING]
        measured = await measuring.usage(repository, grace_seconds=grace_seconds, name_limit=limit)
        return web.json_response(measured.usage.as_json())

    return await answer_slowly(context, measured(), document_size=(NAMES_LIMIT + 1) * _NAME_SIZE, goes_on=False)


def _ids(body: bytes) -> list[str]:
    try:
        # Each id is a text. Of lists and objects, parsing would make many times as many bytes.
        ids = parse_json(body)["ids"] if value_count(body) <= IDS_LIMIT + 2 else None
    except (ValueError, KeyError, TypeError):
        ids = None
    if (
        not isinstance(ids, list)
        or len(ids) > IDS_LIMIT
        or not all(isinstance(each, str) and len(each) <= _ID_SIZE for each in ids)
    ):
        raise InvalidInput(f"the body is not a JSON object whose member ids lists at most {IDS_LIMIT} ids")
    return [checked_file_id(each) for each in ids]
