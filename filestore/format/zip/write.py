"""Make the zip file for a directory from its entries. This module makes all bytes except the content of files.

Normative text: `docs/format.md`, section Directories.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from filestore.errors import InvalidName, LimitExceeded
from filestore.format.zip import structures as zip_
from filestore.format.zip.tree import Tree, for_display, link_target_problem, normalised, path_problem

NAME_LIMIT = zip_.U16_MAX
"""The largest size in bytes of a name in the zip file. The `/` after the name of a folder counts."""
SIZE_LIMIT = 1 << 63
"""Every file and every archive must have fewer bytes than this."""

_MADE_BY = zip_.HOST_UNIX << 8 | 45
_NEEDS_NOTHING, _NEEDS_FOLDERS, _NEEDS_ZIP64 = 10, 20, 45
_TIME, _DATE = 0, 1 << 5 | 1  # midnight of the first day that the format knows: 1980-01-01
_ZIP64_LOCAL = 20


class Entry(NamedTuple):
    """A file, an empty folder, or a link that is kept as a link."""

    name: str
    """The path in the tree, without a `/` at the end."""
    size: int = 0
    is_executable: bool = False
    is_folder: bool = False
    target: str | None = None
    """The target of a link, or None. The content of a link is its target in UTF-8, so `size` is the size of this."""

    @property
    def stored_name(self) -> bytes:
        """The name in the zip file. A folder has a `/` at the end. Entries are sorted by this name."""
        return self.name.encode() + b"/" if self.is_folder else self.name.encode()


class PlacedEntry(NamedTuple):
    """An entry, the checksum of its content, and the offset of its local header."""

    entry: Entry
    crc: int
    offset: int


def sorted_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries of a tree in the order of the archive.

    Raises InvalidName for an entry that an archive cannot hold, LimitExceeded for a name or a size that is too large.
    """
    tree = Tree()
    checked = []
    for entry in entries:
        reason = _entry_problem(entry) or tree.add(entry.name, is_folder=entry.is_folder)
        if reason:
            raise InvalidName(for_display(entry.name), reason)
        checked.append(entry)
    if found := tree.links_problem({entry.name: entry.target for entry in checked if entry.target is not None}):
        raise InvalidName(*found)
    # In the order of code points, which is also that of their UTF-8.
    return tuple(sorted(checked, key=lambda entry: f"{entry.name}/" if entry.is_folder else entry.name))


def local_header_size(name_size: int, size: int) -> int:
    """Return the size of the result of `local_header`, for a name of `name_size` bytes and a content of `size` bytes."""
    return zip_.LOCAL_HEADER.size + name_size + (_ZIP64_LOCAL if size >= zip_.U32_MAX else 0)


def local_header(entry: Entry, crc: int) -> bytes:
    """Return the local header, which comes before the content of an entry."""
    name = entry.stored_name
    extra = _zip64(entry.size, entry.size) if entry.size >= zip_.U32_MAX else b""
    return zip_.LOCAL_HEADER.pack(zip_.LOCAL_SIGNATURE, *_shared_fields(entry, crc, name, extra)) + name + extra


def central_header_size(name_size: int, size: int, offset: int) -> int:
    """Return the size of the result of `central_header`, as `local_header_size` does."""
    base = zip_.CENTRAL_HEADER.size + name_size
    return base if max(size, offset) < zip_.U32_MAX else base + len(_central_extra(size, offset))


def central_header(placed: PlacedEntry) -> bytes:
    """Return an entry's header in the central directory."""
    entry, crc, offset = placed
    name = entry.stored_name
    extra = _central_extra(entry.size, offset)
    return (
        zip_.CENTRAL_HEADER.pack(
            zip_.CENTRAL_SIGNATURE,
            _MADE_BY,
            *_shared_fields(entry, crc, name, extra),
            0,
            0,
            0,
            _mode(entry) << 16 | (zip_.DOS_FOLDER if entry.is_folder else 0),
            min(offset, zip_.U32_MAX),
        )
        + name
        + extra
    )


def _shared_fields(entry: Entry, crc: int, name: bytes, extra: bytes) -> tuple[int, ...]:
    """Return the fields that both headers of an entry have, from the needed version to the size of the extra field."""
    size = min(entry.size, zip_.U32_MAX)
    version = _version_needed(entry, extra)
    return version, _flags(name), zip_.STORED, _TIME, _DATE, crc, size, size, len(name), len(extra)


def end_records(*, count: int, size: int, offset: int) -> bytes:
    """Return the end records for a central directory with `count` entries and `size` bytes at `offset`."""
    wide = b""
    if count >= zip_.U16_MAX or size >= zip_.U32_MAX or offset >= zip_.U32_MAX:
        numbers = (_MADE_BY, _NEEDS_ZIP64, 0, 0, count, count, size, offset)
        wide = zip_.END64_RECORD.pack(zip_.END64_SIGNATURE, zip_.END64_RECORD_REST, *numbers)
        wide += zip_.LOCATOR.pack(zip_.LOCATOR_SIGNATURE, 0, offset + size, 1)
    count = min(count, zip_.U16_MAX)
    size, offset = min(size, zip_.U32_MAX), min(offset, zip_.U32_MAX)
    return wide + zip_.END_RECORD.pack(zip_.END_SIGNATURE, 0, 0, count, count, size, offset, 0)


def central_directory(placed: Iterable[PlacedEntry], offset: int) -> bytes:
    """Return the central directory and the end records. They begin at `offset`, where the last content ends.

    For a large tree, make the headers one by one with `central_header`.
    """
    headers = [central_header(entry) for entry in placed]
    size = sum(map(len, headers))
    return b"".join(headers) + end_records(count=len(headers), size=size, offset=offset)


def _entry_problem(entry: Entry) -> str | None:
    name = entry.name
    try:
        name_size = len(entry.stored_name)
        target = (entry.target or "").encode()
    except UnicodeEncodeError:
        return "its name or the target of its link is not UTF-8"
    if name_size > NAME_LIMIT:
        raise LimitExceeded(f"the size of the name {for_display(name)!r}", name_size, NAME_LIMIT)
    if not 0 <= entry.size < SIZE_LIMIT:
        raise LimitExceeded(f"the size of {for_display(name)!r}", entry.size, SIZE_LIMIT - 1)
    if reason := path_problem(name):
        return reason
    if not name or normalised(name) != name:
        return "a part of it is empty or `.`"
    if entry.target is None:
        return "a folder has no content" if entry.is_folder and entry.size else None
    if entry.size != len(target):
        return f"its size is {entry.size}, but its target has {len(target)} bytes"
    return link_target_problem(entry.target)


def _zip64(*values: int) -> bytes:
    return zip_.EXTRA_HEADER.pack(zip_.EXTRA_ZIP64, 8 * len(values)) + b"".join(map(zip_.U64.pack, values))


def _central_extra(size: int, offset: int) -> bytes:
    values = [size, size] if size >= zip_.U32_MAX else []
    if offset >= zip_.U32_MAX:
        values.append(offset)
    return _zip64(*values) if values else b""


def _version_needed(entry: Entry, zip64: bytes) -> int:
    if zip64:
        return _NEEDS_ZIP64
    return _NEEDS_FOLDERS if entry.is_folder else _NEEDS_NOTHING


def _flags(name: bytes) -> int:
    return 0 if name.isascii() else zip_.FLAG_UTF8


def _mode(entry: Entry) -> int:
    if entry.is_folder:
        return zip_.MODE_FOLDER | 0o755
    if entry.target is not None:
        return zip_.MODE_LINK | 0o777
    return zip_.MODE_FILE | (0o755 if entry.is_executable else 0o644)
