"""Receive the form uploads of the Pipeline SDK and of curl: `POST /v3/pipeline_files` and `POST /v4/files`."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from filestore.core.names import checked_new_name
from filestore.core.records import Record
from filestore.errors import InvalidInput
from filestore.http.server.body.forms import receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.http.server.routes.sdk.files import upload_json
from filestore.repository.local import LocalRepository


async def create_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Store the part `pfile` of a form under its own name, and also under its alias, if it has one.

    The query or the part `name` gives the alias. There are two records then. The path ends in the file's own name,
    because loaders know a file by its extension, and the alias can be found as well.
    """
    stored = await _store(context, repository)
    return web.json_response(await upload_json(repository, stored.record, alias=stored.alias), status=201)


async def create_file_with_url(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Do what `create_file` does. The answer also has a URL at which a pipeline reads the file without a token."""
    stored = await _store(context, repository)
    url = f"{context.base_url}/{await repository.sign(stored.record.id)}"
    answer = await upload_json(repository, stored.record, alias=stored.alias)
    return web.json_response({**answer, "url": url}, status=201)


class _StoredUpload(NamedTuple):
    record: Record
    alias: str


async def _store(context: RequestContext, repository: LocalRepository) -> _StoredUpload:
    alias = context.request.query.get("name")
    if alias is not None:
        repository.check_name(checked_new_name(alias))

    def check(file_name: str) -> None:
        if file_name or alias is None:
            repository.check_name(checked_new_name(file_name))

    async with context.form_spool(repository) as (spool, written):
        form = await receive_form(context, spool, file_part="pfile", check_name=check, written=written)
        if form.file_name is None:
            raise InvalidInput("the form has no part pfile with a file; send one, for example with: curl -F pfile=@FILE")
        alias = checked_new_name(alias or form.fields.get("name", [""])[-1] or form.file_name)
        # Before the first of two records is stored.
        repository.check_name(alias)
        name = checked_new_name(form.file_name or alias)
        record = await push_spool(context, repository, spool, size=form.size, name=name)
    context.noted.note_record(record)
    if alias != record.name:
        context.noted.facts["alias"] = alias
        await repository.commit(await repository.manifest(record.digest), name=alias)
    return _StoredUpload(record, alias)
