"""List what is in a directory: its files, empty folders and kept links, in the order of its zip.

Only names and states are looked at, never content. An entry that is not a file, a folder or a link is refused by name,
and so is a link that must not be followed. Excluded entries are not looked at.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from fnmatch import translate
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, overload

from filestore.errors import InvalidInput, NothingMatches, SourceChanged, SourceError, SourceRefused, SourceUnreadable
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.format.zip.write import Entry
from filestore.system.files import source_error, storage_errors
from filestore.transfer.sources.file import LEADS_NOWHERE, MAKE_READABLE, STATE_SIZE, FileState

ENTRIES_LIMIT = DEFAULT_LIMITS.entries
"""The largest number of files, links and folders in one directory. Links to folders can multiply them without end."""

NO_STATE = bytes(STATE_SIZE)
"""The packed state of a folder, and of a link that is kept."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHANGES = {
    errno.ENOENT: "it vanished",
    errno.ENOTDIR: "it is not a folder any more",
    errno.ELOOP: "it is not a folder any more",
    errno.EINVAL: "it is not a link any more",
}
"""What an error means for an entry that the walk has just seen."""
_OTHER_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}

LEAVE_OUT = "leave it out"
"""What to do about something in a directory that cannot be pushed."""
_LEAVE_SOME_OUT = "leave some of them out"
_KEEP = f"keep links as they are, or {LEAVE_OUT}"
_FOLLOW = f"follow it, or {LEAVE_OUT}"


class Symlinks(StrEnum):
    """What a push does with the symbolic links in a directory.

    The directory itself may always be reached through a link.

    INSIDE: Take the target of a link if it is inside the directory, and refuse any other link.
    FOLLOW: Take the target of a link, wherever it is.
    KEEP: Take the link itself. It must be relative and stay inside the directory, which is checked when the zip is
        made.
    REFUSE: Refuse every link.
    """

    INSIDE = "inside"
    FOLLOW = "follow"
    KEEP = "keep"
    REFUSE = "refuse"


class States(Sequence[FileState | None]):
    """The states of many files. They are kept packed, since the objects for 200,000 files would take 50 MB."""

    def __init__(self, packed: bytes | bytearray) -> None:
        """`packed` has the states one after the other, and zeros for an entry without a state."""
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

    @property
    def encoded(self) -> bytes:
        """All packed states, one after the other."""
        return self._packed

    def packed(self, place: int) -> bytes:
        """Return the packed state at a place. It is zeros for an entry without a state."""
        return self._packed[place * STATE_SIZE : (place + 1) * STATE_SIZE]

    def check(self, place: int, found: os.stat_result, path: str) -> None:
        """Raise SourceChanged unless `found` is the state at a place. The entry must have a state."""
        packed = self.packed(place)
        if packed != FileState.packed(found):
            FileState.unpack(packed).check(FileState.of(found), path)


class WalkResult(NamedTuple):
    """What the walk of a directory found."""

    root: Path
    entries: list[Entry]
    """In the order of the zip."""
    states: States
    """The state of each entry; None for folders and kept links."""
    elsewhere: dict[str, str]
    """The path of the content, without links in it, of each entry that was reached through a link. By the entry's
    name."""
    started_at: int
    """When the walk began, in nanoseconds since 1970."""
    beginning: str
    """The path of the directory, with one slash at its end."""

    def path(self, place: int) -> str:
        """Return the path of the content of an entry."""
        name = self.entries[place].name
        return self.elsewhere.get(name) or f"{self.beginning}{name}"


def checked_symlinks(symlinks: Symlinks | str) -> Symlinks:
    """Return the member that `symlinks` means. Raises InvalidInput."""
    try:
        return Symlinks(symlinks)
    except ValueError:
        raise InvalidInput(f"symlinks cannot be {symlinks!r}; give inside, follow, keep or refuse") from None


def walk(
    root: Path, *, symlinks: Symlinks | str = Symlinks.INSIDE, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> WalkResult:
    """List everything in the directory `root`. It blocks: call it in a thread.

    `include` and `exclude` are globs for paths relative to `root`. `*` also matches `/`, and case counts. A glob that
    matches a folder, or that ends with `/`, matches everything in that folder. With `include`, only entries that match
    one of its globs are taken. Entries that match one of `exclude` are never taken, and not looked at. The same rules
    hold for an empty folder. A folder that becomes empty by these rules is not taken. One text
    is one glob.

    Raises SourceUnreadable, SourceChanged, SourceRefused, NothingMatches; InvalidInput for `symlinks` that are not known.
    """
    symlinks = checked_symlinks(symlinks)
    # A text is a sequence too, whose items would be globs: a `*` in it would match everything.
    include, exclude = ([globs] if isinstance(globs, str) else globs for globs in (include, exclude))
    walking = _Walker(root, symlinks, include=_Globs(include) if include else None, exclude=_Globs(exclude))
    walking.run()
    if include and not walking.entries:
        raise NothingMatches(str(root), _in_words(include, exclude))
    return walking.result()


class _Globs:
    """Globs as in `fnmatch`, which can also match whole folders."""

    def __init__(self, globs: Sequence[str]) -> None:
        globs = [f"{glob}*" if glob.endswith("/") else glob for glob in globs]
        self._any = _compiled(globs)
        # A glob that ends with a star matches each path of which it matches the beginning.
        self._endless = _compiled([glob for glob in globs if glob.endswith("*")])
        self._beginnings = [re.split(r"[*?\[]", glob, maxsplit=1)[0] for glob in globs]

    def match(self, path: str, *, is_folder: bool) -> bool:
        """Return whether one of the globs matches a file, or a folder with everything in it."""
        return self._any.match(path) is not None or (is_folder and self._endless.match(f"{path}/") is not None)

    def may_match_in(self, folder: str) -> bool:
        """Return False if none of the globs can match anything in a folder."""
        return any(f"{folder}/".startswith(beginning) or beginning.startswith(f"{folder}/") for beginning in self._beginnings)


class _Folder(NamedTuple):
    """A folder that the walk has found."""

    path: str
    """Its path on the disk. There are no links in it if the folder was reached through one."""
    name: str
    """Its path in the tree. It is empty for the root."""
    identity: tuple[int, int]
    """Device and inode."""
    parent: _Folder | None
    is_elsewhere: bool
    """It was reached through a link."""
    is_included: bool
    """Everything in it is taken."""

    def inner(self, name: str) -> str:
        """Return the path in the tree of an entry in this folder."""
        return f"{self.name}/{name}" if self.name else name

    def is_within(self, identity: tuple[int, int]) -> bool:
        """Return whether this is that folder, or the walk came here through that folder."""
        folder: _Folder | None = self
        while folder is not None:
            if folder.identity == identity:
                return True
            folder = folder.parent
        return False


class _Walker:
    """The state of one walk: what was found, in any order, and the folders that are not visited yet."""

    def __init__(self, root: Path, symlinks: Symlinks, *, include: _Globs | None, exclude: _Globs) -> None:
        self.entries: list[Entry] = []
        self._packed = bytearray()
        self._elsewhere: dict[str, str] = {}
        self._root = root
        self._symlinks = symlinks
        self._include = include
        self._exclude = exclude
        self._folders: list[_Folder] = []
        self._started_at = time.time_ns()
        self._count = 0

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self._root)

    def run(self) -> None:
        """Visit all folders."""
        with storage_errors(self._root, translate=source_error):
            found = self._root.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise SourceUnreadable(str(self._root), "it is not a directory")
        self._folders.append(
            _Folder(str(self._root), "", _identity(found), None, is_elsewhere=False, is_included=self._include is None)
        )
        while self._folders:
            self._look_into(self._folders.pop())

    def result(self) -> WalkResult:
        """Return what was found, in order."""
        # By code points, which is also the order of the bytes of UTF-8.
        keys = [f"{entry.name}/" if entry.is_folder else entry.name for entry in self.entries]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        packed = bytearray(len(self._packed))
        for place, before in enumerate(order):
            state = self._packed[before * STATE_SIZE : (before + 1) * STATE_SIZE]
            packed[place * STATE_SIZE : (place + 1) * STATE_SIZE] = state
        return WalkResult(
            self._root,
            [self.entries[before] for before in order],
            States(packed),
            self._elsewhere,
            self._started_at,
            _beginning(self._root),
        )

    def _look_into(self, folder: _Folder) -> None:
        is_empty = True
        with self._open(folder) as descriptor, os.scandir(descriptor) as children:
            for child in children:
                is_empty = False
                self._look_at(folder, child)
        if is_empty and folder.is_included and folder.parent is not None:
            self._add(Entry(folder.name, is_folder=True), NO_STATE)

    @contextmanager
    def _open(self, folder: _Folder) -> Iterator[int]:
        """Open a folder that the walk found. Raise SourceChanged if another folder is at its path now."""
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
            # A link may lead to a folder. It is not followed to find that out.
            may_be_folder = is_folder or is_link
            if self._exclude.match(name, is_folder=may_be_folder) or not self._is_wanted(folder, name, is_folder=may_be_folder):
                return
            if is_link:
                self._take_link(folder, child, name)
            else:
                self._add_child(folder, name, f"{folder.path}/{child.name}", child.stat(follow_symlinks=False))
        except OSError as error:
            raise self._translated(error, name) from None

    def _take_link(self, folder: _Folder, child: os.DirEntry[str], name: str) -> None:
        path = f"{folder.path}/{child.name}"
        target = os.readlink(path)  # noqa: PTH115  # a Path would change the text: it drops `./`, for example
        if self._symlinks is Symlinks.KEEP:
            if self._is_wanted(folder, name, is_folder=False):
                self._keep(name, target)
            return
        found, reason, hint = _led_to(child)
        is_folder = found is not None and stat.S_ISDIR(found.st_mode)
        if not self._is_wanted(folder, name, is_folder=is_folder):
            return
        if self._symlinks is Symlinks.REFUSE:
            raise self._refused(name, f"it is a link to {target!r}; {_FOLLOW}", hint="symlinks-follow")
        if found is None:
            raise self._refused(name, f"it is a link to {target!r}, {reason}", hint=hint)
        real = os.path.realpath(path)
        if self._symlinks is Symlinks.INSIDE and not _is_within(real, self._real_root):
            reason = f"it is a link that leads out of the directory, to {real!r}; {_FOLLOW}"
            raise self._refused(name, reason, hint="symlinks-follow")
        if _identity(os.lstat(real)) != _identity(found):
            raise SourceChanged(self._shown(name), "it is a link that leads elsewhere now")
        self._add_child(folder, name, real, found, is_elsewhere=True)

    def _keep(self, name: str, target: str) -> None:
        if target.startswith("/"):
            reason = f"it is a link to {target!r}, which is another place on another machine; make it relative, or {_FOLLOW}"
            raise self._refused(name, reason, hint="symlinks-follow")
        # A link that leads out through other links is found later, when all links of the zip are checked.
        steps = (step for step in target.split("/") if step not in ("", "."))
        if len(list(takewhile("..".__eq__, steps))) > name.count("/"):
            reason = f"it is a link that leads out of the directory, to {target!r}; {_FOLLOW}"
            raise self._refused(name, reason, hint="symlinks-follow")
        try:
            size = len(target.encode())
        except UnicodeEncodeError:
            reason = f"it is a link to {target!r}, which is not UTF-8; {_FOLLOW}"
            raise self._refused(name, reason, hint="symlinks-follow") from None
        self._count_one()
        self._add(Entry(name, size, target=target), NO_STATE)

    def _add_child(self, folder: _Folder, name: str, path: str, found: os.stat_result, *, is_elsewhere: bool = False) -> None:
        """Take a file, or note a folder that is visited later. `is_elsewhere` says that a link led to it."""
        is_elsewhere = is_elsewhere or folder.is_elsewhere
        if stat.S_ISDIR(found.st_mode):
            if is_elsewhere and folder.is_within(_identity(found)):
                reason = f"links make it a part of itself, so that it has no end; {_KEEP}"
                raise self._refused(name, reason, hint="symlinks-keep")
            is_included = folder.is_included or self._is_included(name, is_folder=True)
            self._count_one()
            self._folders.append(_Folder(path, name, _identity(found), folder, is_elsewhere, is_included))
            return
        if not stat.S_ISREG(found.st_mode):
            kind = _OTHER_KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
            raise self._refused(name, f"it is {kind}, which has no content to keep; {LEAVE_OUT}", hint="exclude")
        self._count_one()
        if is_elsewhere:
            self._elsewhere[name] = path
        is_executable = bool(found.st_mode & stat.S_IXUSR)
        self._add(Entry(name, found.st_size, is_executable=is_executable), FileState.packed(found))

    def _is_wanted(self, folder: _Folder, name: str, *, is_folder: bool) -> bool:
        """Return whether an entry is taken, or whether something in it may be taken."""
        if folder.is_included or self._is_included(name, is_folder=is_folder):
            return True
        return is_folder and self._include is not None and self._include.may_match_in(name)

    def _is_included(self, name: str, *, is_folder: bool) -> bool:
        return self._include is None or self._include.match(name, is_folder=is_folder)

    def _add(self, entry: Entry, state: bytes) -> None:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise self._refused(entry.name, f"its name is not UTF-8; rename it, or {LEAVE_OUT}", hint="exclude") from None
        self.entries.append(entry)
        self._packed += state

    def _count_one(self) -> None:
        self._count += 1
        if self._count > ENTRIES_LIMIT:
            reason = f"it holds more than {ENTRIES_LIMIT} files, links and folders, those behind links counted; {_LEAVE_SOME_OUT}"
            raise self._refused("", reason, hint="exclude")

    def _shown(self, name: str) -> str:
        return shown_path(self._root, name)

    def _refused(self, name: str, reason: str, *, hint: str) -> SourceRefused:
        return SourceRefused(self._shown(name), reason, hint=hint)

    def _translated(self, error: OSError, name: str) -> SourceError:
        if error.errno in _CHANGES:
            return SourceChanged(self._shown(name), _CHANGES[error.errno])
        return SourceUnreadable(
            self._shown(name), unreadable_reason(error, LEAVE_OUT if name else ""), hint="exclude" if name else ""
        )


def shown_path(root: Path, name: str) -> str:
    """Return the path of the entry `name` as the user knows it. Bytes that are not UTF-8 are escaped as in Python."""
    path = f"{_beginning(root)}{name}" if name else str(root)
    return os.fsencode(path).decode(errors="backslashreplace")


def _beginning(root: Path) -> str:
    """Return the path of the directory `root` with one slash at its end, also for the root of the file system."""
    return f"{str(root).rstrip('/')}/"


def unreadable_reason(error: OSError, *ways: str) -> str:
    """Return why a file or a folder cannot be read, and what the user can do.

    The user can do one of the `ways`, or use `chmod` where this helps. Empty `ways` are left out.
    """
    found = [way for way in (MAKE_READABLE if isinstance(error, PermissionError) else "", *ways) if way]
    return f"{error.strerror or error}; {', or '.join(found)}" if found else error.strerror or str(error)


def _led_to(link: os.DirEntry[str]) -> tuple[os.stat_result | None, str, str]:
    """Return the status of the target of a link.

    Without a target, return None, the reason with advice, and the hint of the error.
    """
    try:
        return link.stat(), "", ""
    except OSError as error:
        if error.errno in LEADS_NOWHERE:
            return None, f"where nothing is; {_KEEP}", "symlinks-keep"
        if error.errno == errno.ELOOP:
            return None, f"which leads round in a circle, or through too many links; {LEAVE_OUT}", "exclude"
        raise


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _compiled(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, globs)) or r"(?!)")


def _in_words(include: Sequence[str], exclude: Sequence[str]) -> str:
    """Return both lists as a part of a sentence."""
    wanted = " or ".join(map(repr, include))
    return f"{wanted} and not {' or '.join(map(repr, exclude))}" if exclude else wanted
