"""Tell which files and folders another user of this machine could have made or changed, and make private ones.

A name in a folder in which other users may write says nothing about who made it. So before data is continued or replaced
under such a name, its owner, its permissions and its number of links are checked. All functions block.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("filestore.owners")

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_warned: set[Path] = set()
"""The folders for which this process has warned."""


def is_ours(status: os.stat_result) -> bool:
    """Return whether only this user can have written what has this status, which is not that of a link's target.

    It belongs to this user, only this user may write to it, and it is a folder, or a file that has one name.
    """
    is_plain = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
    return is_plain and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def is_open_to_others(status: os.stat_result) -> bool:
    """Return whether another user, except an administrator, may make names in the folder that has this status.

    In a folder with the sticky bit, such as `/tmp`, others may make names too, although they cannot change ours.
    """
    return bool(status.st_mode & _OTHERS_WRITE) or status.st_uid not in {0, os.geteuid()}


def is_shared(folder: Path) -> bool:
    """Return whether another user, except an administrator, may make names in a folder. Raises OSError."""
    return is_open_to_others(folder.stat())


def make_private(folder: Path) -> None:
    """Make a folder that only this user can use, and its parent folders. Folders that exist stay as they are.

    Raises OSError.
    """
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except FileNotFoundError:
        make_private(folder.parent)
        folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise


def make_own(folder: Path) -> None:
    """Make a folder that only this user can use, in a folder that exists. Raises OSError, also if it is another user's."""
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise
        if is_shared(folder.parent) and not is_ours(status):
            reason = "it belongs to another user, or others may write to it; remove it"
            raise PermissionError(errno.EPERM, reason, str(folder)) from None


def tighten(path: Path) -> None:
    """Take the permissions of all other users from a file or a folder, if it belongs to this user."""
    with suppress(OSError):
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def tighten_descriptor(descriptor: int) -> None:
    """Do what `tighten` does, for an open file or folder."""
    with suppress(OSError):
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_OTHERS)


def warn_of_others(folder: Path, what: str) -> None:
    """Write a warning to the log, once for each folder, if other users could change what is in it. Raises OSError.

    It is not an error, because a volume of a container often belongs to another user.
    """
    status = folder.stat()
    if status.st_uid not in {0, os.geteuid()}:
        how = f"belongs to another user (user id {status.st_uid})"
    elif status.st_mode & stat.S_IWOTH:
        how = f"is writable by other users (permissions {stat.S_IMODE(status.st_mode):o})"
    else:
        return
    if folder not in _warned:
        _warned.add(folder)
        logger.warning(
            "the folder of %s, %r, %s: others can change what is in it; use another one if you do not trust them",
            what,
            str(folder),
            how,
        )


def usual_mode(mode: int) -> int:
    """Return the permissions that a new file or folder has when it is made with `mode`: those that the umask leaves."""
    try:
        with open("/proc/self/status", "rb") as file:  # noqa: PTH123  # like other files of the kernel
            for line in file:
                if line.startswith(b"Umask:"):
                    return mode & ~int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    # Only the call that sets the umask returns it. Until the second call, other threads make private files.
    mask = os.umask(_OTHERS)
    os.umask(mask)
    return mode & ~mask
