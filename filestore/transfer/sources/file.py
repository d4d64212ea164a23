"""The contract of a source, from which a push reads, and the source for a single file.

A source is read once and in order, into buffers that are reused. It is cut and hashed meanwhile, and checked for
changes.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from filestore.core.digest import DIGEST_AND_NUMBER, Buffer, Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import SourceChanged, SourceUnreadable
from filestore.format.chunking import CHUNKING_VERSION, LOOKAHEAD, Chunker
from filestore.system.files import read_at, source_error, storage_errors
from filestore.system.metrics import Stage, span
from filestore.system.writeback import Writeback, write_back, write_back_part, writeback_of

WINDOW_SIZE = 16 << 20
"""Bytes that are read and cut at a time. It is larger than `LOOKAHEAD`, so that each window has at least one cut."""
SETTLED_NANOSECONDS = 2_000_000_000
"""If a file changed less than this before its state was read, a second change may have left its times as they are: both may
lie in one tick of its clock, and one long write sets the times only when it begins."""

_COPY_IT = "copy its content to another file (`cat FILE > COPY`) and push that one"
"""What to do with a file that reports a wrong size."""

LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR)
"""What an error means for a symbolic link: its target does not exist."""

MAKE_READABLE = "make it readable with `chmod`"
"""What to do if this user may not read a file or a folder."""

_STATE = struct.Struct("<QqqQQ")
_WRITTEN_BACK = b"file2"
"""The beginning of a fingerprint. Those of earlier versions, which wrote nothing back, are without it and not trusted."""
PACKED_SIZE = DIGEST_AND_NUMBER.size
"""Bytes of a packed chunk."""
STATE_SIZE = _STATE.size
"""Bytes of a packed state."""


class FileState(NamedTuple):
    """The state of a file, which shows whether it was written to. Times are nanoseconds since 1970."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """Return the state that a `stat` found."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @staticmethod
    def packed(found: os.stat_result) -> bytes:
        """Return the same bytes as `of(found).pack()`, in a third of the time.

        A push of a tree calls it three times for each file.
        """
        return _STATE.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @classmethod
    def unpack(cls, packed: Buffer, place: int = 0) -> Self:
        """Return the state at a place of `packed`, which has states one after the other. Raises struct.error."""
        return cls(*_STATE.unpack_from(packed, place * STATE_SIZE))

    def pack(self) -> bytes:
        """Return the state as `STATE_SIZE` bytes."""
        return _STATE.pack(*self)

    def is_settled(self, recorded_at: int) -> bool:
        """Return whether every change of the file after `recorded_at` gives it another state.

        `recorded_at` must not be later than the moment at which this state was read.

        An mtime in the future was set by hand. A later write sets another mtime, and another ctime.
        """
        is_mtime_settled = abs(recorded_at - self.mtime) > SETTLED_NANOSECONDS
        return is_mtime_settled and self.ctime + SETTLED_NANOSECONDS < recorded_at

    def check(self, now: FileState, path: Path | str) -> None:
        """Raise SourceChanged if `now` differs from this state."""
        if now == self:
            return
        for field, before, after in zip(self._fields, self, now, strict=True):
            if before != after:
                raise SourceChanged(str(path), f"its {field} was {before} and is now {after}")


class Window(NamedTuple):
    """Neighbouring chunks in `content` that are not hashed yet. The memory belongs to the caller of `scan`."""

    content: memoryview
    sizes: list[int]
    row: bytearray
    """The packed chunks of the source. `hash` fills the part from `place` on, which is reserved for this window."""
    place: int

    @classmethod
    def cut(cls, content: memoryview, sizes: list[int], row: bytearray) -> Self:
        """Make a window of the first bytes of `content`: chunks of `sizes` bytes. Reserve the next part of `row` for them."""
        place = len(row)
        row += bytes(len(sizes) * PACKED_SIZE)
        return cls(content[: sum(sizes)], sizes, row, place)

    def hash(self) -> list[tuple[Digest, memoryview]]:
        """Return the digest and the content of each chunk. Call it in a thread; the next scan may run meanwhile."""
        chunks = []
        start = 0
        with span(Stage.HASH, len(self.content)):
            for size in self.sizes:
                piece = self.content[start : start + size]
                chunks.append((chunk_digest(piece), piece))
                start += size
            packed = b"".join(DIGEST_AND_NUMBER.pack(digest, len(piece)) for digest, piece in chunks)
        self.row[self.place : self.place + len(packed)] = packed
        return chunks


class CachedPush(NamedTuple):
    """What a push cache knows about an earlier push of the same path."""

    manifest: Manifest
    fingerprint: bytes
    """What `Source.fingerprint` returned at that push."""
    recorded_at: int
    """The `opened_at` of the source at that push."""


class Content(Protocol):
    """Bytes that are pushed. They are read once and in order.

    Its methods block: call them in a thread, one at a time. Other threads may read its numbers meanwhile.
    """

    path: Path
    size: int
    """Bytes of content. The content of a tree is its zip."""
    read: int
    """Bytes of files that were read so far."""
    cached_size: int
    """Bytes of content that are not read, since they are known from an earlier push."""
    file_count: int

    @property
    def files_done(self) -> int:
        """Number of files that were read to their end, or are not read. It never becomes smaller."""

    @property
    def is_finished(self) -> bool:
        """Whether everything is scanned."""

    def scan(self, buffer: memoryview) -> list[Window]:
        """Read the next content into `buffer`, which has `WINDOW_SIZE` bytes, and cut it.

        The windows may be in another order than their content, and there may be none. They are views of `buffer`.
        Raises SourceChanged, SourceUnreadable.
        """

    def manifest(self) -> Manifest:
        """Return the chunks of all windows and of cached content, in order.

        Call it when all windows are hashed. Raises LimitExceeded.
        """

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with content from `offset` on. Call it after the last scan.

        Raises SourceChanged, SourceUnreadable.
        """

    def check_unchanged(self) -> None:
        """Raise SourceChanged if the source is not as it was when it was opened."""


class Source(Content, Protocol):
    """A file, or the zip of a directory, that may be pushed again later."""

    opened_at: int
    """A time just before the states of its files were read, in nanoseconds since 1970."""

    def load_fingerprint(self, cached: CachedPush) -> None:
        """Skip the content that has not changed since an earlier push: it is not read again.

        Call this before the first scan.

        A fingerprint that is damaged has no effect.
        """

    def fingerprint(self) -> bytes:
        """Return what `load_fingerprint` needs at a later push. Call it when all windows are hashed.

        It is empty where a later change might go unnoticed.
        """

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the start and the end of each entry in the content.

        Each starts where the one before it ends.
        """

    def close(self) -> None:
        """Close its descriptors. It may be called more than once."""


class DescriptorOwner:
    """An object that has at most one open file, and closes it at the end of its block."""

    _descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. It may be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileSource(DescriptorOwner):
    """An open regular file.

    It is not mapped into memory: mapped pages count as resident memory, and a file that is truncated meanwhile would
    kill the process.

    Another process may have it mapped. Each part is written back *before* it is read (see `filestore/system/writeback.py`).
    So a store after that moves the mtime, and a store before that is read. A store between a read and a later writeback would
    be neither read nor noticed. While a part is read, hashed and sent, the next one is written back.
    """

    file_count = 1

    def __init__(self, path: Path, *, chunking_version: int = CHUNKING_VERSION, is_remembered: bool = True) -> None:
        """Open the file. `is_remembered` says that a push cache asks for the fingerprint; nothing is written back without it.

        Raises SourceUnreadable, UnknownFormat.
        """
        self.path = path
        self.read = self.cached_size = 0
        self._chunking_version = chunking_version
        self._chunker = Chunker(chunking_version=chunking_version)
        self._chunks = bytearray()
        self._cached: Manifest | None = None
        self._uncut = bytearray(LOOKAHEAD)
        self._uncut_size = 0
        with storage_errors(path, translate=_source_error):
            # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise SourceUnreadable(str(path), "it is not a regular file")
            self._writeback = writeback_of(self._descriptor) if is_remembered else Writeback.NEVER
            # Before the state is read: some file systems set the mtime only when they write back.
            if self._writeback is Writeback.WHOLE and not write_back(self._descriptor):
                self._writeback = Writeback.NEVER
            self.opened_at = time.time_ns()
            found = os.fstat(self._descriptor)
        except BaseException:
            self.close()
            raise
        self.state = FileState.of(found)
        self.size = self.state.size

    @property
    def files_done(self) -> int:
        return int(self.is_finished)

    @property
    def is_finished(self) -> bool:
        return self._cached is not None or self.read == self.size

    def load_fingerprint(self, cached: CachedPush) -> None:
        same = cached.fingerprint == _WRITTEN_BACK + self.state.pack() and cached.manifest.size == self.size
        if same and self.state.is_settled(cached.recorded_at):
            self._cached = cached.manifest
            self.cached_size = self.size

    def fingerprint(self) -> bytes:
        return b"" if self._writeback is Writeback.NEVER else _WRITTEN_BACK + self.state.pack()

    def scan(self, buffer: memoryview) -> list[Window]:
        kept = self._uncut_size
        buffer[:kept] = memoryview(self._uncut)[:kept]
        end = min(len(buffer), kept + self.size - self.read)
        if self._writeback is Writeback.PARTS and not write_back_part(self._descriptor, self.read, end - kept):
            self._writeback = Writeback.NEVER
        with span(Stage.READ, end - kept):
            read_exactly(self._descriptor, buffer[kept:end], self.read, self.path)
        self.read += end - kept
        with span(Stage.CUT, end - kept):
            sizes = self._chunker.cut(buffer[:end], final=self.is_finished)
        start = sum(sizes)
        self._uncut_size = end - start
        self._uncut[: self._uncut_size] = buffer[start:end]
        return [Window.cut(buffer, sizes, self._chunks)]

    def manifest(self) -> Manifest:
        return self._cached or Manifest.build(unpacked(self._chunks), chunking_version=self._chunking_version)

    def read_into(self, memory: memoryview, offset: int) -> None:
        read_exactly(self._descriptor, memory, offset, self.path)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        yield self.path.name, 0, self.size

    def check_unchanged(self) -> None:
        self.state.check(FileState.of(os.fstat(self._descriptor)), self.path)
        check_end(self._descriptor, self.size, self.path)


def check_end(descriptor: int, size: int, path: Path | str) -> None:
    """Check that a file ends at `size`. The size that a file reports may be wrong: files in /proc report 0.

    Raises SourceChanged if the file is longer now, SourceUnreadable if it has more bytes than it reports.
    """
    with storage_errors(path, translate=source_error):
        is_longer = bool(os.pread(descriptor, 1, size))
        reported = os.fstat(descriptor).st_size
    if is_longer and reported > size:
        raise SourceChanged(str(path), f"its size was {size} and is now {reported}")
    if is_longer:
        raise SourceUnreadable(str(path), f"it has more bytes than the {size} that it reports; {_COPY_IT}")


def read_exactly(descriptor: int, memory: memoryview, offset: int, path: Path | str) -> None:
    """Fill `memory` with the bytes from `offset` on.

    Raises SourceChanged if the file became shorter, SourceUnreadable if it cannot be read or has fewer bytes than it
    reports.
    """
    with storage_errors(path, translate=source_error):
        end = offset + read_at(descriptor, memory, offset)
        reported = os.fstat(descriptor).st_size if end < offset + len(memory) else end
    if reported > end:
        raise SourceUnreadable(str(path), f"it has {end} bytes and reports {reported}; {_COPY_IT}")
    if end < offset + len(memory):
        raise SourceChanged(str(path), "it became shorter")


def scan_and_hash(content: Content, buffer: memoryview) -> None:
    """Scan and hash the next content, for a caller that needs only the manifest. The chunks are discarded."""
    for window in content.scan(buffer):
        window.hash()


def unpacked(row: Buffer) -> Iterator[Chunk]:
    """Yield the chunks of a packed row. Chunks are kept packed, since a million objects would take 200 MiB (I6)."""
    for digest, size in DIGEST_AND_NUMBER.iter_unpack(row):
        yield Chunk(Digest(digest), size)


def _source_error(where: str, error: OSError) -> SourceUnreadable:
    """Make the error for a file that cannot be opened. It says where a link leads to that cannot be followed."""
    if error.errno in LEADS_NOWHERE or error.errno == errno.ELOOP:
        with suppress(OSError):
            # Fails where `where` is not a link.
            target = os.readlink(where)  # noqa: PTH115  # a Path would change the text
            if error.errno == errno.ELOOP:
                reason = "which leads round in a circle, or through too many links; correct the link"
            else:
                reason = "where nothing is; restore that file, or correct the link"
            return SourceUnreadable(where, f"it is a symbolic link to {target!r}, {reason}")
    return source_error(where, error)
