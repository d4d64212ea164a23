"""Receive forms: one file into a spool file, all other parts in memory, within limits.

Source: RFC 7578 (multipart/form-data).
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NamedTuple, TypeVar, cast

from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.http import HttpProcessingError

from filestore.errors import InvalidInput, LimitExceeded
from filestore.http.server.body.answer import arriving
from filestore.http.server.context import RequestContext, spooling
from filestore.system.stalls import StallTimer

T = TypeVar("T")

WRITE_SIZE = 64 << 10
"""Bytes of one write to the spool file. A form holds less than this while it waits for more of its file (I6)."""
FAST_WRITE_SIZE = 1 << 20
"""The same for a file that arrives fast. Half as much work is then done for each byte."""
FAST_LIMIT = 32
"""How many forms of a process may make such writes at the same time."""
FIELDS_LIMIT = 64 << 10
"""Bytes of a form without the content of its file, and without the boundaries: the headers and values of all parts."""
PARTS_LIMIT = 1000
"""The largest number of parts in a form."""

_READ_SIZE = 32 << 10
"""Bytes that are read from a form at a time. aiohttp holds as many back, since a boundary may begin in them."""
_FAST_READ_SIZE = 128 << 10
"""The same for a file that arrives fast."""
_FAST_SECONDS = 1.0
"""In how many seconds the bytes of a write must arrive, if the next write may be a large one."""
_LINE_LIMIT = 8 << 10
"""Bytes of one line of a part's header. This is also what aiohttp accepts for one line of a request's header."""
_HEADERS_LIMIT = 16
"""The largest number of lines in the header of a part."""
_BOUNDARY_LIMIT = 76
"""Bytes of the longest line with a boundary: at most 70 characters, with two dashes before and after them, and the end of a line.

Source: RFC 2046, section 5.1.1.
"""
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

    `written` is called with the size of each piece before it is written.

    `check_name` is called with the file's name before the content is received, so that a bad name costs no transfer.

    Raises InvalidInput, LimitExceeded, Interrupted, Stalled, StorageError, and what `check_name` raises.
    """
    file_name = None
    size = 0
    fields: dict[str, list[str]] = {}
    body = _FormBody(context)
    async for part in _parts(context, body):
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
            value = bytearray()
            while piece := await _step(part.read_chunk(_READ_SIZE)):
                body.count(len(piece))
                value += piece
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


class _FormBody:
    """The body of a form, which aiohttp reads through this object as through its own `StreamReader`.

    One stall timer covers the whole body. With a timer for each part, a client could take a thousand times as long.
    """

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._content = context.request.content
        self._timer = StallTimer(context.stall_seconds)
        self._counted = 0
        self._boundary_count = 0

    def parts(self) -> MultipartReader:
        """Return aiohttp's reader of the parts. Raises ValueError if the request names no boundary."""
        # Without this call, aiohttp refuses header lines of more than 2 bytes, because of `read_bufsize` in `worker.py`.
        self._content.set_read_chunk_size(_READ_SIZE)
        content = cast(StreamReader, self)  # it calls the four methods below
        return MultipartReader(self._context.request.headers, content, max_field_size=_LINE_LIMIT, max_headers=_HEADERS_LIMIT)

    def count(self, size: int) -> None:
        """Count bytes that are not the content of the file. Raises LimitExceeded if they are too many."""
        self._counted += size
        if self._counted > FIELDS_LIMIT:
            raise LimitExceeded("the size in bytes of the form without its file", self._counted, FIELDS_LIMIT)

    async def readline(self, *, max_line_length: int = _LINE_LIMIT) -> bytes:
        """Return the next line: one of a header, a boundary, or one that belongs to no part."""
        line = await self._arrived(self._content.readline(max_line_length=max_line_length))
        if line.startswith(b"--") and len(line) <= _BOUNDARY_LIMIT:
            # One boundary is before each part, and one is at the end.
            if self._boundary_count > PARTS_LIMIT:
                raise LimitExceeded("the number of the form's parts", self._boundary_count, PARTS_LIMIT)
            self._boundary_count += 1
        else:
            self.count(len(line))
        return line

    async def read(self, size: int) -> bytes:
        """Return the next bytes of a value, or of the boundary after it."""
        return await self._arrived(self._content.read(size))

    def unread_data(self, data: bytes) -> None:
        """Put bytes back, to be read next."""
        self._content.unread_data(data)

    def at_eof(self) -> bool:
        """Return whether the body has ended."""
        return self._content.at_eof()

    async def _arrived(self, reading: Awaitable[bytes]) -> bytes:
        """Wait for bytes. Raises Interrupted, Stalled."""
        before = self._content.total_bytes
        began = self._timer.began()
        with arriving():
            async with self._context.moving(self._timer.left()):
                arrived = await reading
        self._timer.ended(began)
        self._timer.count(self._content.total_bytes - before)
        await self._context.passed(self._content.total_bytes - before)
        return arrived


async def _parts(context: RequestContext, body: _FormBody) -> AsyncIterator[BodyPartReader]:
    if context.request.content_type != "multipart/form-data":
        raise InvalidInput("the body is not a form; send one, for example with: curl -F pfile=@FILE")
    with _well_formed():
        form = body.parts()
    while (part := await _step(form.next())) is not None:
        if not isinstance(part, BodyPartReader):
            raise InvalidInput("a part of the form is itself a form; send each value as a part of its own")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in {"binary", "7bit", "8bit"}:
            raise InvalidInput("a part of the form has a Content-Transfer-Encoding; send its bytes without one")
        yield part


async def _spool(context: RequestContext, part: BodyPartReader, spool: AsyncFileIO, written: Callable[[int], None]) -> int:
    """Write a part to `spool`, and return its size. Raises LimitExceeded if the file is too large."""
    size = 0
    with closing(_SpoolWriter(spool, written)) as writer:
        while piece := await _step(part.read_chunk(writer.read_size)):
            size += len(piece)
            context.check_upload_size(size)
            await writer.add(piece)
        await writer.flush()
    return size


class _SpoolWriter:
    """Collect the bytes of a file for large writes, which cost less, and for small ones if they arrive slowly."""

    def __init__(self, spool: AsyncFileIO, written: Callable[[int], None]) -> None:
        self._spool = spool
        self._written = written
        self._waiting = bytearray()
        self._began = time.monotonic()

    @property
    def read_size(self) -> int:
        """How many bytes `add` should be given at a time."""
        return _FAST_READ_SIZE if self in _fast_writers else _READ_SIZE

    async def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._waiting += piece
        is_fast = time.monotonic() - self._began < _FAST_SECONDS
        if len(self._waiting) >= (FAST_WRITE_SIZE if is_fast and self in _fast_writers else WRITE_SIZE):
            await self.flush()
            _fast_writers.discard(self)
            if is_fast and len(_fast_writers) < FAST_LIMIT:
                _fast_writers.add(self)
            self._began = time.monotonic()

    async def flush(self) -> None:
        """Write what was taken. Raises StorageFull, StorageError."""
        with spooling():
            self._written(len(self._waiting))
            while self._waiting:
                size = await self._spool.write(self._waiting)
                del self._waiting[:size]

    def close(self) -> None:
        """Leave large writes to others."""
        _fast_writers.discard(self)


_fast_writers: set[_SpoolWriter] = set()
"""The writers of this process that may make large writes now."""


async def _step(reading: Awaitable[T]) -> T:
    """Read something of a form. Raises InvalidInput if the form is malformed, and what `_FormBody` raises."""
    with _well_formed():
        return await reading


@contextmanager
def _well_formed() -> Iterator[None]:
    """Raise InvalidInput if aiohttp finds a form malformed in the block."""
    try:
        yield
    # RuntimeError is for the part with the name `_charset_`.
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as error:
        raise InvalidInput(f"the form is malformed: {error}") from error
