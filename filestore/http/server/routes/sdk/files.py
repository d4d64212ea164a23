"""Answer the reading requests of the Pipeline SDK: a file by its id, the list of files, and the check of a token."""

from __future__ import annotations

from aiohttp import web

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import FilestoreError
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import logger
from filestore.http.server.routes.api import records_asked_for
from filestore.http.server.routes.content import send_content
from filestore.repository.local import LocalRepository
from filestore.transfer.repeated_names import find_repeated_names, repeated_names_warning


async def validate_token(_: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the namespace of the token. A request with an invalid token does not get here."""
    return web.json_response({"namespace": repository.namespace})


async def list_files(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with records as a bare list, the newest first."""
    return web.json_response([sdk_json(record) for record in await records_asked_for(context.request, repository)])


async def get_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a record."""
    return web.json_response(sdk_json(await _record(context, repository)))


async def download_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a file's bytes, by its id."""
    return await send_content(context, repository, await _record(context, repository))


def sdk_json(record: Record, *, alias: str | None = None) -> dict[str, str | int]:
    """Return a record in the form that the SDK reads.

    `path` and `file_path` end in the file's own name. `name` is its alias, or its own name if there is none.
    """
    return {**record.as_json(), "name": alias or record.name, "file_name": record.name, "file_path": f"/{record.path}"}


async def upload_json(repository: LocalRepository, record: Record, *, alias: str | None = None) -> dict[str, str | int]:
    """Return the answer to an upload: the record, and a `warning` if it is a zip file that nobody can unpack.

    The upload is not refused: it may be meant as a file.
    """
    try:
        warning = repeated_names_warning(await find_repeated_names(repository, record))
    except FilestoreError:
        # The file is stored. Whoever reads it gets the error.
        warning = None
    if warning is not None:
        logger.warning("%s (%r): %s", record.id, record.name, warning)
    return sdk_json(record, alias=alias) | ({} if warning is None else {"warning": warning})


async def _record(context: RequestContext, repository: LocalRepository) -> Record:
    return await repository.record(Reference(id=context.request.match_info["id"]))
