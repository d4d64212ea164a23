"""The file that a content arrives in. All processes of a server read it while one of them writes to it.

Its inode tells readers what they need. The file only grows, under one inode: what was read of it stays what it is. Where bytes
must be taken back, the file gets a new inode, and readers of the old one find that it has no name. When all bytes are there and
have the digest that was expected, the file becomes read-only: that is the mark of a verified file, also after it was removed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filestore.download.download import PARTIAL_NAME, PartialDownload, Validators
from filestore.system.files import read_at, storage_errors, write_all
from filestore.system.owners import PRIVATE_FILE
from filestore.upstream.listing import UpstreamFile

if TYPE_CHECKING:
    from hashlib import _Hash

_PIECE = 1 << 20
_VERIFIED = 0o400
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class WrongSize(Exception):
    """The upstream begins to send a file of another size than it has stated. `size` is what it states now, in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class ArrivingFile(PartialDownload):
    """Write the content of a file of the upstream, and find out its digest. Only one object at a time may use a folder."""

    def __init__(self, folder: Path, expected: UpstreamFile) -> None:
        super().__init__(folder)
        self._expected = expected
        self._hash = _hash_for(expected)
        self._hashed_size = 0
        self._boot = folder / "boot"

    @property
    def is_whole(self) -> bool:
        """Whether as many bytes are there as are expected."""
        return self.size == self._expected.size

    def open(self) -> None:
        # A process that ended before it stored a verified file left it read-only.
        with suppress(OSError):
            self.path.chmod(PRIVATE_FILE, follow_symlinks=False)
        super().open()

    def certain_size(self, noted: int, there: int) -> int:
        """Count all bytes that are there, unless the machine was started again since they were written.

        A process that ends, in whichever way, loses none of them; the digest decides at the end.
        """
        with suppress(OSError):
            if self._boot.read_text() == _BOOT_ID.read_text():
                return min(there, self._expected.size)
        return min(noted, self._expected.size)

    def begin(self, validators: Validators, total: int | None) -> None:
        if total is not None and total != self._expected.size:
            # Before any byte can be read: a page for people is not the beginning of a model.
            raise WrongSize(total)
        super().begin(validators, total)
        self._start_hash()
        with storage_errors(self._boot), suppress(FileNotFoundError):
            self._boot.write_text(_BOOT_ID.read_text())

    def write(self, pieces: Sequence[bytes]) -> None:
        with storage_errors(self.path):
            if os.fstat(self.descriptor).st_size > self.size:
                # The origin began its answer earlier than it was asked for.
                self.cut()
        self.hash_rest()
        super().write(pieces)
        for piece in pieces:
            self._hash.update(piece)
            self._hashed_size += len(piece)

    def cut(self) -> None:
        """Take the bytes from `size` on from the file, by another inode for the ones before them."""
        with storage_errors(self.path):
            if os.fstat(self.descriptor).st_size <= self.size:
                return
            begun = self.path.with_name("begun")
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(begun, flags, PRIVATE_FILE)
            try:
                for place in range(0, self.size, _PIECE):
                    piece = bytearray(min(_PIECE, self.size - place))
                    read_at(self.descriptor, memoryview(piece), place)
                    write_all(descriptor, piece)
                begun.rename(self.path)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(self.descriptor)
            self.descriptor = descriptor
        if self._hashed_size > self.size:
            self._start_hash()

    def hash_rest(self) -> None:
        """Read what is there and was not hashed. Blocks for as long as a disk needs. Raises StorageError."""
        if self._hashed_size > self.size:
            self._start_hash()
        with storage_errors(self.path):
            while self._hashed_size < self.size:
                piece = bytearray(min(_PIECE, self.size - self._hashed_size))
                count = read_at(self.descriptor, memoryview(piece), self._hashed_size)
                if not count:
                    raise OSError("the file is shorter than it was")
                self._hash.update(memoryview(piece)[:count])
                self._hashed_size += count

    def verify(self) -> str:
        """Mark the file as verified if its content is the expected one. Return the digest that it has.

        Call it while the file is open. Raises StorageError.
        """
        self.hash_rest()
        found = self._hash.hexdigest()
        if self.is_whole and found == self._expected.tag:
            with storage_errors(self.path):
                os.fchmod(self.descriptor, _VERIFIED)
        return found

    def _start_hash(self) -> None:
        self._hash, self._hashed_size = _hash_for(self._expected), 0


class Look(NamedTuple):
    """What a reader finds."""

    size: int
    """Bytes that are there."""
    is_verified: bool
    """Whether these are all bytes, and have the expected digest."""
    is_taken_back: bool
    """Whether bytes of this file were taken back, so that none of them may be used."""


class ArrivingReader:
    """Read a file while it arrives. All methods block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PARTIAL_NAME
        self._descriptor = -1

    @property
    def is_open(self) -> bool:
        """Whether the file was there when it was looked for."""
        return self._descriptor >= 0

    def look(self) -> Look | None:
        """Return what is there. Return None without a file. Raises StorageError."""
        with storage_errors(self._path):
            if not self.is_open:
                try:
                    self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    return None
            status = os.fstat(self._descriptor)
            is_verified = stat.S_IMODE(status.st_mode) == _VERIFIED
            return Look(status.st_size, is_verified, is_taken_back=not is_verified and status.st_nlink == 0)

    def read(self, memory: memoryview, place: int) -> int:
        """Fill `memory` with the bytes from `place` on. Return how many there were. Raises StorageError."""
        with storage_errors(self._path):
            return read_at(self._descriptor, memory, place)

    def close(self) -> None:
        """Close the file. The next look opens the one that is there then."""
        if self.is_open:
            os.close(self._descriptor)
            self._descriptor = -1


def digest_of(path: Path, expected: UpstreamFile) -> str:
    """Return the digest of a file, of the kind that the upstream states for it. Blocks. Raises StorageError."""
    found = _hash_for(expected)
    with storage_errors(path), path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _hash_for(expected: UpstreamFile) -> _Hash:
    if expected.sha256 is not None:
        return hashlib.sha256()
    # Source: Git Internals, Git Objects: the id of a blob is the SHA-1 of a header and the content.
    return hashlib.sha1(b"blob %d\0" % expected.size, usedforsecurity=False)
