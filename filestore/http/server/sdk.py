"""The form upload of the Pipeline SDK, and of curl: `POST /v3/pipeline_files`.

Source: RFC 7578 (multipart/form-data).
"""

from __future__ import annotations

from pathlib import Path

from aiofiles.tempfile import TemporaryFile
from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.exchange import Exchange
from filestore.http.server.forms import receive_form
from filestore.objects import Record, checked_name
from filestore.push import WINDOWS_IN_FLIGHT, push
from filestore.repository import LocalRepository
from filestore.source import WINDOW_SIZE

PUSHES_LIMIT = 2 * WINDOWS_IN_FLIGHT * WINDOW_SIZE
"""Bytes of memory for pushing what forms brought: one large file at a time, or some small ones, as each push uses all cores."""


async def create_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Store the part `pfile` of a form under its own name, and under the alias too that the query or the part `name` gives.

    Two records, so that the path ends in the file's own name, by whose ending loaders know it, and the alias is found as well.
    """
    alias = exchange.request.query.get("name")
    if alias is not None:
        checked_name(alias)

    def check(file_name: str) -> None:
        if file_name or alias is None:
            checked_name(file_name)

    # It has no name in its folder: nothing of it is left, however this process ends.
    async with TemporaryFile("w+b", buffering=0, dir=exchange.spool_folder) as spool:
        form = await receive_form(exchange, spool, file_part="pfile", check_name=check)
        if form.file_name is None:
            raise InvalidInput("the form has no part pfile with a file's name: curl -F pfile=@FILE sends one")
        alias = checked_name(alias or form.fields.get("name", [""])[-1] or form.file_name)
        name = checked_name(form.file_name or alias)
        record = await push_spool(exchange, repository, spool, size=form.size, name=name)
    if alias != record.name:
        await repository.commit(await repository.manifest(record.digest), name=alias)
    return web.json_response(_answer(record, alias), status=201)


async def push_spool(exchange: Exchange, repository: LocalRepository, spool: AsyncFileIO, *, size: int, name: str) -> Record:
    """Store what a form brought, as `push` does."""
    # Windows of it, and as much for their frames.
    memory = 2 * min(size, WINDOWS_IN_FLIGHT * WINDOW_SIZE)
    async with exchange.push_budget.take(memory):
        return (await push(repository, Path(f"/dev/fd/{spool.fileno()}"), name=name)).record


def _answer(record: Record, alias: str) -> dict[str, str | int]:
    return {**record.as_json(), "name": alias, "file_name": record.name, "file_path": f"/{record.path}"}
