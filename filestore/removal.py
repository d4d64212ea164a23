"""Files and folders that go away, or to another place, read-only or not. All blocks.

Folders that came with a container image, in the lower layer of an overlay file system, can be emptied and removed; renaming
them fails with EXDEV. What is done by a rename elsewhere is done in place for them, name by name.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

_ATTEMPTS = 1000
"""Another process may remove the same folder meanwhile: each attempt that meets it finds less than the one before."""
_ALL_OF_OWNER = stat.S_IRWXU
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: str | Path, *, dir_fd: int | None = None) -> None:
    """Remove a file, a link or a folder with all that is in it, read-only or not; never what a link leads to.

    What is not there counts as removed, and so does what another process removes meanwhile. Raises OSError, when as much as
    possible is gone.
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
    """`remove`, as far as it goes."""
    with suppress(OSError):
        remove(path, dir_fd=dir_fd)


def remove_in_place(folder: Path) -> None:
    """Remove a folder that cannot be renamed first. What another process puts there meanwhile stays. Raises OSError."""
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
    """Rename a file, a link, or a folder, which for another parent must be writable. Raises OSError."""
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
    """Give the owner all rights to each folder of a tree, as far as that is possible; whether one had not had them."""
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
            # Through a descriptor, which never leads through a link that was put in the folder's place.
            descriptor = os.open(folder, _FOLDER, dir_fd=dir_fd)
            try:
                with os.scandir(descriptor) as found:
                    waiting += [f"{folder}/{item.name}" for item in found if item.is_dir(follow_symlinks=False)]
            finally:
                os.close(descriptor)
    return has_changed
