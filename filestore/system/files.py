"""Files: reads and writes of all that is asked for, atomic and durable writes, free space, removal."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filestore.core.digest import Buffer
from filestore.errors import (
    FilestoreError,
    InvalidSetting,
    NotPermitted,
    SourceUnreadable,
    StorageError,
    StorageFull,
    TargetError,
    storage_error,
)

_SYNC_THREADS = 16

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
BLOCK_SIZE = 4096
"""File systems round sizes up to a multiple of this."""

_ATTEMPTS = 1000
"""Another process may remove the same folder meanwhile. Each attempt then finds less than the one before."""
_ALL_OF_OWNER = stat.S_IRWXU
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def free_space(place: int | Path) -> int:
    """Return the bytes that can still be written to the file system of a path or an open file. Blocks.

    Raises OSError.
    """
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def stored_size_of(path: Path) -> tuple[int, float]:
    """Return the bytes that a file, or a folder with its content, takes on the disk, and the time of its last write.

    Holes do not count. Blocks. Raises OSError.
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
    """Raise StorageFull, which names `where`, if `size` more bytes do not fit on the disk of an open file.

    Raises OSError.
    """
    free = free_space(place)
    if size > free:
        raise StorageFull(str(where), f"{size} bytes are needed and {free} are free")


def write_all(descriptor: int, content: Buffer) -> None:
    """Append all of `content` to an open file. Blocks. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def read_at(descriptor: int, memory: memoryview, offset: int) -> int:
    """Fill `memory` from an open file. Return the number of bytes, which is smaller only at its end. Blocks.

    Raises OSError.
    """
    done = 0
    while done < len(memory):
        # The first call reads everything, except at the end of the file, after a signal, or for more than 2 GiB.
        size = os.preadv(descriptor, [memory[done:] if done else memory], offset + done)
        if not size:
            break
        done += size
    return done


def write_at(descriptor: int, content: Buffer, offset: int) -> int:
    """Write all of `content` to an open file from `offset` on. Return the number of bytes. Blocks. Raises OSError."""
    written = 0
    while written < len(content):
        # The first call writes everything, except on a full disk, after a signal, or for more than 2 GiB.
        written += os.pwrite(descriptor, content[written:] if written else content, offset + written)
    return written


def sync_descriptor(descriptor: int) -> None:
    """Sync the content of a file, or the names in a folder, to the disk. Blocks. Raises OSError."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync of macOS leaves the bytes in the memory of the drive
    else:
        os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """Do `sync_descriptor` for the file or folder at a path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Sync a folder and everything in it to the disk. Links are not followed. Blocks. Raises OSError.

    If the operating system offers it, one call syncs the whole file system. For thousands of files this is far quicker
    than one call for each, but it also waits for what other processes have written there.
    """
    if sync_file_system(root):
        return
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for _ in pool.map(sync_path, _standing(root)):
            pass


def sync_file_system(path: Path) -> bool:
    """Sync the whole file system of `path` to the disk, with all work that the file system has delayed.

    Return False if the operating system has no such call. Blocks. Raises OSError.
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
    """Return the call of the C library that syncs the file system of a descriptor. Only Linux has it."""
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
    """Yield the files and folders of a tree, and its root last."""
    for folder, _, names in os.walk(root, topdown=False, onerror=_raise):
        yield from (path for path in (Path(folder, name) for name in names) if not path.is_symlink())
        yield Path(folder)


def _raise(error: OSError) -> None:
    raise error


class CannotMoveError(OSError):
    """A folder cannot be renamed. It can only be emptied and removed at its place."""


@contextmanager
def storage_errors(where: str | Path, *, translate: Callable[[str, OSError], FilestoreError] = storage_error) -> Iterator[None]:
    """Translate errors of the operating system in the block to errors about `where`.

    `translate` makes the error: by default StorageError, or StorageFull. Others are `write_error`, `access_error`,
    `target_error` and `source_error`.
    """
    try:
        yield
    except OSError as error:
        raise translate(str(where), error) from error


def write_error(where: str, error: OSError) -> StorageError:
    """Make the error for a write to a folder that the user chose."""
    if error.errno not in _READ_ONLY:
        return storage_error(where, error)
    reason = f"{error.strerror}, so that nothing new can be kept there; make it writable, or give another folder"
    return StorageError(str(error.filename or where), reason)


def access_error(where: str, error: OSError) -> StorageError:
    """Make the error for the folder of a repository: NotPermitted if the user has no right to it."""
    if isinstance(error, PermissionError):
        return NotPermitted(str(error.filename or where), error.strerror or str(error))
    return storage_error(where, error)


def target_error(where: str, error: OSError) -> TargetError:
    """Make the error for a target of a fetch at which nothing can be made."""
    return TargetError(where, error.strerror or str(error))


def source_error(where: str, error: OSError) -> SourceUnreadable:
    """Make the error for a source of a push that cannot be read."""
    return SourceUnreadable(where, error.strerror or str(error))


def write_durably(path: Path, values: Mapping[str, object]) -> None:
    """Write a small file, and make its folders. Raises StorageError, StorageFull."""
    with storage_errors(path.parent, translate=write_error):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(values).encode())


def write_atomic(path: Path, content: Buffer) -> None:
    """Write `content` to a small file. It appears by a rename, and is then durable. Blocks. Raises OSError."""
    staging = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with staging.open("xb") as file:
            file.write(content)
            file.flush()
            sync_descriptor(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_path(path.parent)


def move_aside(folder: Path, aside: Path) -> bool:
    """Rename an entry, so that readers lose it at once and as a whole. Return False if there is none. Raises OSError.

    Raises CannotMoveError for an entry of a container image: an overlay file system does not rename such a folder.
    """
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise CannotMoveError(error.errno, error.strerror, str(folder)) from None
        raise
    return True


def take_away(folder: Path, aside: Path) -> bool:
    """Do `move_aside`. An entry that cannot be renamed is removed at its place, and the result is False.

    Raises OSError.
    """
    try:
        return move_aside(folder, aside)
    except CannotMoveError:
        remove_in_place(folder)
        return False


def in_blocks(size: int) -> int:
    """Return the bytes that a file of `size` bytes takes on the disk with most file systems."""
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE


def home_path(text: str | Path) -> Path:
    """Return the path that `text` means. `~` and `~/` at the beginning are the home folder, as in a shell.

    Raises InvalidSetting if the home folder is not known, and for the `~name` of another user.
    """
    path = str(text)
    if not path.startswith("~"):
        return Path(text)
    if path != "~" and not path.startswith("~/"):
        reason = "only ~ and ~/ stand for a home folder; write that of another user in full, and ./~ for a name that begins so"
        raise InvalidSetting(path, reason)
    expanded = os.path.expanduser(path)  # noqa: PTH111  # that one has an error of its own
    if not os.path.isabs(expanded):  # noqa: PTH117  # a text
        raise InvalidSetting(path, "this user has no home folder that is known; set HOME, or write the path in full")
    return Path(expanded)


def remove(path: str | Path, *, dir_fd: int | None = None) -> None:
    """Remove a file, a link, or a folder with its content, also if it is read-only.

    The target of a link is never removed.

    It is no error if the path does not exist, or if another process removes it meanwhile. Raises OSError after as much
    as possible is removed.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _remove(path, dir_fd)
        except FileNotFoundError:
            if not _is_there(path, dir_fd):
                return
            if attempt == _ATTEMPTS:
                raise
        except OSError:
            if attempt == _ATTEMPTS or not _make_writable(path, dir_fd):
                shutil.rmtree(path, ignore_errors=True, dir_fd=dir_fd)
                raise
        else:
            return


def remove_if_possible(path: str | Path, *, dir_fd: int | None = None) -> None:
    """Do `remove`, and ignore errors."""
    with suppress(OSError):
        remove(path, dir_fd=dir_fd)


def remove_in_place(folder: Path) -> None:
    """Remove a folder that cannot be renamed first. New content of another process stays. Raises OSError."""
    with suppress(OSError):
        if folder.stat(follow_symlinks=False).st_mode & _ALL_OF_OWNER != _ALL_OF_OWNER:
            folder.chmod(_ALL_OF_OWNER)
    descriptor = os.open(folder, _FOLDER)
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208  # of a descriptor
            remove(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
            raise


def move(path: Path, to: Path) -> None:
    """Rename a file, a link or a folder, also a read-only folder. Raises OSError."""
    try:
        path.rename(to)
    except PermissionError:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) or mode & stat.S_IWUSR:
            raise
        path.chmod(stat.S_IMODE(mode) | _ALL_OF_OWNER)
        path.rename(to)
        to.chmod(stat.S_IMODE(mode))


def _remove(path: str | Path, dir_fd: int | None) -> None:
    if stat.S_ISDIR(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        shutil.rmtree(path, dir_fd=dir_fd)
    else:
        os.unlink(path, dir_fd=dir_fd)


def _is_there(path: str | Path, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_writable(path: str | Path, dir_fd: int | None) -> bool:
    """Give the owner all rights to each folder of a tree, as far as possible. Return whether any folder was changed."""
    waiting = [os.fspath(path)]
    has_changed = False
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            mode = os.stat(folder, dir_fd=dir_fd, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                continue
            if mode & _ALL_OF_OWNER != _ALL_OF_OWNER:
                os.chmod(folder, _ALL_OF_OWNER, dir_fd=dir_fd)
                has_changed = True
            # A descriptor is used, so that a link that replaces the folder is not followed.
            descriptor = os.open(folder, _FOLDER, dir_fd=dir_fd)
            try:
                with os.scandir(descriptor) as found:
                    waiting += [f"{folder}/{item.name}" for item in found if item.is_dir(follow_symlinks=False)]
            finally:
                os.close(descriptor)
    return has_changed
