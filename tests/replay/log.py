"""Read the log that `recorder.c` writes: one record for each system call that changed a file, a folder or a name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

_RECORD = struct.Struct("<IIQQQQqqII")

Id = tuple[int, int]
"""The device and the inode of a file or a folder."""


class Kind(IntEnum):
    """What a call did. `first` is the file, or the folder of the name; `second` is the object, or the second folder."""

    CREATE = 1
    MKDIR = 2
    SYMLINK = 3
    LINK = 4
    RENAME = 5
    UNLINK = 6
    RMDIR = 7
    WRITE = 8
    RESIZE = 9
    ALLOCATE = 10
    SYNC = 11
    SYNC_ALL = 12
    MARK = 13
    UNSUPPORTED = 14


class Event(NamedTuple):
    """A record of the log."""

    kind: Kind
    first: Id
    second: Id
    offset: int
    length: int
    name: str
    """A name in the folder `first`, or the text of a mark."""
    name2: str
    """The new name of a rename, in the folder `second`, or the target of a symbolic link."""
    data: bytes


def parse_log(log: bytes) -> Iterator[Event]:
    """Yield the records of a log."""
    place = 0
    while place < len(log):
        size, kind, device, inode, device2, inode2, offset, length, name_size, name2_size = _RECORD.unpack_from(log, place)
        name = place + _RECORD.size
        name2 = name + name_size
        data = name2 + name2_size
        yield Event(
            Kind(kind),
            (device, inode),
            (device2, inode2),
            offset,
            length,
            log[name:name2].decode(errors="surrogateescape"),
            log[name2:data].decode(errors="surrogateescape"),
            log[data : place + size],
        )
        place += size
