"""The operations of an edit, and what a tree is after them.

All operations together are one step: what is deleted or copied is in the old tree, and their order has no meaning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from filestore.core.manifest import Chunk
from filestore.errors import EntryNotFound, InvalidInput, InvalidName, LimitExceeded
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.format.zip.tree import for_display, normalised, path_problem
from filestore.format.zip.write import Entry
from filestore.transfer.edits.content import BytesContent, EntryContent, FileContent, PlannedEntry, SpanContent, Sums
from filestore.transfer.stored_tree import StoredTree

_PART_LIMIT = 255
"""Bytes of one part of a path. File systems keep no longer ones."""
_RESERVED_PART = ".git"
"""Clones keep their own state in a folder of this name."""


class PutBytes(NamedTuple):
    """Put a file with this content, also in the place of another one.

    `is_executable` is as in the file that was there, or False, unless it is given. This holds for all operations that put.
    """

    path: str
    content: bytes
    is_executable: bool | None = None


class PutFile(NamedTuple):
    """Put the content of a regular file on this machine, which must not change until the edit has ended."""

    path: str
    file: Path
    is_executable: bool | None = None
    sums: Sums | None = None


class PutSpan(NamedTuple):
    """Put a part of an open file, such as the body of a request. It must not change, and stay open, until the edit has ended."""

    path: str
    descriptor: int
    start: int
    size: int
    is_executable: bool | None = None
    sums: Sums | None = None


class PutChunks(NamedTuple):
    """Put a file of which all chunks are stored. They must be those that a push of this file alone makes.

    Without `crc`, the CRC-32 of the content, a file of 256 KiB and more is read once.
    """

    path: str
    chunks: Sequence[Chunk]
    crc: int | None = None
    is_executable: bool | None = None
    sums: Sums | None = None


class DeleteFile(NamedTuple):
    """Delete a file or a link."""

    path: str


class DeleteFolder(NamedTuple):
    """Delete a folder with all that is in it."""

    path: str


class CopyFile(NamedTuple):
    """Copy a file or a link, as it was before the edit. Its executable bit is copied too.

    `tree` is where it is: the old tree if it is None, and otherwise any stored tree of the same repository and namespace.
    """

    path: str
    source_path: str
    tree: StoredTree | None = None


Operation: TypeAlias = PutBytes | PutFile | PutSpan | PutChunks | DeleteFile | DeleteFolder | CopyFile


class Old(Protocol):
    """The entries of the old tree, in the order of its zip."""

    entries: list[Entry]


class OpenContents(Protocol):
    """Gives the contents of new files. Its methods block."""

    def stored(self, chunks: Sequence[Chunk], *, crc: int | None, sums: Sums | None) -> EntryContent:
        """Return the content that has these chunks."""

    def copied(self, path: str, tree: StoredTree | None) -> tuple[Entry, EntryContent | None]:
        """Return a file, or a link without content, of a stored tree, or of the old one. Raises EntryNotFound."""


def checked_operations(operations: Iterable[Operation], *, limits: ZipLimits = DEFAULT_LIMITS) -> list[Operation]:
    """Return the operations, whose paths are normalised. It looks at no tree.

    Raises InvalidName for a path that no file may have, InvalidInput for a path that is in two operations, LimitExceeded.
    """
    checked: list[Operation] = []
    paths: set[str] = set()
    for operation in operations:
        is_folder = isinstance(operation, DeleteFolder)
        path = operation.path.removesuffix("/") if is_folder else operation.path
        _check_path(path, limits, is_new=not isinstance(operation, (DeleteFile, DeleteFolder)))
        key = f"{path}/" if is_folder else path  # a file may be put in the place of a folder
        if key in paths:
            raise InvalidInput(f"{for_display(path)!r} is in two operations; give one operation for each path")
        paths.add(key)
        checked.append(DeleteFolder(path) if is_folder else operation)
    return checked


def plan(
    old: Old | None, operations: Sequence[Operation], contents: OpenContents, *, name: str, limits: ZipLimits = DEFAULT_LIMITS
) -> list[PlannedEntry]:
    """Return the entries of the new tree, in the order of its zip. Blocks. `name` is what errors call the old tree.

    What is deleted last in a folder removes the folder, as in git. Whether the entries fit together is checked later, by
    `TreeChunker`, except for what this raises:

    EntryNotFound if something is deleted that is not there; InvalidInput for a file that is deleted as a folder, or a folder as
    a file; InvalidName for a file in the place of a folder; LimitExceeded; SourceUnreadable; what `contents` raises.

    Paths that differ only in the case of their letters are two paths, as in a push.
    """
    plan = _Plan([] if old is None else old.entries, name)
    for operation in operations:
        if isinstance(operation, DeleteFile):
            plan.delete_file(operation.path)
        elif isinstance(operation, DeleteFolder):
            plan.delete_folder(operation.path)
    for operation in operations:
        if not isinstance(operation, (DeleteFile, DeleteFolder)):
            plan.put(_planned(operation, plan, contents))
    if plan.count > limits.entries:
        raise LimitExceeded("the number of files, links and folders of the tree", plan.count, limits.entries)
    return plan.entries()


def _planned(operation: PutBytes | PutFile | PutSpan | PutChunks | CopyFile, plan: _Plan, contents: OpenContents) -> PlannedEntry:
    path = operation.path
    content: EntryContent
    match operation:
        case CopyFile(_, source_path, tree):
            source, copied = contents.copied(source_path, tree)
            return PlannedEntry(source._replace(name=path), None, copied)
        case PutBytes(_, data, is_executable):
            content = BytesContent(data)
        case PutFile(_, file, is_executable, sums):
            content = FileContent(file, sums=sums)
        case PutSpan(_, descriptor, start, size, is_executable, sums):
            content = SpanContent(descriptor, start, size, sums=sums)
        case PutChunks(_, chunks, crc, is_executable, sums):
            content = contents.stored(chunks, crc=crc, sums=sums)
    if is_executable is None:
        is_executable = plan.is_executable(path)
    return PlannedEntry(Entry(path, content.size, is_executable), None, content)


class _Plan:
    """The old entries without what is deleted or replaced, and the new ones."""

    def __init__(self, old: Sequence[Entry], name: str) -> None:
        self._old = old
        self._name = name
        self._keys = [_sort_key(entry) for entry in old]
        self._is_gone = bytearray(len(old))
        self._new: dict[str, PlannedEntry] = {}

    @property
    def count(self) -> int:
        """The number of entries of the new tree."""
        return len(self._old) - sum(self._is_gone) + len(self._new)

    def is_executable(self, path: str) -> bool:
        """Return whether the old tree has an executable file at a path."""
        place = self._place(path)
        return place is not None and self._old[place].is_executable

    def delete_file(self, path: str) -> None:
        """Raises EntryNotFound, InvalidInput for a folder."""
        place = self._place(path)
        if place is None and self._inside(path):
            raise InvalidInput(f"{for_display(path)!r} cannot be deleted as a file: it is a folder")
        if place is None:
            raise EntryNotFound(self._name, path)
        self._is_gone[place] = 1

    def delete_folder(self, path: str) -> None:
        """Raises EntryNotFound, InvalidInput for a file."""
        inside = self._inside(path)
        if not inside and self._place(path) is not None:
            raise InvalidInput(f"{for_display(path)!r} cannot be deleted as a folder: it is a file")
        if not inside:
            raise EntryNotFound(self._name, path)
        self._is_gone[inside.start : inside.stop] = b"\1" * len(inside)

    def put(self, planned: PlannedEntry) -> None:
        """Put a file or a link. Raises InvalidName."""
        path = planned.entry.name
        if not all(self._is_gone[place] for place in self._inside(path)):
            raise InvalidName(for_display(path), "a folder is there")
        place = self._place(path)
        if place is not None:
            self._is_gone[place] = 1
        self._new[path] = planned
        for parent in _parents(path):
            inside = self._inside(parent)
            # A folder in which something is has no entry of its own.
            if inside and self._old[inside.start].is_folder and self._keys[inside.start] == f"{parent}/":
                self._is_gone[inside.start] = 1

    def entries(self) -> list[PlannedEntry]:
        """Return all entries, in the order of the zip."""
        kept = (PlannedEntry(entry, place) for place, entry in enumerate(self._old) if not self._is_gone[place])
        # Sorted runs are merged in linear time.
        return sorted([*kept, *sorted(self._new.values(), key=_planned_key)], key=_planned_key)

    def _place(self, path: str) -> int | None:
        """Return the place of a file or a link of the old tree."""
        place = bisect_left(self._keys, path)
        return place if place < len(self._keys) and self._keys[place] == path else None

    def _inside(self, folder: str) -> range:
        """Return the places of what is in a folder of the old tree, and of its own entry."""
        first = bisect_left(self._keys, f"{folder}/")
        return range(first, bisect_left(self._keys, f"{folder}0", first))  # `0` follows `/`


def _check_path(path: str, limits: ZipLimits, *, is_new: bool) -> None:
    """Raises InvalidName, LimitExceeded."""
    try:
        parts = [part.encode() for part in path.split("/")]
    except UnicodeEncodeError:
        raise InvalidName(for_display(ascii(path)), "it is not UTF-8") from None
    if reason := path_problem(path):
        raise InvalidName(for_display(path), reason)
    if not path or normalised(path) != path:
        raise InvalidName(for_display(path), "a part of it is empty or `.`")
    if not is_new:
        return
    if any(part.decode().lower() == _RESERVED_PART for part in parts):
        raise InvalidName(for_display(path), f"a part of it is {_RESERVED_PART!r}, which is reserved")
    for what, found, limit in (
        ("the size of the path", sum(map(len, parts)) + len(parts) - 1, limits.name_size),
        ("the depth of the folders", len(parts) - 1, limits.depth),
        ("the size of a part of the path", max(map(len, parts)), _PART_LIMIT),
    ):
        if found > limit:
            raise LimitExceeded(f"{what} {for_display(path)!r}", found, limit)


def _parents(path: str) -> Iterator[str]:
    """Yield the folders that a path is in, the inmost one first."""
    while path := path.rpartition("/")[0]:
        yield path


def _sort_key(entry: Entry) -> str:
    return f"{entry.name}/" if entry.is_folder else entry.name


def _planned_key(planned: PlannedEntry) -> str:
    return _sort_key(planned.entry)
