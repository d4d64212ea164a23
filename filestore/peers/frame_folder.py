"""A folder of frames on the disk of a peer, with a limit of its size. The frames that were not used for longest go first.

    ROOT/REPOSITORY/NAMESPACE/ab/abcd...    a frame; the name is the digest of its chunk
    ROOT/REPOSITORY/NAMESPACE/ab/.0123...   a frame that is being written, or that a process left when it was killed

A frame gets its name after it was written as a whole. It is not synced, because the origin has it: after a power cut, it may
have any content. So a process decodes each frame once that it did not write itself, before it gives it to anybody, and every
frame once more from time to time. The time of its file is that of its last use. Several processes may use one folder. All
functions block, apart from the constructor.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filestore.core.digest import Digest
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.repository.ingest import is_intact
from filestore.system.files import free_space, in_blocks, is_atomic_staging, storage_errors, write_all, write_error
from filestore.system.owners import PRIVATE_FILE, make_private
from filestore.system.retries import Clock

FOLDER = "peers"
"""Its name in a cache."""
SIZE_LIMIT = 10 << 30
_USED_SECONDS = 60
"""The time of a file is set at most so often."""
_STAGING_SECONDS = 3600
"""A file that is being written is not older than this."""
_SPARE = 10
"""A sweep leaves one part of so many free, so that there is not one for each frame."""
_BLIND = 20
"""Another process may use the folder too. So it is measured again after this process has written one part of so many."""
_FULL_SECONDS = 10.0
"""How long nothing is kept after a sweep that did not make enough space."""
_PROVEN_LIMIT = 1 << 16
PROVEN_SECONDS = 900.0
"""After this time frames are verified once more, because a disk may damage what was right."""


class _Found(NamedTuple):
    path: str
    size: int
    used_minute: int


class FrameFolder:
    """The frames of one namespace, in a folder that has a common limit for all namespaces."""

    def __init__(
        self,
        root: Path,
        repository_id: str,
        namespace: str,
        *,
        size_limit: int,
        min_free: int,
        clock: Clock = time.monotonic,
    ) -> None:
        """`size_limit` holds for everything below `root`. `min_free` bytes of its disk stay free. `clock` returns seconds."""
        self._root = root
        self._folder = root / repository_id / namespace
        self._size_limit = size_limit
        self._min_free = min_free
        self._size: int | None = None
        """Bytes of all frames below the root, as far as this process knows. None means that they were not counted yet."""
        self._written = 0
        """Bytes that this process has written since they were counted."""
        self._full_until = 0.0
        self._proven: set[Digest] = set()
        """Frames that this process has verified. A frame that is not among them is verified before it is given."""
        self._proven_until = 0.0
        self._clock = clock

    def sizes(self, digests: Sequence[Digest]) -> list[int]:
        """Return the sizes of frames, and note that they are used now. 0 means that one is not here, or was damaged."""
        if self._clock() >= self._proven_until:
            self._proven, self._proven_until = set(), self._clock() + PROVEN_SECONDS
        return [self._size_of(digest) for digest in digests]

    def open(self, digest: Digest) -> BinaryIO | None:
        """Open the file of a frame. None means that it is not here any more."""
        try:
            return self._path(digest).open("rb", buffering=0)
        except OSError:
            return None

    def keep(self, frames: Sequence[Frame]) -> set[Digest]:
        """Keep verified frames. Return the digests of those that are here now. Call it in one thread at a time.

        Raises StorageError, StorageFull.
        """
        size = sum(in_blocks(len(frame.data)) for frame in frames)
        with storage_errors(self._root, translate=write_error):
            make_private(self._folder)
            if not self._make_space(size):
                return set()
            for frame in frames:
                self._write(frame)
        self._note_proven([frame.digest for frame in frames])
        return {frame.digest for frame in frames}

    def _make_space(self, size: int) -> bool:
        if not (self._has_space(size) and self._written * _BLIND <= self._size_limit):
            if size > self._size_limit or time.monotonic() < self._full_until:
                return False
            swept = _sweep(self._root, size_limit=self._size_limit, min_free=self._min_free, incoming=size)
            self._size, self._written = swept.left, 0
            if not self._has_space(size):
                self._full_until = time.monotonic() + _FULL_SECONDS
                return False
        self._size = (self._size or 0) + size
        self._written += size
        return True

    def _has_space(self, size: int) -> bool:
        if self._size is None or self._size + size > self._size_limit:
            return False
        return free_space(self._root) - size >= self._min_free

    def _write(self, frame: Frame) -> None:
        path = self._path(frame.digest)
        staging = path.with_name(f".{uuid.uuid4().hex}")
        try:
            try:
                descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
            except FileNotFoundError:
                make_private(path.parent)
                descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
            try:
                write_all(descriptor, frame.data)
            finally:
                os.close(descriptor)
            staging.rename(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise

    def _size_of(self, digest: Digest) -> int:
        path = self._path(digest)
        try:
            status = path.lstat()
        except OSError:
            return 0
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= FRAME_LIMIT:
            return 0
        if digest not in self._proven and not self._prove(digest):
            return 0
        if time.time() - status.st_mtime > _USED_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return status.st_size

    def _prove(self, digest: Digest) -> bool:
        """Return whether the frame that is here is intact. Remove a damaged one."""
        file = self.open(digest)
        if file is None:
            return False
        with file:
            try:
                is_sound = is_intact(Frame(digest, memoryview(file.read(FRAME_LIMIT))))
            except OSError:
                is_sound = False  # a bad sector
        if is_sound:
            self._note_proven([digest])
        else:
            with suppress(OSError):
                self._path(digest).unlink()
        return is_sound

    def _note_proven(self, digests: Sequence[Digest]) -> None:
        if len(self._proven) >= _PROVEN_LIMIT:
            self._proven = set()
        self._proven.update(digests)

    def _path(self, digest: Digest) -> Path:
        name = str(digest)
        return self._folder / name[:2] / name


class _Swept(NamedTuple):
    left: int
    removed: int


def sweep(root: Path, *, size_limit: int, min_free: int) -> int:
    """Remove the frames below `root` that were not used for longest, until the limits hold. Return how many bytes were removed.

    Raises StorageError.
    """
    with storage_errors(root, translate=write_error):
        return _sweep(root, size_limit=size_limit, min_free=min_free).removed if root.exists() else 0


def _sweep(root: Path, *, size_limit: int, min_free: int, incoming: int = 0) -> _Swept:
    """Do what `sweep` does, so that `incoming` more bytes fit. It reads the names of all frames, and keeps none in memory."""
    size, sizes = 0, Counter[int]()
    for found in _all(root):
        size += found.size
        sizes[found.used_minute] += found.size
    allowed = min(size_limit, size + free_space(root) - min_free) - incoming
    excess = size - max(0, allowed - allowed // _SPARE) if size > allowed else 0
    removed = _remove(root, sizes, excess) if excess > 0 else 0
    return _Swept(size - removed, removed)


def _remove(root: Path, sizes: Counter[int], excess: int) -> int:
    last, covered = 0, 0
    for minute in sorted(sizes):
        last, covered = minute, covered + sizes[minute]
        if covered >= excess:
            break
    removed = 0
    # The frames of the last minute are not in order. As many of them go as are needed.
    for is_last in (False, True):
        for found in _all(root):
            if removed >= excess:
                return removed
            if found.used_minute == last if is_last else found.used_minute < last:
                with suppress(FileNotFoundError):  # another process was faster
                    Path(found.path).unlink()
                    removed += found.size
    return removed


def _all(root: Path) -> Iterator[_Found]:
    """Yield all frames below the root. What killed processes left is removed."""
    for folder in root.glob("*/*/??"):
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if is_atomic_staging(entry.name) and time.time() - status.st_mtime > _STAGING_SECONDS:
                        Path(entry.path).unlink()
                    else:
                        yield _Found(entry.path, in_blocks(status.st_size), int(status.st_mtime) // 60)
