"""The disk of a simulated machine: real files in a folder, and what of them would survive a power cut.

For each file, the writes since its last sync are known, and for each folder the changes of its names since its last sync. A
power cut keeps or loses each of them by the seed. A write may be torn at a multiple of 512 bytes. A rename of which nothing
was synced is kept or lost as a whole, as in every file system with a journal; when only its new folder was synced, the old
name may come back.

The files of SQLite are not a part of this: see `databases`.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path
from typing import NamedTuple

from tests.simulation.kernel import real

SECTOR = 512
_CHANGES_LIMIT = 400
_WRITES_LIMIT = 64
"""When more changes or writes wait for a sync, the system writes the oldest ones by itself."""
_DISK_SIZE = 64 << 20


class Write(NamedTuple):
    """A write, or with `data` None a change of the size to `offset`."""

    offset: int
    data: bytes | None


class Node:
    """A file or a folder."""

    def __init__(self, number: int, mode: int, now_ns: int) -> None:
        self.number = number
        self.mode = mode
        self.modified_at = self.changed_at = now_ns
        self.size = 0
        self.synced: bytes | None = None
        """The content at the last sync, if there were writes since."""
        self.writes: list[Write] = []
        self.last_content = b""
        """The content of a file whose last name was removed, as long as that is not synced."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


class NameChange:
    """A change of one name in a folder."""

    __slots__ = ("after", "before", "folder", "group", "name")

    def __init__(self, folder: Node, name: str, before: Node | None, after: Node | None) -> None:
        self.folder, self.name, self.before, self.after = folder, name, before, after
        self.group: list[NameChange] = [self]
        """The changes that are made together or not at all."""


class Fault:
    """Calls that will fail."""

    def __init__(self, code: int, calls: frozenset[str] | None, count: int) -> None:
        self.code, self.calls, self.count = code, calls, count


class Disk:
    """The disk of a machine."""

    def __init__(self, root: Path, *, seed: str, device: int) -> None:
        self.root = str(root)
        self.device = device
        self.random = random.Random(seed)
        self.size = _DISK_SIZE
        self.used = 0
        self.chance_of_error: dict[int, float] = {}
        """Error numbers, each with the probability that a call fails with it."""
        self._faults: list[Fault] = []
        self._nodes: dict[int, Node] = {}
        self._changes: list[NameChange] = []
        self._next = 1000 * device
        real.mkdir(self.root, 0o700)
        self.real_root = os.path.realpath(self.root)
        """The same folder by the name that the system has for it, which differs from run to run."""
        self.now_ns = 0
        """The wall clock in nanoseconds. The files take it from here."""

    # Faults.

    def fail_next(self, code: int, *, calls: set[str] | None = None, count: int = 1) -> None:
        """Let the next `count` calls fail with the error number `code`: those with a name in `calls`, or any."""
        self._faults.append(Fault(code, None if calls is None else frozenset(calls), count))

    def check_fault(self, call: str) -> None:
        """Raise OSError if a call is to fail."""
        for fault in self._faults:
            if fault.calls is None or call in fault.calls:
                fault.count -= 1
                if not fault.count:
                    self._faults.remove(fault)
                raise OSError(fault.code, os.strerror(fault.code))
        for code, probability in self.chance_of_error.items():
            if self.random.random() < probability:
                raise OSError(code, os.strerror(code))

    def check_space(self, size: int) -> None:
        """Raise OSError if the disk has no space for `size` more bytes."""
        if size > 0 and self.used + size > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Files and folders.

    def node(self, status: os.stat_result) -> Node:
        """Return the file or folder with a real status."""
        node = self._nodes.get(status.st_ino)
        if node is None:
            node = self.new_node(status)
            node.size = status.st_size
            if not node.is_folder:
                self.used += node.size
        node.mode = status.st_mode
        return node

    def new_node(self, status: os.stat_result) -> Node:
        """Return the new file or folder with a real status, which is empty."""
        self._next += 1
        node = self._nodes[status.st_ino] = Node(self._next, status.st_mode, self.now_ns)
        return node

    def node_of(self, path: str, *, follow: bool = False) -> Node | None:
        """Return what is at a path, or None."""
        try:
            return self.node(real.stat(path) if follow else real.lstat(path))
        except OSError:
            return None

    def folder_of(self, path: str) -> tuple[Node, str]:
        """Return the folder of a path, and the name in it."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return self.node(real.stat(parent)), name

    def written(self, node: Node, offset: int, data: bytes, before: bytes | None) -> None:
        """Note a write. `before` is the content before it, if `needs_content` was true."""
        if node.synced is None:
            node.synced = before or b""
        node.writes.append(Write(offset, data))
        self._resize(node, max(node.size, offset + len(data)))
        if len(node.writes) > _WRITES_LIMIT:
            self.sync(node)

    def truncated(self, node: Node, size: int, before: bytes | None) -> None:
        """Note a change of the size."""
        if node.synced is None:
            node.synced = before or b""
        node.writes.append(Write(size, None))
        self._resize(node, size)

    def _resize(self, node: Node, size: int) -> None:
        self.used += size - node.size
        node.size = size
        node.modified_at = node.changed_at = self.now_ns

    def sync(self, node: Node) -> None:
        """Make the content of a file durable, or the names of a folder."""
        if node.is_folder:
            synced = [change for change in self._changes if change.folder is node]
            # The name that a rename has left goes with it. The other way round, an old name may come back.
            left = [
                other
                for change in synced
                if change.after is None
                for other in change.group
                if other is not change and other in self._changes
            ]
            self._settle([*synced, *left])
        node.synced = None
        node.writes.clear()

    def sync_all(self) -> None:
        """Make everything durable."""
        for node in self._nodes.values():
            node.synced = None
            node.writes.clear()
        self._settle(list(self._changes))

    def renamed(self, *changes: NameChange) -> None:
        """Note changes of names that are made together."""
        for change in changes:
            change.group = list(changes)
            change.folder.modified_at = change.folder.changed_at = self.now_ns
            for node in (change.before, change.after):
                if node is not None:
                    node.changed_at = self.now_ns
        self._changes += changes
        if len(self._changes) > _CHANGES_LIMIT:
            self._settle(list(self._changes[: _CHANGES_LIMIT // 2]))

    def removed(self, status: os.stat_result, content: bytes) -> None:
        """Note that a file has lost its last name. Its number may be used again."""
        node = self._nodes.pop(status.st_ino, None)
        if node is not None and not node.is_folder:
            node.last_content = content
            self.used -= node.size

    def settle_name(self, path: str) -> None:
        """Make a name durable, which SQLite does for its files."""
        folder, name = self.folder_of(path)
        self._settle([change for change in self._changes if change.folder is folder and change.name == name])

    def _settle(self, changes: list[NameChange]) -> None:
        gone = set(map(id, changes))
        self._changes = [change for change in self._changes if id(change) not in gone]
        for change in changes:
            change.group.remove(change) if change in change.group else None
            if change.before is not None:
                change.before.last_content = b""

    # A power cut.

    def power_cut(self, *, keeps: frozenset[str]) -> int:
        """Lose what was not synced, by the seed, and write the rest again. Return how many changes were lost.

        Nobody may have a file open. The files whose paths are in `keeps` are SQLite's, and stay as they are.
        """
        contents: dict[int, bytes] = {}
        children: dict[int, dict[str, Node]] = {}
        top = self.node(real.stat(self.root))
        nodes = {top.number: top}
        self._read(self.root, top, contents=contents, children=children, nodes=nodes)
        kept_nodes = {node.number for path in keeps if (node := self.node_of(path)) is not None}
        lost = self._lose_names(children, nodes)
        for node in nodes.values():
            if node.writes and not node.is_folder and node.number not in kept_nodes:
                base = contents.get(node.number, node.last_content)
                contents[node.number], count = self._torn(node, base)
                lost += count
        _clear(self.root)
        self._nodes = {real.stat(self.root).st_ino: top}
        self._changes = []
        self.used = 0
        self._write(self.root, top, contents=contents, children=children, paths={})
        return lost

    def _read(
        self,
        path: str,
        folder: Node,
        *,
        contents: dict[int, bytes],
        children: dict[int, dict[str, Node]],
        nodes: dict[int, Node],
    ) -> None:
        found = children.setdefault(folder.number, {})
        for name in sorted(real.listdir(path)):
            inner = f"{path}/{name}"
            status = real.lstat(inner)
            node = found[name] = self.node(status)
            nodes[node.number] = node
            if node.is_folder:
                self._read(inner, node, contents=contents, children=children, nodes=nodes)
            elif stat.S_ISLNK(status.st_mode):
                contents[node.number] = os.fsencode(real.readlink(inner))
            else:
                with real.open_file(inner, "rb") as file:
                    contents[node.number] = file.read()

    def _lose_names(self, children: dict[int, dict[str, Node]], nodes: dict[int, Node]) -> int:
        """Undo a part of the changes of names that are not synced."""
        share = self.random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        lost: set[int] = set()
        for change in self._changes:
            if id(change) not in lost and self.random.random() < share:
                lost.update(map(id, change.group))
        places: dict[tuple[int, str], Node | None] = {}
        for change in self._changes:
            place = (change.folder.number, change.name)
            if place not in places:
                places[place] = change.before
            if id(change) not in lost:
                places[place] = change.after
        for (folder, name), node in places.items():
            if node is None:
                children.setdefault(folder, {}).pop(name, None)
            else:
                children.setdefault(folder, {})[name] = node
                nodes.setdefault(node.number, node)
        return len(lost)

    def _torn(self, node: Node, current: bytes) -> tuple[bytes, int]:
        """Return the content of a file of which some writes were lost, and how many."""
        share = self.random.choice((0.0, 0.5, 1.0))
        content = bytearray(node.synced or b"")
        lost = 0
        for write in node.writes:
            data = write.data
            if self.random.random() < share:
                lost += 1
                if data is None or self.random.random() < 1 / 2:
                    continue
                data = data[: int(self.random.random() * (len(data) // SECTOR + 1)) * SECTOR]
            if data is None:
                content = content[: write.offset] + bytes(max(0, write.offset - len(content)))
                continue
            if len(content) < write.offset:
                content += bytes(write.offset - len(content))
            content[write.offset : write.offset + len(data)] = data
        node.synced = None
        node.writes.clear()
        return (bytes(content), lost) if lost else (current, 0)

    def _write(
        self, path: str, folder: Node, *, contents: dict[int, bytes], children: dict[int, dict[str, Node]], paths: dict[int, str]
    ) -> None:
        for name, node in children.get(folder.number, {}).items():
            inner = f"{path}/{name}"
            if node.number in paths:
                if not node.is_folder:
                    real.link(paths[node.number], inner, follow_symlinks=False)
                continue
            paths[node.number] = inner
            if node.is_folder:
                real.mkdir(inner, 0o700)
                self._nodes[real.stat(inner).st_ino] = node
                self._write(inner, node, contents=contents, children=children, paths=paths)
                real.chmod(inner, stat.S_IMODE(node.mode))
                continue
            content = contents.get(node.number, node.last_content)
            if stat.S_ISLNK(node.mode):
                real.symlink(os.fsdecode(content), inner)
            else:
                with real.open_file(inner, "wb") as file:
                    file.write(content)
                real.chmod(inner, stat.S_IMODE(node.mode))
            node.size = len(content)
            self.used += node.size
            self._nodes[real.lstat(inner).st_ino] = node


def _clear(folder: str) -> None:
    for name in real.listdir(folder):
        inner = f"{folder}/{name}"
        if stat.S_ISDIR(real.lstat(inner).st_mode):
            real.chmod(inner, 0o700)
            _clear(inner)
            real.rmdir(inner)
        else:
            real.unlink(inner)
