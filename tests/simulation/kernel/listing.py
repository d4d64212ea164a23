"""What a listing of a simulated folder has: entries, and their status."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Self

from tests.simulation.kernel import real
from tests.simulation.kernel.disk import Disk, Node


class Entry:
    """An `os.DirEntry`."""

    def __init__(self, read_status: Callable[..., os.stat_result], name: str, path: str, where: str) -> None:
        self._read_status, self.name, self.path, self._where = read_status, name, path, where

    def __fspath__(self) -> str:
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return its status."""
        return self._read_status(self._where, follow_symlinks=follow_symlinks)

    def inode(self) -> int:
        """Return its number."""
        return self.stat(follow_symlinks=False).st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a folder."""
        return stat.S_ISDIR(self._type(follow_symlinks=follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a file."""
        return stat.S_ISREG(self._type(follow_symlinks=follow_symlinks))

    def is_symlink(self) -> bool:
        """Return whether it is a link."""
        return stat.S_ISLNK(self._type(follow_symlinks=False))

    def _type(self, *, follow_symlinks: bool) -> int:
        try:
            # No step: a listing of a folder has the types too.
            return (real.stat(self._where) if follow_symlinks else real.lstat(self._where)).st_mode
        except OSError:
            return 0


class Entries:
    """What `os.scandir` returns."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""


def status_of(disk: Disk, node: Node, status: os.stat_result) -> os.stat_result:
    """Return a status with the numbers and times of the simulation."""
    modified, changed = node.modified_at, node.changed_at
    numbers = (status.st_mode, node.number, disk.device, status.st_nlink, status.st_uid, status.st_gid, status.st_size)
    times = {
        "st_atime": modified / 1e9,
        "st_mtime": modified / 1e9,
        "st_ctime": changed / 1e9,
        "st_atime_ns": modified,
        "st_mtime_ns": modified,
        "st_ctime_ns": changed,
        "st_blksize": 4096,
        "st_blocks": -(-status.st_size // 4096) * 8,
        "st_rdev": 0,
    }
    return os.stat_result((*numbers, modified // 10**9, modified // 10**9, changed // 10**9), times)
