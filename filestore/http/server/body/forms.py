"""Receive forms: one file into a spool file, all other parts in memory, within limits.

Source: RFC 7578 (multipart/form-data).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp import BodyPartReader
from aiohttp.http import HttpProcessingError

from filestore.errors import InvalidInput, LimitExceeded
from filestore.http.server.context import RequestContext, spooling
from filestore.system.stalls import StallTimer

T = TypeVar("T")

WRITE_SIZE = 1 << 20
"""Bytes of one write to the spool file. A form holds this much memory while its file arrives."""
FIELDS_LIMIT = 64 << 10
"""Bytes of all parts of a form together, without the file."""

_READ_SIZE = 64 << 10
_FOLDERS = re.compile(r"[/\\]")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[/\\]|\\\\")
_PARAMETER = re.compile(r';\s*(?P<key>[A-Za-z-]+)="(?P<value>(?:[^"\\]|\\.)*)"\s*(?=;|\Z)', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_PERCENT_ENCODED = {"%22": '"', "%0d": "\r", "%0a": "\n"}


class Form(NamedTuple):
    """The content of a form: the name and the size of its file, and its other parts."""

    file_name: str | None
    """The last part of the path that the client gave, without folders; None if the form has no file."""
    size: int
    fields: Mapping[str, list[str]]
    """The values of the other parts by name, in their order. Bytes that are not UTF-8 become surrogates, which no
    stored name may have."""


async def receive_form(
    context: RequestContext,
    spool: AsyncFileIO,
    *,
    file_part: str,
    check_name: Callable[[str], object],
    written: Callable[[int], None] = lambda _: None,
) -> Form:
    """Write the part `file_part` of a form to `spool`, and return the rest of the form.

    `written` is called with the size of each piece that was written.

    `check_name` is called with the file's name before the content is received, so that a bad name costs no transfer.

    Raises InvalidInput, LimitExceeded, Interrupted, Stalled, StorageError, and what `check_name` raises.
    """
    file_name = None
    size = 0
    fields: dict[str, list[str]] = {}
    left = FIELDS_LIMIT
    async for part in _parts(context):
        name, path = _names(part)
        if name == file_part:
            if file_name is not None:
                raise InvalidInput(f"the form has two parts {file_part}; send one file at a time")
            # Some clients send a whole path of their machine.
            file_name = last_part(path)
            check_name(file_name)
            size = await _spool(context, part, spool, written)
        elif part.filename is not None:
            raise InvalidInput(f"the form has a file in the part {part.name!r}; send the file in the part {file_part!r}")
        else:
            value = await _field(context, part, limit=left)
            left -= len(value)
            fields.setdefault(name, []).append(value.decode(errors="surrogateescape"))
    return Form(file_name, size, fields)


def last_part(path: str) -> str:
    """Return the name at the end of a client's path.

    In a path of Windows, which begins with a drive or with two backslashes, folders are separated by backslashes too.
    Anywhere else, a backslash is a part of the name.
    """
    return _FOLDERS.split(path)[-1] if _WINDOWS_PATH.match(path) else path.rpartition("/")[2]


def _names(part: BodyPartReader) -> tuple[str, str]:
    """Return the name of a part and its file name. A name that is missing is empty.

    aiohttp drops each backslash in a file name, and all of a header with two semicolons in a name. So a header of
    quoted parameters only is parsed here, and any other by aiohttp.
    """
    header = part.headers.get("Content-Disposition", "")
    found, at = {}, len("form-data")
    while (parameter := _PARAMETER.match(header, at)) is not None:
        found[parameter["key"].lower()] = parameter["value"]
        at = parameter.end()
    if at < len(header):
        return part.name or "", part.filename or ""
    return _decoded(found.get("name", "")), _decoded(found.get("filename", ""))


def _decoded(value: str) -> str:
    """Undo what a client did to the name of a part or of a file.

    The HTML standard encodes three characters by `%` and the backslash not at all; some clients escape by backslashes.

    Source: HTML, section "Multipart form data"; RFC 7578, section 4.2.
    """
    value = _ESCAPED.sub(r"\1", value)
    return re.sub("%22|%0[ad]", lambda found: _PERCENT_ENCODED[found[0].lower()], value, flags=re.IGNORECASE)


async def _parts(context: RequestContext) -> AsyncIterator[BodyPartReader]:
    request = context.request
    if request.content_type != "multipart/form-data":
        raise InvalidInput("the body is not a form; send one, for example with: curl -F pfile=@FILE")
    # Without this call, aiohttp refuses header lines of more than 2 bytes, because of `read_bufsize` in `worker.py`.
    request.content.set_read_chunk_size(_READ_SIZE)
    form = await _step(context, request.multipart())
    while (part := await _step(context, form.next())) is not None:
        if not isinstance(part, BodyPartReader):
            raise InvalidInput("a part of the form is itself a form; send each value as a part of its own")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in {"binary", "7bit", "8bit"}:
            raise InvalidInput("a part of the form has a Content-Transfer-Encoding; send its bytes without one")
        yield part


async def _spool(context: RequestContext, part: BodyPartReader, spool: AsyncFileIO, written: Callable[[int], None]) -> int:
    """Write a part to `spool`, and return its size. Raises LimitExceeded if the file is too large."""
    buffer = memoryview(bytearray(WRITE_SIZE + _READ_SIZE))
    filled = size = 0
    timer = StallTimer(context.stall_seconds)
    while piece := await _step(context, part.read_chunk(_READ_SIZE), timer):
        size += len(piece)
        context.check_upload_size(size)
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
        if filled >= WRITE_SIZE:
            await _write(spool, buffer[:filled])
            written(filled)
            filled = 0
    await _write(spool, buffer[:filled])
    written(filled)
    return size


async def _write(spool: AsyncFileIO, content: memoryview) -> None:
    with spooling():
        while content:
            content = content[await spool.write(content) :]


async def _field(context: RequestContext, part: BodyPartReader, *, limit: int) -> bytes:
    value = bytearray()
    timer = StallTimer(context.stall_seconds)
    while piece := await _step(context, part.read_chunk(_READ_SIZE), timer):
        value += piece
        if len(value) > limit:
            raise LimitExceeded("the size in bytes of the form's other parts", FIELDS_LIMIT - limit + len(value), FIELDS_LIMIT)
    return bytes(value)


async def _step(context: RequestContext, reading: Awaitable[T], timer: StallTimer | None = None) -> T:
    """Read something of a form. Raises InvalidInput if the form is malformed, Interrupted, Stalled."""
    try:
        return await context.piece(timer or StallTimer(context.stall_seconds), reading)
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise InvalidInput(f"the form is malformed: {error}") from error
