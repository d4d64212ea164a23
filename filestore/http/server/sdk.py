"""The form upload of the Pipeline SDK, and of curl: `POST /v3/pipeline_files`.

Source: RFC 7578 (multipart/form-data).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import NamedTuple, TypeVar

from aiofiles.tempfile import TemporaryFile
from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from filestore.errors import InvalidInput, LimitExceeded
from filestore.http.server.exchange import Exchange, arriving, spooling
from filestore.objects import Record, checked_name
from filestore.push import WINDOWS_IN_FLIGHT, push
from filestore.repository import LocalRepository
from filestore.source import WINDOW_SIZE

T = TypeVar("T")

PUSHES_LIMIT = 2 * WINDOWS_IN_FLIGHT * WINDOW_SIZE
"""Bytes of memory for pushing what forms brought: one large file at a time, or some small ones, as each push uses all cores."""
WRITE_SIZE = 1 << 20
"""Bytes of one write to the spool file: what a form holds in memory while it arrives."""
FIELDS_LIMIT = 64 << 10
"""Bytes of all parts of a form but the file."""

_READ_SIZE = 64 << 10
_FOLDERS = re.compile(r"[/\\]")


async def create_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Store the part `pfile` of a form under its own name, and under the alias too that the query or the part `name` gives.

    Two records, so that the path ends in the file's own name, by whose ending loaders know it, and the alias is found as well.
    """
    alias = exchange.request.query.get("name")
    if alias is not None:
        checked_name(alias)
    # It has no name in its folder: nothing of it is left, however this process ends.
    async with TemporaryFile("w+b", buffering=0, dir=exchange.spool_folder) as spool:
        form = await _receive(exchange, spool)
        if form.file_name is None:
            raise InvalidInput("the form has no part pfile with a file's name: curl -F pfile=@FILE sends one")
        alias = checked_name(alias or form.alias or form.file_name)
        name = checked_name(form.file_name or alias)
        async with exchange.push_budget.take(_push_memory(form.size)):
            record = (await push(repository, Path(f"/dev/fd/{spool.fileno()}"), name=name)).record
    if alias != record.name:
        await repository.commit(await repository.manifest(record.digest), name=alias)
    return web.json_response(_answer(record, alias), status=201)


def _answer(record: Record, alias: str) -> dict[str, str | int]:
    return {**record.as_json(), "name": alias, "file_name": record.name, "file_path": f"/{record.path}"}


def _push_memory(size: int) -> int:
    """Bytes of memory that pushing a file of `size` bytes takes: windows of it, and as much for their frames."""
    return 2 * min(size, WINDOWS_IN_FLIGHT * WINDOW_SIZE)


class _Form(NamedTuple):
    """What a form said, and the size of its file."""

    file_name: str | None
    alias: str | None
    size: int


async def _receive(exchange: Exchange, spool: AsyncFileIO) -> _Form:
    """Write the file of a form to `spool`.

    Raises InvalidInput, InvalidName, LimitExceeded, Interrupted, Stalled, StorageError.
    """
    file_name = alias = None
    size = 0
    left = FIELDS_LIMIT
    async for part in _parts(exchange):
        if part.name == "pfile":
            if file_name is not None:
                raise InvalidInput("the form has two parts pfile; send one file at a time")
            # A client may send its own path: neither system's folders are part of the name.
            file_name = _FOLDERS.split(part.filename or "")[-1]
            if file_name or "name" not in exchange.request.query:
                checked_name(file_name)  # before gigabytes are received for nothing
            size = await _spool(exchange, part, spool)
        else:
            value = await _field(exchange, part, limit=left)
            left -= len(value)
            if part.name == "name":
                alias = value.decode(errors="surrogateescape")  # which no name may hold
    return _Form(file_name, alias, size)


async def _parts(exchange: Exchange) -> AsyncIterator[BodyPartReader]:
    request = exchange.request
    if request.content_type != "multipart/form-data":
        raise InvalidInput("a form is expected: curl -F pfile=@FILE sends one")
    # Without this a header's line could have no more than 2 bytes: see `read_bufsize` in `workers`.
    request.content.set_read_chunk_size(_READ_SIZE)
    form = await _step(exchange, request.multipart())
    while (part := await _step(exchange, form.next())) is not None:
        if not isinstance(part, BodyPartReader):
            raise InvalidInput("a part of the form is a form itself")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in {"binary", "7bit", "8bit"}:
            raise InvalidInput("a part of the form has a Content-Transfer-Encoding; send it as it is")
        yield part


async def _spool(exchange: Exchange, part: BodyPartReader, spool: AsyncFileIO) -> int:
    """Write a part to `spool`; how many bytes there were."""
    buffer = memoryview(bytearray(WRITE_SIZE + _READ_SIZE))
    filled = size = 0
    while piece := await _step(exchange, part.read_chunk(_READ_SIZE)):
        size += len(piece)
        if exchange.upload_limit is not None and size > exchange.upload_limit:
            raise LimitExceeded("the file's size in bytes", size, exchange.upload_limit)
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
        if filled >= WRITE_SIZE:
            await _write(spool, buffer[:filled])
            filled = 0
    await _write(spool, buffer[:filled])
    return size


async def _write(spool: AsyncFileIO, content: memoryview) -> None:
    with spooling():
        while content:
            content = content[await spool.write(content) :]


async def _field(exchange: Exchange, part: BodyPartReader, *, limit: int) -> bytes:
    value = bytearray()
    while piece := await _step(exchange, part.read_chunk(_READ_SIZE)):
        value += piece
        if len(value) > limit:
            raise LimitExceeded("the size in bytes of the form's other parts", FIELDS_LIMIT - limit + len(value), FIELDS_LIMIT)
    return bytes(value)


async def _step(exchange: Exchange, reading: Awaitable[T]) -> T:
    """Read something of a form. Raises InvalidInput where it is malformed, Interrupted, Stalled."""
    try:
        with arriving():
            async with exchange.moving():
                return await reading
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise InvalidInput(f"the form is malformed: {error}") from error
