"""What is pushed: read once, in order, into reused buffers, cut and hashed on the way, and watched for changes."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from filestore.core.digest import DIGEST_AND_NUMBER, Buffer, Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import SourceChanged, SourceUnreadable
from filestore.format.chunking import CHUNKING_VERSION, LOOKAHEAD, Chunker
from filestore.system.files import read_at
from filestore.system.metrics import Stage, span

WINDOW_SIZE = 16 << 20
"""Bytes read and cut in one go; larger than `LOOKAHEAD`, so that each window cuts something."""
SETTLED_NANOSECONDS = 2_000_000_000
"""A file that changed within this time before it was recorded may have changed again within one tick of its clock."""

_COPY_IT = "copy its content to another file (`cat FILE > COPY`) and push that one"
"""What to do with a file whose size cannot be believed."""

MAKE_READABLE = "make it readable with `chmod`"
"""What to do with a file or a folder that this user may not read."""

_STATE = struct.Struct("<QqqQQ")
PACKED_SIZE = DIGEST_AND_NUMBER.size
"""Bytes of a packed chunk."""
STATE_SIZE = _STATE.size
"""Bytes of a packed state."""


class FileState(NamedTuple):
    """What tells that a file was not written to. Times are nanoseconds."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """The state that a `stat` found."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @staticmethod
    def packed(found: os.stat_result) -> bytes:
        """`of(found).pack()` in a third of the time: a tree asks for it three times a file."""
        return _STATE.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @classmethod
    def unpack(cls, packed: Buffer, place: int = 0) -> Self:
        """The state at a place among those that stand back to back in `packed`. Raises struct.error."""
        return cls(*_STATE.unpack_from(packed, place * STATE_SIZE))

    def pack(self) -> bytes:
        """Its `STATE_SIZE` bytes."""
        return _STATE.pack(*self)

    def is_settled(self, recorded_at: int) -> bool:
        """Whether a file in this state when it was recorded shows every change since then in its state.

        An mtime in the future was set by hand: whoever writes to the file gives it another one, and another ctime.
        """
        is_mtime_settled = abs(recorded_at - self.mtime) > SETTLED_NANOSECONDS
        return is_mtime_settled and self.ctime + SETTLED_NANOSECONDS < recorded_at

    def check(self, now: FileState, path: Path | str) -> None:
        """Raises SourceChanged where the state is another one by now."""
        if now == self:
            return
        for field, before, after in zip(self._fields, self, now, strict=True):
            if before != after:
                raise SourceChanged(str(path), f"its {field} is {after}, it was {before}")


class Window(NamedTuple):
    """Chunks that lie back to back in `content`, which is memory of whoever asked for them, and are still to be hashed."""

    content: memoryview
    sizes: list[int]
    row: bytearray
    """Where their source keeps chunks, packed: `hash` fills the part that was left for these, from `place` on."""
    place: int

    @classmethod
    def cut(cls, content: memoryview, sizes: list[int], row: bytearray) -> Self:
        """A window that comes next in `row`."""
        place = len(row)
        row += bytes(len(sizes) * PACKED_SIZE)
        return cls(content[: sum(sizes)], sizes, row, place)

    def hash(self) -> list[tuple[Digest, memoryview]]:
        """The digest and the content of each of its chunks. In a thread, beside the scan of what follows."""
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
    """What a push cache has of an earlier push from the same path."""

    manifest: Manifest
    fingerprint: bytes
    """What the source wrote down of itself."""
    recorded_at: int
    """Nanoseconds since 1970."""


class Content(Protocol):
    """Bytes on their way into a repository, read once and in order.

    Its methods block: call them in a thread, one at a time. Its numbers may be read from elsewhere meanwhile.
    """

    path: Path
    size: int
    """Bytes of content: of a tree, those of its zip."""
    read: int
    """Bytes of files that were read so far."""
    cached_size: int
    """Bytes of content that need no reading, since they are known from an earlier push."""
    file_count: int

    @property
    def files_done(self) -> int:
        """Files that were read to their end, or need no reading. Never falls."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be scanned."""

    def scan(self, buffer: memoryview) -> list[Window]:
        """Read on and cut as far as `buffer` reaches, which has `WINDOW_SIZE` bytes.

        Windows may come out of the order of the content, and there may be none. Raises SourceChanged, SourceUnreadable.
        """

    def manifest(self) -> Manifest:
        """The chunks of all windows and of what was known before, in order. When all are hashed. Raises LimitExceeded."""

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with content from `offset` on. After the last scan. Raises SourceChanged, SourceUnreadable."""

    def check_unchanged(self) -> None:
        """Raises SourceChanged when what was read is not what it was when it was opened."""


class Source(Content, Protocol):
    """A file, or the zip that stands for a directory, that may be pushed again later."""

    def load_fingerprint(self, cached: CachedPush) -> None:
        """Leave out what is the same as at an earlier push. Before the first scan. What is damaged is as good as nothing."""

    def fingerprint(self) -> bytes:
        """What `load_fingerprint` needs of this push. When all windows are hashed."""

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Name, start and end of each entry in the content, in order, back to back."""

    def close(self) -> None:
        """Give descriptors back; safe to call again."""


class DescriptorOwner:
    """What has one file open at a time, or none, until its block ends."""

    _descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileSource(DescriptorOwner):
    """An open regular file.

    Never mapped: mapped pages count as resident memory, and a file that is truncated meanwhile would kill the process.
    """

    file_count = 1

    def __init__(self, path: Path, *, chunking_version: int = CHUNKING_VERSION) -> None:
        """Raises SourceUnreadable, UnknownFormat."""
        self.path = path
        self.read = self.cached_size = 0
        self._chunking_version = chunking_version
        self._chunker = Chunker(chunking_version=chunking_version)
        self._chunks = bytearray()
        self._cached: Manifest | None = None
        self._uncut = bytearray(LOOKAHEAD)
        self._uncut_size = 0
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceUnreadable(str(path), error.strerror or str(error)) from None
        try:
            found = os.fstat(self._descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise SourceUnreadable(str(path), "it is not a regular file")
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
        same = cached.fingerprint == self.state.pack() and cached.manifest.size == self.size
        if same and self.state.is_settled(cached.recorded_at):
            self._cached = cached.manifest
            self.cached_size = self.size

    def fingerprint(self) -> bytes:
        return self.state.pack()

    def scan(self, buffer: memoryview) -> list[Window]:
        kept = self._uncut_size
        buffer[:kept] = memoryview(self._uncut)[:kept]
        end = min(len(buffer), kept + self.size - self.read)
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
    """Read once more after the last byte, since the size that a file reports may be wrong: files in /proc report 0.

    Raises SourceChanged when the file is longer by now, SourceUnreadable when it has more bytes than it reports.
    """
    try:
        is_longer = bool(os.pread(descriptor, 1, size))
        reported = os.fstat(descriptor).st_size
    except OSError as error:
        raise SourceUnreadable(str(path), error.strerror or str(error)) from None
    if is_longer and reported > size:
        raise SourceChanged(str(path), f"its size is {reported}, it was {size}")
    if is_longer:
        raise SourceUnreadable(str(path), f"it has more bytes than the {size} that it reports; {_COPY_IT}")


def read_exactly(descriptor: int, memory: memoryview, offset: int, path: Path | str) -> None:
    """Fill `memory` with the bytes from `offset` on.

    Raises SourceChanged when the file became shorter, SourceUnreadable, also when it has fewer bytes than it reports.
    """
    try:
        end = offset + read_at(descriptor, memory, offset)
        reported = os.fstat(descriptor).st_size if end < offset + len(memory) else end
    except OSError as error:
        raise SourceUnreadable(str(path), error.strerror or str(error)) from None
    if reported > end:
        raise SourceUnreadable(str(path), f"it has {end} bytes and reports {reported}; {_COPY_IT}")
    if end < offset + len(memory):
        raise SourceChanged(str(path), "it became shorter")


def scan_and_hash(content: Content, buffer: memoryview) -> None:
    """`content.scan(buffer)` for who wants nothing of it but the manifest in the end."""
    for window in content.scan(buffer):
        window.hash()


def unpacked(row: Buffer) -> Iterator[Chunk]:
    """The chunks of a packed row, the form in which many are kept: as objects, a million would take 200 MiB (I6)."""
    for digest, size in DIGEST_AND_NUMBER.iter_unpack(row):
        yield Chunk(Digest(digest), size)
