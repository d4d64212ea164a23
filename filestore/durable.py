"""Bytes on a disk: room for them, all of them written, file locks, and what makes bytes and names outlive a power cut."""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from filestore.digest import Buffer
from filestore.errors import StorageError, StorageFull

_SYNC_THREADS = 16


def free_space(place: int | Path) -> int:
    """Bytes that may still be written to the file system of a path, or of an open file. Blocks. Raises OSError."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def stored_size_of(path: Path) -> tuple[int, float]:
    """Bytes of disk that a file, or a folder with all that is in it, takes, holes left out; and when it was last written to.

    Blocks. Raises OSError.
    """
    first = path.lstat()
    size, written_at = first.st_blocks * 512, first.st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(OSError):
                status = os.lstat(f"{folder}/{name}")  # no Path for each file of a large tree
                size += status.st_blocks * 512
                written_at = max(written_at, status.st_mtime)
    return size, written_at


def check_space(place: int, size: int, *, where: Path) -> None:
    """Raises StorageFull, which names `where`, when `size` more bytes cannot fit beside an open file; else OSError."""
    free = free_space(place)
    if size > free:
        raise StorageFull(str(where), f"{size} bytes are needed and {free} are free")


def try_flock(descriptor: int, path: Path) -> bool:
    """Whether this process has the lock of an open file now; False: another one has it. Blocks for no time.

    Raises StorageError, which names `path`, where the file system has no file locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = f"file locks do not work there ({error.strerror or error}), and processes know of each other by them"
        raise StorageError(str(path), f"{reason}; mount its file system with locks, or use a local disk") from None
    return True


def write_all(descriptor: int, content: Buffer) -> None:
    """Append all of `content` to an open file. Blocks. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, content: Buffer, offset: int) -> int:
    """Write all of `content` to an open file from `offset` on; how many bytes that is. Blocks. Raises OSError."""
    written = 0
    while written < len(content):
        # The first call writes all, but for a full disk, a signal, or more than 2 GiB.
        written += os.pwrite(descriptor, content[written:] if written else content, offset + written)
    return written


def sync_descriptor(descriptor: int) -> None:
    """Have the disk keep all that was written to a file, or the names in a folder. Blocks. Raises OSError."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # its fsync leaves the bytes in the drive's own memory
    else:
        os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """`sync_descriptor` for a file or a folder by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Have the disk keep a folder and all that lies in it; links are not followed. Blocks. Raises OSError.

    Where the operating system can, its whole file system is synced in one call, which for thousands of files is far quicker
    than one after the other, and waits for what others have written there too.
    """
    if sync_file_system(root):
        return
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for _ in pool.map(sync_path, _standing(root)):
            pass


def sync_file_system(path: Path) -> bool:
    """Have the disk keep all of the file system that `path` lies on, and the file system do what it has put off.

    False where that is no single call. Blocks. Raises OSError.
    """
    call = _syncfs()
    if call is None:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)
    return True


@cache
def _syncfs() -> Callable[[int], None] | None:
    """The call of Linux's C libraries that syncs the file system of a descriptor, where there is one."""
    try:
        call = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None

    def syncfs(descriptor: int) -> None:
        if call(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return syncfs


def _standing(root: Path) -> Iterator[Path]:
    """Files and folders of a tree, its root the last."""
    for folder, _, names in os.walk(root, topdown=False, onerror=_raise):
        yield from (path for path in (Path(folder, name) for name in names) if not path.is_symlink())
        yield Path(folder)


def _raise(error: OSError) -> None:
    raise error
