"""Compare a folder with the members of a zip file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator, Sequence

from filestore.format.zip import write
from filestore.format.zip.checksum import crc32
from filestore.format.zip.read import (
    Member,
)
from filestore.transfer.sinks.zip_index import READ_FLAGS, member_paths

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_SIZE = 1 << 20


def is_from_push(members: Sequence[Member], tail: bytes) -> bool:
    """Return whether `tail` is the central directory that a push would write for these members.

    Then the tree can be hashed: a push of it gives the digest of the zip file.
    """
    placed = [
        write.PlacedEntry(
            write.Entry(
                member.path,
                member.size,
                is_executable=member.is_executable,
                is_folder=member.is_folder,
                target="" if member.is_link else None,
            ),
            member.crc,
            member.start,
        )
        for member in members
    ]
    return write.central_directory(placed, members[-1].end if members else 0) == tail


def has_modes(root: int, members: Sequence[Member]) -> bool:
    """Return whether the owner may execute the same files of a tree as in its zip file. Raises OSError."""
    return all(_has_mode(member, _status(root, member)) for member in members)


def resembles_disk(root: int, members: Sequence[Member], *, ignored: Container[str] = ()) -> bool:
    """Return whether a folder has the names, sizes and executable files of these members. No content is read."""
    return matches_disk(root, members, ignored=ignored, check=_is_similar)


def matches_disk(
    root: int,
    members: Sequence[Member],
    *,
    ignored: Container[str] = (),
    check: Callable[[int, Member, os.stat_result], bool] | None = None,
) -> bool:
    """Return whether a folder is the tree of these members: the same names, and content with the same checksums.

    A name in `ignored` does not count, in any folder of the tree. `check` is called for each file and link instead of `is_whole`.
    """
    is_right_member = check or is_whole
    numbers, folders = member_paths(members)
    try:
        for path, status in walk_folder(root):
            if any(name in ignored for name in path.split("/")):
                continue
            if stat.S_ISDIR(status.st_mode):
                is_right = path in folders
                folders.discard(path)
            else:
                number = numbers.pop(path, None)
                is_right = number is not None and is_right_member(root, members[number], status)
            if not is_right:
                return False
    except OSError:
        return False
    return not numbers and not folders


def walk_folder(root: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the status of everything in a folder and its inner folders. A folder comes before its content.

    If a folder is removed meanwhile, its content is left out and no error is raised.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            descriptor = os.open(folder or ".", FOLDER_FLAGS, dir_fd=root)
        except FileNotFoundError:
            continue
        try:
            with os.scandir(descriptor) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(descriptor)
        for name, status in found:
            path = f"{folder}/{name}" if folder else name
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)


def is_whole(root: int, member: Member, status: os.stat_result) -> bool:
    """Return whether the file or link of `member` on the disk has the right size and checksum. Raises OSError."""
    if member.is_link:
        return stat.S_ISLNK(status.st_mode) and crc32(os.fsencode(os.readlink(member.path, dir_fd=root))) == member.crc
    if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
        return False
    crc = offset = 0
    memory = memoryview(bytearray(min(_READ_SIZE, member.size)))
    descriptor = os.open(member.path, READ_FLAGS, dir_fd=root)
    try:
        while size := os.preadv(descriptor, [memory], offset) if memory else 0:
            crc = crc32(memory[:size], crc)
            offset += size
    finally:
        os.close(descriptor)
    return offset == member.size and crc == member.crc


def _is_similar(_: int, member: Member, status: os.stat_result) -> bool:
    if member.is_link:
        return stat.S_ISLNK(status.st_mode)
    return stat.S_ISREG(status.st_mode) and status.st_size == member.size and _has_mode(member, status)


def _has_mode(member: Member, status: os.stat_result) -> bool:
    return member.is_folder or member.is_link or bool(status.st_mode & stat.S_IXUSR) == member.is_executable


def _status(root: int, member: Member) -> os.stat_result:
    return os.stat(member.path, dir_fd=root, follow_symlinks=False)
