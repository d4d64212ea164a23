"""Make entries read-only, and check that nobody has changed them. All functions block."""

from __future__ import annotations

import errno
import heapq
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from filestore.core.records import Kind
from filestore.format.chunking import CHUNKING_VERSION
from filestore.system.files import BLOCK_SIZE, in_blocks
from filestore.system.small_files import read_json

_LINKS_LIMIT = 40
"""How many links are followed, as by Linux."""
WATCHED_FILES = 100
"""The number of files of a tree that each use of the cache checks. They are the largest ones. The weights are among
them, and 100 checks take 0.2 ms.
"""


_STORED_VERSION = "cutting"
"""The key of the chunking version in `entry.json`."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """The facts about a file that each use of the cache checks. Times are nanoseconds since 1970."""

    size: int
    mtime: int
    chunking_version: int

    @classmethod
    def seal(cls, path: Path, *, chunking_version: int) -> Self:
        """Make a file read-only, and return its state. Raises OSError."""
        path.chmod(0o444)
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, chunking_version)

    def is_intact(self, path: Path) -> bool:
        """Return whether the file at `path` looks unchanged. Reads no content.

        `path` may also be a link to such a file beside it.
        """
        try:
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                found = _beside(path).lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (self.size, self.mtime)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """The facts about a tree that each use of the cache checks: its mtime, and size and mtime of its 100 largest files.

    Times are nanoseconds since 1970. To check each of 20,000 files would take as long as reading many of them. So only
    `verify`, which hashes everything, finds changes in small files. The mtime of the tree's folder shows if something
    was added or removed at its top.
    """

    mtime: int
    size: int
    """Bytes of content of all its files."""
    stored_size: int
    """Bytes of disk that the tree takes."""
    files: dict[str, tuple[int, int]]
    """The size and the mtime of each watched file, by its path in the tree."""

    @classmethod
    def seal(cls, root: Path) -> Self:
        """Make the files and folders of a tree read-only, and return its state. Links are not followed. Raises OSError."""
        total = _Total()
        files = heapq.nlargest(WATCHED_FILES, _sealed(str(root), total))
        watched = {name: (size, mtime) for size, mtime, name in files}
        return cls(root.stat().st_mtime_ns, total.size, total.stored_size, watched)

    def is_intact(self, path: Path) -> bool:
        """Return whether the tree at `path` looks unchanged. Reads no content and lists no folder."""
        try:
            root = str(_beside(path))
            top = os.stat(root, follow_symlinks=False)  # noqa: PTH116  # a Path for each of 100 files takes longer than the look
            if not stat.S_ISDIR(top.st_mode) or top.st_mtime_ns != self.mtime:
                return False
            for name, known in self.files.items():
                found = os.stat(f"{root}/{name}", follow_symlinks=False)  # noqa: PTH116  # as above
                if (found.st_size, found.st_mtime_ns) != known:
                    return False
        except OSError:
            return False
        return True


Entry = FileEntry | TreeEntry


def encode_entry(entry: Entry) -> bytes:
    """Return the content of `entry.json`. Its keys are stored data: they keep the names that earlier versions gave them."""
    values = asdict(entry)
    if isinstance(entry, FileEntry):
        values[_STORED_VERSION] = values.pop("chunking_version")
    return json.dumps(values).encode()


def read_entry(folder: Path, kind: Kind) -> Entry | None:
    """Return the state that `folder` has in its `entry.json`, or None if that file cannot be read or understood."""
    try:
        if folder.is_symlink():
            return None
        values = read_json(folder / "entry.json")
        if kind is Kind.FILE:
            # Some versions before the first release wrote the name of the field.
            version = values[_STORED_VERSION] if _STORED_VERSION in values else values["chunking_version"]
            if version != CHUNKING_VERSION:
                return None
            return FileEntry(_size(values["size"]), _mtime(values["mtime"]), CHUNKING_VERSION)
        files = {_inner(name): (_size(size), _mtime(mtime)) for name, (size, mtime) in values["files"].items()}
        return TreeEntry(_mtime(values["mtime"]), _size(values["size"]), _size(values["stored_size"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a size is not a number of bytes")
    return value


def _mtime(value: object) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError("an mtime is not a number of nanoseconds")
    return value


def _inner(name: object) -> str:
    """Return the path of a file inside a tree. Raises ValueError for any other value: it is looked up on this machine."""
    if not isinstance(name, str) or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError("a path leads out of its tree")
    os.fsencode(name)
    return name


def _beside(path: Path) -> Path:
    """Return the path to which a second name of an entry leads, or `path` for a first name. Raises OSError.

    A second name may be a link, which leads to a name beside it and nowhere else. That name may be a link too.
    """
    for _ in range(_LINKS_LIMIT):
        if not path.is_symlink():
            return path
        target = os.readlink(path)  # noqa: PTH115  # a text, to see its slashes
        if "/" in target or target in {".", ".."}:
            break
        path = path.with_name(target)
    raise OSError(errno.ELOOP, "it leads out of its entry, or in a circle", str(path))


def unseal(root: Path) -> None:
    """Allow the owner to write to the files and folders of a tree again. Links are not followed. Raises OSError."""
    for folder, files, _ in _folders(str(root)):
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # no Path for each file of a large tree; others may read
        for file in files:
            os.chmod(file.path, file.stat().st_mode & 0o777 | stat.S_IWUSR)  # noqa: PTH101  # as above


class _Total:
    """Add up the sizes of the files and folders of a tree."""

    def __init__(self) -> None:
        self.size = 0
        self.stored_size = 0


def _sealed(root: str, total: _Total) -> Iterator[tuple[int, int, str]]:
    """Make a tree read-only, and yield size, mtime and path of each file in it."""
    for folder, files, prefix in _folders(root):
        for file in files:
            state = file.stat()
            os.chmod(file.path, 0o555 if state.st_mode & stat.S_IXUSR else 0o444)  # noqa: PTH101  # as above
            total.size += state.st_size
            total.stored_size += in_blocks(state.st_size)
            yield state.st_size, state.st_mtime_ns, prefix + file.name
        total.stored_size += BLOCK_SIZE
        os.chmod(folder, 0o555)  # noqa: PTH101, S103  # as above


def _folders(root: str) -> Iterator[tuple[str, list[os.DirEntry[str]], str]]:
    """Yield each folder of a tree, its files, and the prefix of their paths. Links are left out. Raises OSError."""
    waiting = [(root, "")]
    while waiting:
        folder, prefix = waiting.pop()
        with os.scandir(folder) as found:
            items = list(found)
        waiting += [(item.path, f"{prefix}{item.name}/") for item in items if item.is_dir(follow_symlinks=False)]
        yield folder, [item for item in items if item.is_file(follow_symlinks=False)], prefix
