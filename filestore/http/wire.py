"""Data formats that server and client share, without I/O. The specification is `docs/http-api.md`.

A *batch* is how frames travel in both directions, little-endian:

    u32                          count
    count x (32 bytes digest, u32 stored size)      stored size 0: the chunk is absent (answers only)
    the frames, back to back, in the same order
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, get_type_hints

from filestore import errors
from filestore.core.digest import DIGEST_AND_NUMBER, Buffer, Digest
from filestore.format.codec import FRAME_LIMIT

API = "/native/v1"
BATCH_COUNT_LIMIT = 4096
BATCH_LIMIT = 64 << 20
"""Bytes of one batch, its header included."""
DIGESTS_LIMIT = 65536
"""The largest number of digests in one request."""
NAME_HEADER = "filestore-name"
MESSAGE_HEADER = "filestore-message"
"""The message of a commit, percent-encoded as the name."""
OCTETS = "application/octet-stream"
LINES = "application/x-ndjson"
"""The media type of a listing: one JSON object in each line."""
FRAME_URLS = "application/vnd.filestore.frame-urls+json"
"""The media type of an answer that says where frames can be read in place of the frames."""
PROBLEM = "application/problem+json"
TEXT_LIMIT = 4096
"""The most characters of a text in a problem document. It is shown to a user as one line."""

_COUNT = struct.Struct("<I")


class BatchEntry(NamedTuple):
    """One frame of a batch. `stored_size` is 0 if the chunk is absent."""

    digest: Digest
    stored_size: int


def batch_header_size(count: int) -> int:
    """Return the number of bytes in the header of a batch of `count` frames."""
    return _COUNT.size + count * DIGEST_AND_NUMBER.size


def encode_batch_header(entries: Sequence[BatchEntry]) -> bytes:
    """Return the header of a batch. The frames must follow it."""
    return _COUNT.pack(len(entries)) + b"".join(DIGEST_AND_NUMBER.pack(*entry) for entry in entries)


def decode_batch_count(raw: Buffer) -> int:
    """Return the number of frames in a batch, which its first 4 bytes give. Raises InvalidBatch."""
    (count,) = _COUNT.unpack_from(raw)
    if not count <= BATCH_COUNT_LIMIT:
        raise errors.InvalidBatch(f"it says to hold {count} frames, allowed are {BATCH_COUNT_LIMIT}")
    return int(count)


def decode_batch_entries(raw: Buffer, *, absent_allowed: bool) -> list[BatchEntry]:
    """Return the entries that follow the count in a header. Raises InvalidBatch for an impossible size."""
    entries = [BatchEntry(Digest(digest), size) for digest, size in DIGEST_AND_NUMBER.iter_unpack(raw)]
    for entry in entries:
        if entry.stored_size > FRAME_LIMIT or (entry.stored_size == 0 and not absent_allowed):
            raise errors.InvalidBatch(f"the frame of chunk {entry.digest} says to have {entry.stored_size} bytes")
    return entries


class BatchParser:
    """Separate a batch into its frames while it arrives, in pieces of any size. Only its header is kept in memory.

    `size` is the length that was announced for the whole batch.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._header = bytearray()
        self._count: int | None = None
        self._to_come: deque[BatchEntry] | None = None
        self._left = 0

    @property
    def finished(self) -> bool:
        """Whether `feed` has received the whole batch."""
        return self._to_come is not None and not self._to_come and not self._left

    @property
    def count(self) -> int:
        """The number of frames of the batch. 0 as long as it has not arrived."""
        return self._count or 0

    @property
    def has_header(self) -> bool:
        """Whether the header has arrived."""
        return self._to_come is not None

    def to_come(self) -> dict[Digest, int]:
        """Return the stored sizes of the frames that have not begun, by their digests."""
        return {entry.digest: entry.stored_size for entry in self._to_come or ()}

    def reach(self, limit: int, *, count: int | None = None) -> int:
        """Return the best size of the next piece, which ends at the end of a frame.

        The piece has as many frames as fit in `limit`, and at least one. Within the header, the result is `limit`. With
        `count`, the piece begins at most so many frames, so it is empty if that is 0. It then also ends with the header.
        """
        if count is not None and self._to_come is None:
            size = _COUNT.size if self._count is None else batch_header_size(self._count)
            return min(size - len(self._header), limit)
        reach = self._left
        for entry in islice(self._to_come or (), count):
            if reach and reach + entry.stored_size > limit:
                break
            reach += entry.stored_size
        return reach or (0 if self._to_come else limit)

    def take_whole(self, piece: memoryview) -> list[tuple[Digest, memoryview]] | None:
        """Take `piece` if it is one whole frame or several. Return their digests and views of them.

        Return None, and take nothing, if it is anything else: it is then for `feed`.
        """
        if self._left or not self._to_come:
            return None
        frames = []
        end = 0
        for digest, stored_size in self._to_come:
            start, end = end, end + stored_size
            frames.append((digest, piece[start:end]))
            if end >= len(piece):
                break
        if end != len(piece):
            return None
        for _ in frames:
            self._to_come.popleft()
        return frames

    def feed(self, piece: Buffer) -> Iterator[BatchEntry | memoryview]:
        """Yield the content of `piece`.

        Where a frame begins, its entry comes first, then its bytes as views of `piece`.

        Raises InvalidBatch as soon as something cannot be right. The frames that were complete before that are valid.
        """
        rest = self._feed_header(memoryview(piece))
        while rest:
            if not self._left:
                if not self._to_come:
                    raise errors.InvalidBatch("bytes follow its last frame")
                entry = self._to_come.popleft()
                self._left = entry.stored_size
                yield entry
            part, rest = rest[: self._left], rest[self._left :]
            self._left -= len(part)
            yield part

    def _feed_header(self, view: memoryview) -> memoryview:
        """Take the bytes of the header. Return the rest of `view`, which is empty while the header is incomplete."""
        if self._count is None:
            view = self._fill_header(view, _COUNT.size)
            if len(self._header) < _COUNT.size:
                return view
            self._count = decode_batch_count(self._header)
        if self._to_come is None:
            size = batch_header_size(self._count)
            view = self._fill_header(view, size)
            if len(self._header) < size:
                return view
            entries = decode_batch_entries(bytes(self._header[_COUNT.size :]), absent_allowed=False)
            total = size + sum(entry.stored_size for entry in entries)
            if total != self._size:
                raise errors.InvalidBatch(f"its header adds up to {total} bytes, {self._size} were announced")
            self._to_come = deque(entries)
        return view

    def _fill_header(self, view: memoryview, size: int) -> memoryview:
        wanted = size - len(self._header)
        self._header += view[:wanted]
        return view[wanted:]


class Problem(NamedTuple):
    """An error on the wire: a status, and a problem document (RFC 9457)."""

    status: int
    document: dict[str, object]


_STATUS: dict[type[errors.FilestoreError], int] = {
    errors.InvalidInput: 400,
    errors.InvalidRange: 416,
    errors.InvalidContent: 422,
    errors.DamagedChunk: 500,
    errors.DamagedRecord: 500,
    errors.NotFound: 404,
    errors.ChunksMissing: 409,
    errors.FileInUse: 409,
    errors.VersionLabelled: 409,
    errors.HeadMoved: 409,
    errors.LabelExists: 409,
    errors.NameExists: 409,
    errors.OwnerTaken: 403,
    errors.PartRefused: 409,
    errors.PartDiffers: 409,
    errors.LimitExceeded: 413,
    errors.TooManyUploads: 429,
    errors.Unauthorized: 401,
    errors.UrlRefused: 403,
    errors.TooManyGuesses: 429,
    errors.RateLimited: 429,
    errors.QuotaExceeded: 507,
    errors.Forbidden: 403,
    errors.UpstreamGated: 403,
    errors.UpstreamUnauthorized: 401,
    errors.UpstreamFailed: 502,
    errors.ScopeMissing: 403,
    errors.OutsidePrefix: 403,
    errors.StorageFull: 507,
    errors.Busy: 503,
    errors.Unhealthy: 503,
}


_FACT_TYPES: dict[type, tuple[type, ...]] = {str: (str,), int: (int,), float: (float, int)}
"""The types that a JSON value may have for a fact of each type. `bool` is not one of them, although it is an int in
Python.
"""


def _all_below(kind: type[errors.FilestoreError]) -> Iterable[type[errors.FilestoreError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _all_below(below)


THIS_SERVER = "the server"
"""What a server calls itself in an error. A client puts the URL there."""
_TYPE_PREFIX = "urn:filestore:error:"


def register_status(kind: type[errors.FilestoreError], status: int) -> None:
    """Set the HTTP status of an error class that another package defines, and of its subclasses."""
    _STATUS[kind] = status


def status_of(kind: type[errors.FilestoreError]) -> int:
    """Return the HTTP status for a class of error.

    It is the status of the class itself, or of the nearest base class that has one, else 500.
    """
    return next((_STATUS[parent] for parent in kind.__mro__ if parent in _STATUS), 500)


def slug_of(problem: Problem) -> str:
    """Return the slug of the error that a problem document reports. It is empty for an error of HTTP itself."""
    kind = str(problem.document.get("type", ""))
    return kind.removeprefix(_TYPE_PREFIX) if kind.startswith(_TYPE_PREFIX) else ""


def encode_problem(error: errors.FilestoreError) -> Problem:
    """Return the status and the problem document of `error`.

    The member `detail` is the message, which the SDK reads. Each fact of the error is a member with the name of the
    fact.

    Source: RFC 9457, section 3.2 (extension members). No fact has the name of a member that the RFC defines.
    """
    status = status_of(type(error))
    document: dict[str, object] = {
        "type": _TYPE_PREFIX + error.slug,
        "title": error.slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": str(error),
    }
    return Problem(status, document | error.named_facts())


def decode_problem(url: str, status: int, document: object) -> errors.FilestoreError:
    """Return the error that a server reports by a problem document.

    It is ServerError if this version does not know the error.

    Members that the error does not have are ignored: a newer server may send more of them.
    """
    if not isinstance(document, dict):
        return errors.ServerError(url, status, "no explanation")
    if document.get("where") == THIS_SERVER:
        # A server does not know by which URL it was reached.
        document = document | {"where": url}
    kind = _kind_of(document.get("type"))
    made = None if kind is None else _made_again(kind, document)
    if made is not None:
        return made
    detail = document.get("detail", "")
    return errors.ServerError(url, status, detail[:TEXT_LIMIT] if isinstance(detail, str) else "no explanation")


def _kind_of(problem_type: object) -> type[errors.FilestoreError] | None:
    """Return the error class of a problem's type, or None. Only classes that are imported by now are found."""
    return next((kind for kind in _all_below(errors.FilestoreError) if _TYPE_PREFIX + kind.slug == problem_type), None)


def _made_again(kind: type[errors.FilestoreError], document: Mapping[str, object]) -> errors.FilestoreError | None:
    """Return an error of the class `kind`, or None if a fact is missing or has a wrong type."""
    types = get_type_hints(kind)
    facts: list[Any] = []
    for name in kind.facts:
        # A fact that the class has a value for may be missing: an older server does not send it.
        fact = document.get(name, getattr(kind, name, None))
        if types.get(name) == tuple[str, ...]:
            if not isinstance(fact, list) or not fact or not all(isinstance(part, str) for part in fact):
                return None
            facts += fact
        elif type(fact) in _FACT_TYPES[types.get(name, str)] and not (isinstance(fact, str) and len(fact) > TEXT_LIMIT):
            facts.append(fact)
        else:
            return None
    error = kind(*facts)
    if isinstance(error, errors.StorageFull):
        # The disk of a server is that of its repository.
        error.hint = "free-repository"
    try:
        str(error)
    except (OverflowError, ValueError):  # a number that cannot be shown
        return None
    return error
