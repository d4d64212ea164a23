"""Receive the answers of a server into memory, and make errors of unsuccessful ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import BinaryIO

from filestore.core.digest import Digest
from filestore.core.records import parse_json
from filestore.errors import (
    FilestoreError,
    HostUnknown,
    Interrupted,
    InvalidBatch,
    LimitExceeded,
    TokenExpired,
    TokenMissing,
    Unauthorized,
    Unreachable,
)
from filestore.http import wire
from filestore.http.client.foreign import error_of
from filestore.repository.listing import listing_errors
from filestore.repository.protocol import Moved
from filestore.system.connection_errors import failure_reason, is_host_unknown
from filestore.system.http_answers import Said

DOCUMENT_LIMIT = 4 << 20
"""Bytes of the largest document that is accepted. A page of 1000 records has at most about 2 MiB."""
PROBLEM_LIMIT = 1 << 20
"""Bytes of the largest problem document. One lists up to 4096 chunks; an earlier server lists all, of which 7000 fit."""
LATE_SIZE = 64 << 10
"""How much of a late document a server may send slowly, byte by byte, while it works. It sends at most that many blanks."""
SUCCESSES = frozenset({HTTPStatus.OK, HTTPStatus.CREATED})
"""The statuses with which our server answers a request that succeeded. Any other status is an error."""

_PIECE = 64 << 10


def answer_size_of(location: str) -> str:
    """Return how an error names the size of an answer of this server."""
    return f"the answer of {location} in bytes"


class SmallAnswer:
    """An `AnswerBody` for a small answer. Its memory grows with what arrives, not with what is announced."""

    def __init__(self, location: str, *, limit: int = DOCUMENT_LIMIT) -> None:
        """`location` is the name of the server in errors, `limit` the largest accepted size in bytes."""
        self._location = location
        self._limit = limit
        self._piece = memoryview(b"")
        self._content = bytearray()
        self._announced: int | None = None

    @property
    def content(self) -> bytes:
        """The bytes that have arrived."""
        return bytes(self._content)

    @property
    def size(self) -> int:
        return len(self._content)

    def expect(self, size: int | None, media_type: str) -> None:  # noqa: ARG002  # of the protocol
        self._announced = size
        self._check(size or 0)

    def memory(self) -> memoryview:
        if not self._piece:
            # Most answers have a few bytes. To clear 64 KiB would take longer than all else of the exchange.
            most = min(self._limit + 1, _PIECE)
            self._piece = memoryview(bytearray(most if self._announced is None else min(self._announced + 1, most)))
        return self._piece

    def add(self, size: int) -> None:
        self._content += self._piece[:size]
        self._check(len(self._content))

    def end(self) -> None:
        pass

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise LimitExceeded(answer_size_of(self._location), size, self._limit)


class FileAnswer:
    """An `AnswerBody` that writes an answer of any size to a file, whose earlier content it replaces."""

    def __init__(self, location: str, file: BinaryIO, *, limit: int) -> None:
        """`limit` is the largest accepted size in bytes. Blocks. Raises StorageFull, StorageError."""
        self._location = location
        self._file = file
        self._limit = limit
        self._announced: int | None = None
        self._piece = memoryview(bytearray(_PIECE))
        self.size = 0
        with listing_errors():
            file.seek(0)
            file.truncate()

    def expect(self, size: int | None, media_type: str) -> None:  # noqa: ARG002  # of the protocol
        self._announced = size
        self._check(size or 0)

    def memory(self) -> memoryview:
        return self._piece

    def add(self, size: int) -> None:
        self.size += size
        self._check(self.size)
        with listing_errors():
            # It goes to the memory of the kernel, so it does not block for long.
            self._file.write(self._piece[:size])

    def end(self) -> None:
        if self._announced is not None and self.size < self._announced:
            raise Interrupted(self._location, "the answer is shorter than it said")

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise LimitExceeded(answer_size_of(self._location), size, self._limit)


class BatchAnswer:
    """An `AnswerBody` for a batch of frames, which are received into the caller's memory without a copy.

    The header is checked before any frame is received: it must list the chunks that were asked for, and their frames must fit.
    """

    def __init__(self, location: str, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved) -> None:
        """`buffer` takes the frames of `digests`, back to back; `moved` is called with the bytes of them that just arrived."""
        self._location = location
        self._digests = digests
        self._buffer = buffer
        self._moved = moved
        self._announced: int | None = None
        self._header = memoryview(bytearray(wire.batch_header_size(len(digests))))
        self._header_filled = 0
        self._entries: list[wire.BatchEntry] = []
        self._batch = buffer[:0]
        self._filled = 0

    def frames(self) -> Iterator[memoryview | None]:
        """Yield the frames that have arrived completely, in order, as parts of the buffer.

        Yield None for an absent chunk.
        """
        start = 0
        for entry in self._entries:
            end = start + entry.stored_size
            if end > self._filled:
                return
            yield self._batch[start:end] if entry.stored_size else None
            start = end

    @property
    def size(self) -> int:
        return self._filled

    def expect(self, size: int | None, media_type: str) -> None:  # noqa: ARG002  # of the protocol
        self._announced = size

    def memory(self) -> memoryview:
        return self._header[self._header_filled :] or self._batch[self._filled :]

    def add(self, size: int) -> None:
        if self._header_filled < len(self._header):
            self._header_filled += size
            if self._header_filled == len(self._header):
                self._take_header()
        else:
            self._filled += size
            self._moved(size)

    def end(self) -> None:
        if self._header_filled < len(self._header):
            raise Interrupted(self._location, "the answer ended too early")
        if self._filled < len(self._batch):
            raise Interrupted(self._location, "the answer is shorter than it said")

    def _take_header(self) -> None:
        entries = wire.decode_batch_entries(self._header[wire.batch_header_size(0) :], absent_allowed=True)
        count = wire.decode_batch_count(self._header)
        if count != len(self._digests) or [entry.digest for entry in entries] != list(self._digests):
            raise InvalidBatch(f"{self._location} answered with other chunks than those that were asked for")
        size = sum(entry.stored_size for entry in entries)
        batch = self._claim(size)
        if self._announced is not None and self._announced > len(self._header) + size:
            raise longer_than_announced(self._location)
        self._entries = entries
        self._batch = batch

    def _claim(self, size: int) -> memoryview:
        """Return memory for the frames. Raises InvalidBatch."""
        if size > len(self._buffer):
            raise InvalidBatch(f"{self._location} answered with larger frames than these chunks can have")
        return self._buffer[:size]


def longer_than_announced(location: str) -> Interrupted:
    """Return the error to raise if bytes follow the end of an answer."""
    return Interrupted(location, "the answer is longer than it said")


def no_connection(location: str, error: BaseException) -> Unreachable:
    """Return the error to raise if no connection to a server could be made."""
    kind = HostUnknown if is_host_unknown(error) else Unreachable
    return kind(location, failure_reason(error))


def answer_error(location: str, status: int, content: bytes, said: Said, *, sent_size: int, has_token: bool) -> FilestoreError:
    """Return the error to raise for an unsuccessful answer.

    `sent_size` is bytes of the request's body; `has_token` says whether the request had a token.
    """
    try:
        document = parse_json(content)
    except ValueError:
        document = None
    if status == HTTPStatus.UNAUTHORIZED and not said.is_page:  # a page is the login of something between
        if not has_token:
            return TokenMissing(location)
        is_expired = isinstance(wire.decode_problem(location, status, document), TokenExpired)
        return (TokenExpired if is_expired else Unauthorized)(location)
    return error_of(location, status, document, said, sent_size=sent_size)
