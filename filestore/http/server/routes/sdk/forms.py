"""The form uploads of the Pipeline SDK, and of curl: `POST /v3/pipeline_files` and `POST /v4/files`."""

from __future__ import annotations

from typing import NamedTuple

from aiofiles.tempfile import TemporaryFile
from aiohttp import web

from filestore.core.names import checked_new_name
from filestore.core.records import Record
from filestore.errors import InvalidInput
from filestore.http.server.body.forms import receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.http.server.routes.sdk.files import described
from filestore.repository.local import LocalRepository


async def create_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Store the part `pfile` of a form under its own name, and under the alias too that the query or the part `name` gives.

    Two records, so that the path ends in the file's own name, by whose ending loaders know it, and the alias is found as well.
    """
    stored = await _store(context, repository)
    return web.json_response(described(stored.record, alias=stored.alias), status=201)


async def create_file_with_url(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """`create_file`, and a URL at which whoever runs a pipeline on the file reads it without a token."""
    stored = await _store(context, repository)
    url = f"{context.base_url}/{await repository.sign(stored.record.id)}"
    return web.json_response({**described(stored.record, alias=stored.alias), "url": url}, status=201)


class _StoredUpload(NamedTuple):
    record: Record
    alias: str


async def _store(context: RequestContext, repository: LocalRepository) -> _StoredUpload:
    alias = context.request.query.get("name")
    if alias is not None:
        checked_new_name(alias)

    def check(file_name: str) -> None:
        if file_name or alias is None:
            checked_new_name(file_name)

    # It has no name in its folder: nothing of it is left, however this process ends.
    async with TemporaryFile("w+b", buffering=0, dir=context.spool_folder) as spool:
        form = await receive_form(context, spool, file_part="pfile", check_name=check)
        if form.file_name is None:
            raise InvalidInput("the form has no part pfile with a file's name: curl -F pfile=@FILE sends one")
        alias = checked_new_name(alias or form.fields.get("name", [""])[-1] or form.file_name)
        name = checked_new_name(form.file_name or alias)
        record = await push_spool(context, repository, spool, size=form.size, name=name)
    if alias != record.name:
        await repository.commit(await repository.manifest(record.digest), name=alias)
    return _StoredUpload(record, alias)
