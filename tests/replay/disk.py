"""A model of a disk: what a power cut leaves of the system calls of a process.

A file has content, and a folder has names. Both have a durable part, and changes since then that are still in memory. A
power cut keeps the durable part, and any choice of the changes in memory: the disk and the kernel write them in any
order. The rules, which are weaker than what ext4, XFS and btrfs promise:

- `fsync` and `fdatasync` of a file make all earlier writes to it and its size durable, and not its name.
- `fsync` of a folder makes its names durable, and not what they name. `syncfs` makes everything durable.
- A write is torn only at multiples of 512 bytes of the file. What a dropped write left out is zeros, or the old bytes.
- A rename is atomic: it is never seen that the old name is gone and the new one is not there. Between two folders, the
  new name may be there before the old one is gone. The sync of the new folder makes only the new name durable.
- What is unlinked and open has no name, so a power cut does not leave it.
- SQLite's shared memory (`-shm`) is left out: no crash leaves it, and SQLite makes it from the log.

Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 3 (ALICE: prefixes, dropped and
reordered operations); https://www.sqlite.org/atomiccommit.html, section 2 (what a write to a disk may leave);
fsync(2), rename(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from tests.replay.image import Image
from tests.replay.log import Event, Id, Kind

SECTOR_SIZE = 512
SHARED_MEMORY = "-shm"
_ROOT = 0
_CACHED_COUNT = 1000


class UnknownChangeError(Exception):
    """The log has a call that the model does not know, so what it leaves cannot be said."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is not durable yet. Changes are numbered in the order of their calls."""

    number: int


@dataclass(frozen=True, slots=True)
class Write(Change):
    """Bytes were written to a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize(Change):
    """A file was cut, or filled with zeros, to a size."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Grow(Change):
    """A file was allocated up to a size."""

    node: int
    size: int


class Entry(NamedTuple):
    """A name in a folder, and what it names. None means that the name is removed."""

    folder: int
    name: str
    node: int | None


@dataclass(frozen=True, slots=True)
class Rename(Change):
    """Names of folders changed, all or none. A creation, a removal, and a rename inside of one folder are each one."""

    entries: tuple[Entry, ...]
    requires: int | None = None
    """The change without which this one cannot be durable: the new name, for the removal of the old one."""


class Tear(NamedTuple):
    """Of the write with this number, the bytes of the file from `start` to `end` are durable.

    The size of the file is that of the whole write if `is_sized`. The rest is then zeros, or the old bytes.
    """

    number: int
    start: int
    end: int
    is_sized: bool


class Disk:
    """The durable state of the files below a folder, and the changes that are not durable."""

    def __init__(self, root: Path) -> None:
        """Read what is below `root`. All of it counts as durable."""
        self.pending: list[Change] = []
        self._nodes: dict[Id, int] = {}
        self._node_count = 0
        self._change_count = 0
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._links: dict[int, str] = {}
        self._seen: dict[int, dict[str, int]] = {}
        """The names as the process sees them."""
        self._paths: dict[int, str] = {}
        self._cache: dict[tuple[int, tuple[int, ...], Tear | None], tuple[bytes, bytes]] = {}
        self._read(root, self._new_node(_id_of(root)))

    def apply(self, event: Event) -> bool:
        """Take in a call. Return whether it changed something that a power cut may leave."""
        if event.kind is Kind.UNSUPPORTED:
            if event.first in self._nodes:
                raise UnknownChangeError(event.name)
            return False
        if event.kind is Kind.SYNC_ALL:
            self._settle(self.pending)
            return True
        node = self._nodes.get(event.first)
        if node is None:
            if event.kind is Kind.RENAME and event.second in self._nodes:
                raise UnknownChangeError(f"{event.name2} was moved in from outside")
            return False
        if event.kind is Kind.SYNC:
            self._settle([change for change in self.pending if node in _nodes_of(change)])
        elif event.kind in {Kind.WRITE, Kind.RESIZE, Kind.ALLOCATE}:
            self._change_content(node, event)
        elif event.name.endswith(SHARED_MEMORY):
            if event.kind is Kind.CREATE:
                self._nodes.pop(event.second, None)  # the number may have belonged to another file
            return False
        else:
            self._change_names(node, event)
        return True

    def image(self, kept: Iterable[Change] | None = None, tear: Tear | None = None) -> Image:
        """Return what a power cut leaves that keeps these changes, in the order of their numbers, or all by default."""
        folders = self._folders
        data: dict[int, list[Change]] = {}
        for change in self.pending if kept is None else kept:
            if isinstance(change, Rename):
                if folders is self._folders:
                    folders = {node: dict(names) for node, names in folders.items()}
                _put(folders, change.entries)
            else:
                data.setdefault(_nodes_of(change)[0], []).append(change)
        image = Image()
        self._add(image, "", _ROOT, folders, data, tear=tear)
        return image

    def describe(self, change: Change) -> str:
        """Return a change in words."""
        if isinstance(change, Rename):
            words = []
            for folder, name, node in change.entries:
                path = f"{self._paths[folder]}{name}"
                words.append(f"- {path}" if node is None else f"+ {path}")
            return " ".join(words)
        (node,) = _nodes_of(change)
        if isinstance(change, Write):
            return f"write {self._paths[node]} {change.offset}+{len(change.data)}"
        assert isinstance(change, Resize | Grow)
        return f"resize {self._paths[node]} {change.size}"

    def _read(self, folder: Path, node: int) -> None:
        self._folders[node], self._seen[node] = {}, {}
        for path in sorted(folder.iterdir()):
            if path.name.endswith(SHARED_MEMORY):
                continue
            inner = self._nodes.get(_id_of(path))
            if inner is None:
                inner = self._new_node(_id_of(path))
            self._folders[node][path.name] = self._seen[node][path.name] = inner
            self._paths[inner] = f"{self._paths[node]}{path.name}"
            if path.is_symlink():
                self._links[inner] = os.fspath(path.readlink())
            elif path.is_dir():
                self._paths[inner] += "/"
                self._read(path, inner)
            else:
                self._files[inner] = path.read_bytes()

    def _new_node(self, node_id: Id) -> int:
        node = self._nodes[node_id] = self._node_count
        self._node_count += 1
        self._paths[node] = ""
        return node

    def _next_number(self) -> int:
        self._change_count += 1
        return self._change_count

    def _change_content(self, node: int, event: Event) -> None:
        number = self._next_number()
        if event.kind is Kind.WRITE:
            self.pending.append(Write(number, node, event.offset, event.data))
        elif event.kind is Kind.RESIZE:
            self.pending.append(Resize(number, node, event.length))
        else:
            self.pending.append(Grow(number, node, event.offset + event.length))

    def _change_names(self, folder: int, event: Event) -> None:
        if event.kind is Kind.RENAME:
            self._rename(folder, event)
            return
        node: int | None = None
        if event.kind is Kind.LINK:
            node = self._nodes.get(event.second)
            if node is None:
                raise UnknownChangeError(f"{event.name} was linked from outside")
        elif event.kind in {Kind.CREATE, Kind.MKDIR, Kind.SYMLINK}:
            node = self._new_node(event.second)
            self._paths[node] = f"{self._paths[folder]}{event.name}"
            if event.kind is Kind.MKDIR:
                self._paths[node] += "/"
                self._folders[node], self._seen[node] = {}, {}
            elif event.kind is Kind.SYMLINK:
                self._links[node] = event.name2
            else:
                self._files[node] = b""
        self._add_names(Entry(folder, event.name, node))

    def _rename(self, folder: int, event: Event) -> None:
        node = self._seen[folder].get(event.name)
        if node is None:
            raise UnknownChangeError(f"{event.name} was renamed, and nobody has made it")
        folder2 = self._nodes.get(event.second)
        old = Entry(folder, event.name, None)
        if folder2 is None:
            self._add_names(old)
            return
        if self._seen[folder2].get(event.name2) == node:
            return  # rename(2): two names of one file stay
        new = Entry(folder2, event.name2, node)
        if folder2 == folder:
            self._add_names(new, old)
        else:
            number = self._add_names(new)
            self._add_names(old, requires=number)

    def _add_names(self, *entries: Entry, requires: int | None = None) -> int:
        number = self._next_number()
        self.pending.append(Rename(number, entries, requires))
        _put(self._seen, entries)
        return number

    def _settle(self, changes: Iterable[Change]) -> None:
        """Make changes durable."""
        settled = {change.number: change for change in changes}
        waiting = {change.number: change for change in self.pending}
        for change in list(settled.values()):
            if isinstance(change, Rename) and change.requires in waiting and change.requires not in settled:
                required = waiting[change.requires]
                assert isinstance(required, Rename)
                # It becomes durable before earlier changes of the same name, so these mean nothing any more.
                (new,) = required.entries
                for earlier in self.pending:
                    if earlier.number >= required.number:
                        break
                    if isinstance(earlier, Rename) and any(new[:2] == entry[:2] for entry in earlier.entries):
                        settled[earlier.number] = earlier
                settled[required.number] = required
        data: dict[int, list[Change]] = {}
        for number in sorted(settled):
            change = settled[number]
            if isinstance(change, Rename):
                _put(self._folders, change.entries)
            else:
                data.setdefault(_nodes_of(change)[0], []).append(change)
        for node, parts in data.items():
            self._files[node] = _content(self._files[node], parts, None)
        self._cache = {key: value for key, value in self._cache.items() if key[0] not in data}
        self.pending = [change for change in self.pending if change.number not in settled]

    def _add(
        self,
        image: Image,
        path: str,
        folder: int,
        folders: dict[int, dict[str, int]],
        data: dict[int, list[Change]],
        *,
        tear: Tear | None,
    ) -> None:
        for name, node in folders[folder].items():
            inner = f"{path}{name}"
            if node in folders:
                image.add_folder(inner)
                self._add(image, f"{inner}/", node, folders, data, tear=tear)
            elif node in self._links:
                image.add_link(inner, self._links[node])
            else:
                image.add_file(inner, *self._content_of(node, data.get(node, []), tear))

    def _content_of(self, node: int, changes: list[Change], tear: Tear | None) -> tuple[bytes, bytes]:
        numbers = tuple(change.number for change in changes)
        key = node, numbers, tear if tear is not None and tear.number in numbers else None
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) == _CACHED_COUNT:
                self._cache.clear()
            content = _content(self._files[node], changes, key[2])
            found = self._cache[key] = content, blake3(content).digest()
        return found


def _id_of(path: Path) -> Id:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _nodes_of(change: Change) -> tuple[int, ...]:
    """Return the files, or the folders, whose sync makes a change durable."""
    if isinstance(change, Rename):
        return tuple(entry.folder for entry in change.entries)
    assert isinstance(change, Write | Resize | Grow)
    return (change.node,)


def _put(folders: dict[int, dict[str, int]], entries: Iterable[Entry]) -> None:
    for folder, name, node in entries:
        if node is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = node


def _content(durable: bytes, changes: Iterable[Change], tear: Tear | None) -> bytes:
    content = bytearray(durable)
    for change in changes:
        if isinstance(change, Write):
            _write(content, change, tear if tear is not None and tear.number == change.number else None)
        elif isinstance(change, Resize):
            del content[change.size :]
            content += bytes(change.size - len(content))
        elif isinstance(change, Grow):
            content += bytes(max(0, change.size - len(content)))
    return bytes(content)


def _write(content: bytearray, change: Write, tear: Tear | None) -> None:
    end = change.offset + len(change.data)
    start, stop = (change.offset, end) if tear is None else (tear.start, tear.end)
    size = end if tear is None or tear.is_sized else stop
    content += bytes(max(0, size - len(content)))
    content[start:stop] = change.data[start - change.offset : stop - change.offset]
