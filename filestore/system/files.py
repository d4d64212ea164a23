"""Read, write, sync, rename and remove files, and measure the space on a disk."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
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
from filestore.core.unlocked import unlocked
from filestore.errors import (
    FilestoreError,
    InvalidInput,
    InvalidSetting,
    NotPermitted,
    SourceUnreadable,
    StorageError,
    StorageFull,
    TargetError,
    storage_error,
)
from filestore.system.owners import PRIVATE_FILE, make_private

EMPTY_PATH = "the path is empty, as from a variable that is not set; give '.' for the current folder"
_SYNC_THREADS = 16
_ATOMIC_STAGING = re.compile(r"\.[0-9a-f]{32}")

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Nothing is there."""
BAD_DISK = frozenset(
    getattr(errno, name) for name in ("EIO", "ENODATA", "EREMOTEIO", "EILSEQ", "EUCLEAN", "EBADMSG") if hasattr(errno, name)
)
"""A bad sector, and damage that a file system or a disk found by its own checksums."""
_NO_FILE = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""Something that is not a file: a folder, a link to itself, a socket, and a device without a driver."""
BLOCK_SIZE = 4096
"""File systems round sizes up to a multiple of this."""

_ATTEMPTS = 1000
"""How often `remove` tries. Another process may change the same folder, so that one attempt can fail."""
_ALL_OF_OWNER = stat.S_IRWXU
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def free_space(place: int | Path) -> int:
    """Return how many bytes are free on the file system of `place`, which is a path or an open file.

    Blocks. Raises OSError.
    """
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def stored_size_of(path: Path) -> tuple[int, float]:
    """Return how many bytes a file or a folder takes on the disk, and when it was last written to.

    For a folder, everything in it counts. Holes in files do not count. Blocks. Raises OSError.
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
    """Raise StorageFull if fewer than `size` bytes are free on the file system of the open file `place`.

    The error names the path `where`. Raises OSError if the free space cannot be found out.
    """
    free = free_space(place)
    if size > free:
        raise StorageFull(str(where), f"{size} bytes are needed and {free} are free")


def write_all(descriptor: int, content: Buffer) -> None:
    """Write all of `content` to an open file at its current position. Blocks. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[unlocked(os.write, descriptor, view) :]


def read_at(descriptor: int, memory: memoryview, offset: int) -> int:
    """Read bytes from `offset` of an open file until `memory` is full. Return the number of bytes that were read.

    This number is smaller than `memory` only if the file ends before. Blocks. Raises OSError.
    """
    done = 0
    while done < len(memory):
        # The first call reads everything, except at the end of the file, after a signal, or for more than 2 GiB.
        size = unlocked(os.preadv, descriptor, [memory[done:] if done else memory], offset + done)
        if not size:
            break
        done += size
    return done


def is_unreadable(error: OSError) -> bool:
    """Return whether an error says that one file is lost: it is gone, is not a file, or is on a bad part of a disk.

    Other errors say something about this process or the whole disk, such as too few descriptors or permissions.
    """
    return error.errno in ABSENT | _NO_FILE | BAD_DISK


def write_at(descriptor: int, content: Buffer, offset: int) -> int:
    """Write all of `content` to an open file, from `offset` on. Return the number of bytes that were written.

    Blocks. Raises OSError.
    """
    written = 0
    while written < len(content):
        # The first call writes everything, except on a full disk, after a signal, or for more than 2 GiB.
        written += unlocked(os.pwrite, descriptor, content[written:] if written else content, offset + written)
    return written


def sync_descriptor(descriptor: int) -> None:
    """Sync an open file or folder to the disk: the content of a file, or the names in a folder.

    Blocks. Raises OSError.
    """
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync of macOS leaves the bytes in the memory of the drive
    else:
        unlocked(os.fsync, descriptor)


def sync_path(path: Path | str) -> None:
    """Open the file or folder at `path`, and sync it to the disk as `sync_descriptor` does."""
    descriptor = unlocked(os.open, path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        unlocked(os.close, descriptor)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can use, and its parent folders, and make their names durable.

    Folders that exist stay as they are. Blocks. Raises OSError.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(0o700, parents=True, exist_ok=True)
    for folder in new:
        sync_path(folder.parent)


def sync_tree(root: Path) -> None:
    """Sync a folder and everything in it to the disk. Links are not followed. Blocks. Raises OSError.

    If the operating system can do it, one call syncs the whole file system. For thousands of files this is much faster
    than one call for each file, but it also waits for the data that other processes have written there.
    """
    if sync_file_system(root):
        return
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for _ in pool.map(sync_path, _standing(root)):
            pass


def sync_file_system(path: Path) -> bool:
    """Sync the whole file system that contains `path` to the disk. Return whether the operating system can do this.

    If it cannot, nothing is synced. Blocks. Raises OSError.
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
    """Return a function that syncs the file system of a descriptor, or None. Only the C library of Linux has it."""
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
    """Yield all files and folders of a tree except links. The root comes last."""
    for folder, _, names in os.walk(root, topdown=False, onerror=_raise):
        yield from (path for path in (Path(folder, name) for name in names) if not path.is_symlink())
        yield Path(folder)


def _raise(error: OSError) -> None:
    raise error


class CannotMoveError(OSError):
    """A folder cannot be renamed. It can only be emptied and removed where it is."""


@contextmanager
def storage_errors(where: str | Path, *, translate: Callable[[str, OSError], FilestoreError] = storage_error) -> Iterator[None]:
    """Raise each OSError of the block as a FilestoreError about the path `where`.

    The function `translate` makes the new error. By default this is StorageError, or StorageFull if the disk is full.
    This module has four other such functions: `write_error`, `access_error`, `target_error` and `source_error`.
    """
    try:
        yield
    except OSError as error:
        raise translate(str(where), error) from error


def write_error(where: str, error: OSError) -> StorageError:
    """Make the error for a failed write to a folder that the user chose. It tells the user what to do."""
    if error.errno not in _READ_ONLY:
        return storage_error(where, error)
    reason = f"{error.strerror}, so that nothing new can be kept there; make it writable, or give another folder"
    return StorageError(str(error.filename or where), reason)


def access_error(where: str, error: OSError) -> StorageError:
    """Make the error for the folder of a repository. It is NotPermitted if the user may not use the folder."""
    if isinstance(error, PermissionError):
        return NotPermitted(str(error.filename or where), error.strerror or str(error))
    return storage_error(where, error)


def target_error(where: str, error: OSError) -> TargetError:
    """Make the error for a fetch that cannot write to its target."""
    return TargetError(where, error.strerror or str(error))


def source_error(where: str, error: OSError) -> SourceUnreadable:
    """Make the error for a push that cannot read its source."""
    return SourceUnreadable(where, error.strerror or str(error))


def write_durably(path: Path, values: Mapping[str, object]) -> None:
    """Write `values` as JSON to a small file, atomically and durably. Folders that do not exist are made, as private ones.

    Blocks. Raises StorageError, StorageFull.
    """
    with storage_errors(path.parent, translate=write_error):
        make_private(path.parent)
        write_atomic(path, json.dumps(values).encode())


def write_atomic(path: Path, content: Buffer) -> None:
    """Write `content` to a small file that only this user can read, atomically and durably.

    The bytes are written to another file, which is then renamed. So a reader never finds a part of them. Blocks. Raises
    OSError.
    """
    staging = path.with_name(f".{uuid.uuid4().hex}")
    try:
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor is not a path
            file.write(content)
            file.flush()
            sync_descriptor(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_path(path.parent)


def is_atomic_staging(name: str) -> bool:
    """Return whether a file with this name may be what `write_atomic` left when its process was killed."""
    return _ATOMIC_STAGING.fullmatch(name) is not None


def move_aside(folder: Path, aside: Path) -> bool:
    """Rename `folder` to `aside`, so that readers lose the whole folder at once. Return False if it does not exist.

    Raises CannotMoveError if the folder is part of a container image, because an overlay file system cannot rename such
    a folder. Raises OSError for other failures.
    """
    make_private(aside.parent)
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
    """Rename `folder` to `aside` as `move_aside` does. If it cannot be renamed, remove it where it is.

    Return whether the folder is now at `aside`. Raises OSError.
    """
    try:
        return move_aside(folder, aside)
    except CannotMoveError:
        remove_in_place(folder)
        return False


def in_blocks(size: int) -> int:
    """Return how many bytes a file of `size` bytes takes on the disk: most file systems round up to whole blocks."""
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE


def given_path(text: str | Path) -> Path:
    """Return the path that a caller gave. Raises InvalidInput for an empty text, which `Path` reads as the current folder."""
    if text == "":
        raise InvalidInput(EMPTY_PATH)
    return Path(text)


def home_path(text: str | Path) -> Path:
    """Return `text` as a path. `~` alone or `~/` at the beginning means the home folder, as in a shell.

    Raises InvalidInput for an empty text. Raises InvalidSetting if the home folder is not known, or if `text` begins with
    the `~name` of another user.
    """
    given_path(text)
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
    """Remove a file, a link, or a folder with its content, even if the folder is read-only.

    The target of a link is never removed.

    It is not an error if the path does not exist, or if another process removes it at the same time. If a part cannot
    be removed, the rest is removed, and then OSError is raised.
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
    """Remove a path as `remove` does, and ignore each OSError."""
    with suppress(OSError):
        remove(path, dir_fd=dir_fd)


def remove_in_place(folder: Path) -> None:
    """Remove a folder that cannot be renamed before. Raises OSError.

    If another process writes to the folder at the same time, the new content and the folder stay, without an error.
    """
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
    """Rename a file, a link or a folder, even if the folder is read-only. Raises OSError."""
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
    """Give the owner all permissions for each folder of a tree, as far as possible. Return whether one was changed."""
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
