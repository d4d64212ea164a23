"""What a directory holds: its files, empty folders and kept links, in the order of the zip that stands for it.

Names and states are looked at, never content. What is neither file, folder nor link is refused by name, and so is a link
that must not be followed; only what is excluded is not looked at.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from fnmatch import translate
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, overload

from filestore.errors import NothingMatches, SourceChanged, SourceError, SourceRefused, SourceUnreadable
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.format.zip.write import Entry
from filestore.transfer.sources.file import MAKE_READABLE, STATE_SIZE, FileState

ENTRIES_LIMIT = DEFAULT_LIMITS.entries
"""Files, links and folders of one directory: links to folders can multiply what there is without end."""

NO_STATE = bytes(STATE_SIZE)
"""The packed state of a folder, and of a link that is kept."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHANGES = {
    errno.ENOENT: "it vanished",
    errno.ENOTDIR: "it is no folder any more",
    errno.ELOOP: "it is no folder any more",
    errno.EINVAL: "it is no link any more",
}
"""What an error means for something that was just seen to be there."""
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR)
_OTHER_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}

LEAVE_OUT = "leave it out with `--exclude`"
"""What to do about something in a directory that cannot be pushed."""
_LEAVE_SOME_OUT = "leave some of them out with `--exclude`"
_KEEP = f"keep links as they are with `--symlinks keep`, or {LEAVE_OUT}"
_FOLLOW = f"follow it with `--symlinks follow`, or {LEAVE_OUT}"


class Symlinks(StrEnum):
    """What becomes of the symbolic links in a directory. The directory itself may be reached through one under any."""

    INSIDE = "inside"
    """What they lead to, where that lies in the directory in the end; any other link is refused."""
    FOLLOW = "follow"
    """What they lead to, wherever that is."""
    KEEP = "keep"
    """The same links. They must be relative and stay inside, which whoever makes the zip checks."""
    REFUSE = "refuse"
    """None is taken."""


class States(Sequence[FileState | None]):
    """The states of many files, each made when it is asked for: kept as objects, those of 200,000 would take 50 MB."""

    def __init__(self, packed: bytes | bytearray) -> None:
        """`packed`: states one after the other; zeros for what has none."""
        self._packed = bytes(packed)

    def __len__(self) -> int:
        return len(self._packed) // STATE_SIZE

    @overload
    def __getitem__(self, place: int) -> FileState | None: ...
    @overload
    def __getitem__(self, place: slice) -> list[FileState | None]: ...
    def __getitem__(self, place: int | slice) -> FileState | list[FileState | None] | None:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        packed = self.packed(range(len(self))[place])
        return FileState.unpack(packed) if packed != NO_STATE else None

    def packed(self, place: int) -> bytes:
        """The state at a place, packed; zeros for what has none."""
        return self._packed[place * STATE_SIZE : (place + 1) * STATE_SIZE]

    def check(self, place: int, found: os.stat_result, path: str) -> None:
        """Raises SourceChanged unless the file at a place, which has a state, is in it by what `stat` found."""
        packed = self.packed(place)
        if packed != FileState.packed(found):
            FileState.unpack(packed).check(FileState.of(found), path)


class WalkResult(NamedTuple):
    """What a directory held when it was looked at."""

    root: Path
    entries: list[Entry]
    """In the order of the archive."""
    states: States
    """Of each entry; None for folders and kept links."""
    elsewhere: dict[str, str]
    """By the name of an entry where its content lies, free of links, if it was reached through one."""

    def path(self, place: int) -> str:
        """Where the content of an entry lies."""
        name = self.entries[place].name
        return self.elsewhere.get(name) or f"{self.root}/{name}"


def walk(
    root: Path, *, symlinks: Symlinks = Symlinks.INSIDE, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> WalkResult:
    """Look at all that lies in the directory `root`. Blocks: call it in a thread.

    `include` and `exclude` are globs for paths relative to `root`, in which `*` matches `/` too, and case counts. A folder that
    matches stands for all that lies in it, and so does a glob with a `/` at its end. Where `include` is given, only what
    matches one of its globs is taken; what matches one of `exclude` never is, and is not looked at. An empty folder is taken by
    the same rule, and one that becomes empty by it is not.

    Raises SourceUnreadable, SourceChanged, SourceRefused, NothingMatches.
    """
    walking = _Walker(root, symlinks, include=_Globs(include) if include else None, exclude=_Globs(exclude))
    walking.run()
    if include and not walking.entries:
        raise NothingMatches(str(root), _described(include, exclude))
    return walking.result()


class _Globs:
    """Patterns as `fnmatch` has them, and for whole folders."""

    def __init__(self, globs: Sequence[str]) -> None:
        globs = [f"{glob}*" if glob.endswith("/") else glob for glob in globs]
        self._any = _compiled(globs)
        # What matches a beginning of a path, and ends with a star, matches the path.
        self._endless = _compiled([glob for glob in globs if glob.endswith("*")])
        self._beginnings = [re.split(r"[*?\[]", glob, maxsplit=1)[0] for glob in globs]

    def match(self, path: str, *, is_folder: bool) -> bool:
        """Whether one of them stands for a file, or for a folder with all that lies in it."""
        return self._any.match(path) is not None or (is_folder and self._endless.match(f"{path}/") is not None)

    def may_match_in(self, folder: str) -> bool:
        """False if none can stand for anything in a folder."""
        return any(f"{folder}/".startswith(beginning) or beginning.startswith(f"{folder}/") for beginning in self._beginnings)


class _Folder(NamedTuple):
    """A folder on the way down."""

    path: str
    """Where it lies; free of links if it was reached through one."""
    name: str
    """Its path in the tree. The root's is empty."""
    identity: tuple[int, int]
    """Device and inode."""
    parent: _Folder | None
    is_elsewhere: bool
    """It was reached through a link."""
    is_included: bool
    """All that lies in it is taken."""

    def inner(self, name: str) -> str:
        """The path in the tree of what lies in it."""
        return f"{self.name}/{name}" if self.name else name

    def lies_in(self, identity: tuple[int, int]) -> bool:
        """Whether it is that folder, or lies in it, as the walk came there."""
        folder: _Folder | None = self
        while folder is not None:
            if folder.identity == identity:
                return True
            folder = folder.parent
        return False


class _Walker:
    """One walk: what was found, in any order, and the folders that are still to be looked into."""

    def __init__(self, root: Path, symlinks: Symlinks, *, include: _Globs | None, exclude: _Globs) -> None:
        self.entries: list[Entry] = []
        self._packed = bytearray()
        self._elsewhere: dict[str, str] = {}
        self._root = root
        self._symlinks = symlinks
        self._include = include
        self._exclude = exclude
        self._folders: list[_Folder] = []
        self._count = 0

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self._root)

    def run(self) -> None:
        """Look at everything."""
        try:
            found = self._root.stat()
        except OSError as error:
            raise SourceUnreadable(str(self._root), error.strerror or str(error)) from None
        if not stat.S_ISDIR(found.st_mode):
            raise SourceUnreadable(str(self._root), "it is no directory")
        self._folders.append(
            _Folder(str(self._root), "", _identity(found), None, is_elsewhere=False, is_included=self._include is None)
        )
        while self._folders:
            self._look_into(self._folders.pop())

    def result(self) -> WalkResult:
        """What was found, in order."""
        # By code points, which is the order of the bytes of UTF-8.
        keys = [f"{entry.name}/" if entry.is_folder else entry.name for entry in self.entries]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        packed = bytearray(len(self._packed))
        for place, before in enumerate(order):
            state = self._packed[before * STATE_SIZE : (before + 1) * STATE_SIZE]
            packed[place * STATE_SIZE : (place + 1) * STATE_SIZE] = state
        return WalkResult(self._root, [self.entries[before] for before in order], States(packed), self._elsewhere)

    def _look_into(self, folder: _Folder) -> None:
        is_empty = True
        with self._opened(folder) as descriptor, os.scandir(descriptor) as children:
            for child in children:
                is_empty = False
                self._look_at(folder, child)
        if is_empty and folder.is_included and folder.parent is not None:
            self._add(Entry(folder.name, is_folder=True), NO_STATE)

    @contextmanager
    def _opened(self, folder: _Folder) -> Iterator[int]:
        """The descriptor of the very folder that was found, whatever stands at its path by now."""
        link_flag = os.O_NOFOLLOW if folder.parent is not None else 0
        try:
            descriptor = os.open(folder.path, _FOLDER_FLAGS | link_flag)
            try:
                if _identity(os.fstat(descriptor)) != folder.identity:
                    raise SourceChanged(self._shown(folder.name), "another folder was put in its place")
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._translated(error, folder.name) from None

    def _look_at(self, folder: _Folder, child: os.DirEntry[str]) -> None:
        name = folder.inner(child.name)
        try:
            is_link = child.is_symlink()
            is_folder = not is_link and child.is_dir(follow_symlinks=False)
            # A link may lead to a folder, and is not to be followed to find that out.
            may_be_folder = is_folder or is_link
            if self._exclude.match(name, is_folder=may_be_folder) or not self._is_wanted(folder, name, is_folder=may_be_folder):
                return
            if is_link:
                self._take_link(folder, child, name)
            else:
                self._take(folder, name, f"{folder.path}/{child.name}", child.stat(follow_symlinks=False))
        except OSError as error:
            raise self._translated(error, name) from None

    def _take_link(self, folder: _Folder, child: os.DirEntry[str], name: str) -> None:
        path = f"{folder.path}/{child.name}"
        target = os.readlink(path)  # noqa: PTH115  # its Path would be another text: without `./`, for one
        if self._symlinks is Symlinks.KEEP:
            if self._is_wanted(folder, name, is_folder=False):
                self._keep(name, target)
            return
        found, reason = _led_to(child)
        is_folder = found is not None and stat.S_ISDIR(found.st_mode)
        if not self._is_wanted(folder, name, is_folder=is_folder):
            return
        if self._symlinks is Symlinks.REFUSE:
            raise self._refused(name, f"it is a link to {target!r}; {_FOLLOW}")
        if found is None:
            raise self._refused(name, f"it is a link to {target!r}, {reason}")
        real = os.path.realpath(path)
        if self._symlinks is Symlinks.INSIDE and not _lies_in(real, self._real_root):
            raise self._refused(name, f"it is a link that leads out of the directory, to {real!r}; {_FOLLOW}")
        if _identity(os.lstat(real)) != _identity(found):
            raise SourceChanged(self._shown(name), "it is a link that leads elsewhere now")
        self._take(folder, name, real, found, is_elsewhere=True)

    def _keep(self, name: str, target: str) -> None:
        if target.startswith("/"):
            reason = f"it is a link to {target!r}, which is another place on another machine; make it relative, or {_FOLLOW}"
            raise self._refused(name, reason)
        # What leads out by way of other links is found where the whole archive is looked at.
        steps = (step for step in target.split("/") if step not in ("", "."))
        if len(list(takewhile("..".__eq__, steps))) > name.count("/"):
            raise self._refused(name, f"it is a link that leads out of the directory, to {target!r}; {_FOLLOW}")
        try:
            size = len(target.encode())
        except UnicodeEncodeError:
            raise self._refused(name, f"it is a link to {target!r}, which is not UTF-8; {_FOLLOW}") from None
        self._count_one()
        self._add(Entry(name, size, target=target), NO_STATE)

    def _take(self, folder: _Folder, name: str, path: str, found: os.stat_result, *, is_elsewhere: bool = False) -> None:
        """Take a file, or note a folder to be looked into. `is_elsewhere`: it was a link that led to it."""
        is_elsewhere = is_elsewhere or folder.is_elsewhere
        if stat.S_ISDIR(found.st_mode):
            if is_elsewhere and folder.lies_in(_identity(found)):
                raise self._refused(name, f"by way of links it lies in itself, and so has no end; {_KEEP}")
            is_included = folder.is_included or self._is_included(name, is_folder=True)
            self._count_one()
            self._folders.append(_Folder(path, name, _identity(found), folder, is_elsewhere, is_included))
            return
        if not stat.S_ISREG(found.st_mode):
            kind = _OTHER_KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
            raise self._refused(name, f"it is {kind}, which has no content to keep; {LEAVE_OUT}")
        self._count_one()
        if is_elsewhere:
            self._elsewhere[name] = path
        is_executable = bool(found.st_mode & stat.S_IXUSR)
        self._add(Entry(name, found.st_size, is_executable=is_executable), FileState.packed(found))

    def _is_wanted(self, folder: _Folder, name: str, *, is_folder: bool) -> bool:
        """Whether something is taken, or something may be that lies in it."""
        if folder.is_included or self._is_included(name, is_folder=is_folder):
            return True
        return is_folder and self._include is not None and self._include.may_match_in(name)

    def _is_included(self, name: str, *, is_folder: bool) -> bool:
        return self._include is None or self._include.match(name, is_folder=is_folder)

    def _add(self, entry: Entry, state: bytes) -> None:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise self._refused(entry.name, f"its name is not UTF-8; rename it, or {LEAVE_OUT}") from None
        self.entries.append(entry)
        self._packed += state

    def _count_one(self) -> None:
        self._count += 1
        if self._count > ENTRIES_LIMIT:
            reason = f"it holds more than {ENTRIES_LIMIT} files, links and folders, those behind links counted; {_LEAVE_SOME_OUT}"
            raise self._refused("", reason)

    def _shown(self, name: str) -> str:
        return shown_path(self._root, name)

    def _refused(self, name: str, reason: str) -> SourceRefused:
        return SourceRefused(self._shown(name), reason)

    def _translated(self, error: OSError, name: str) -> SourceError:
        if error.errno in _CHANGES:
            return SourceChanged(self._shown(name), _CHANGES[error.errno])
        return SourceUnreadable(self._shown(name), unreadable_reason(error, LEAVE_OUT if name else ""))


def shown_path(root: Path, name: str) -> str:
    """The path by which the user knows what lies at `name`; bytes that are not UTF-8 as Python writes them."""
    path = f"{root}/{name}" if name else str(root)
    return os.fsencode(path).decode(errors="backslashreplace")


def unreadable_reason(error: OSError, *ways: str) -> str:
    """Why something that is there cannot be read, and what can be done about it: one of the `ways` that are not empty."""
    found = [way for way in (MAKE_READABLE if isinstance(error, PermissionError) else "", *ways) if way]
    return f"{error.strerror or error}; {', or '.join(found)}" if found else error.strerror or str(error)


def _led_to(link: os.DirEntry[str]) -> tuple[os.stat_result | None, str]:
    """What a link leads to; if that is nothing, why, and what to do."""
    try:
        return link.stat(), ""
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return None, f"where nothing is; {_KEEP}"
        if error.errno == errno.ELOOP:
            return None, f"which leads round in a circle, or through too many links; {LEAVE_OUT}"
        raise


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _compiled(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, globs)) or r"(?!)")


def _described(include: Sequence[str], exclude: Sequence[str]) -> str:
    """The two as a sentence has them."""
    wanted = " or ".join(map(repr, include))
    return f"{wanted} and not {' or '.join(map(repr, exclude))}" if exclude else wanted
