"""Give synced staging files their final names in a store on a disk, durably.

The folders are opened, and made where they do not exist, before the caller begins its write transaction. There the files are
renamed into the open folders, and then these are synced. So others wait for two calls for each file, and for one disk write in
most file systems: the first sync also writes the names in the other folders.

The name of a new folder is synced before a file is put into it. So the name of a folder that is not empty is always durable, in
every process and after any crash. A collection may remove an empty folder, and another process may make it again and not have
synced its name. A rename into the folder that was opened then fails, and it is opened again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from filestore.core.digest import Digest
from filestore.core.unlocked import unlocked
from filestore.repository.stores.disk_errors import translated
from filestore.repository.stores.staging_file import DiskStaging
from filestore.system.files import sync_descriptor, sync_path
from filestore.system.threads import run_in_parallel

T = TypeVar("T")

_ATTEMPTS = 100
_DAMAGED = "damaged"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SLOW_SECONDS = 0.0005
"""Calls that take longer wait for a disk, and several are made side by side."""


class StagedFile(NamedTuple):
    """A staging file, and its final name. Paths are texts, because this is made for each chunk, while other writers wait."""

    digest: Digest
    staging: DiskStaging
    folder: str
    name: str


class DiskPlacement:
    """The files of one transaction. Each has an open folder meanwhile, so there must not be too many of them."""

    def __init__(self, root: Path, files: Sequence[tuple[Digest, DiskStaging, str]]) -> None:
        """Each of `files` has a digest, a staging file, and a path."""
        self._root = root
        self._files = [StagedFile(digest, staging, *_divided(path)) for digest, staging, path in files]
        self._folders: dict[str, int] = {}
        self._renamed: set[str] = set()

    def prepare(self) -> None:
        with translated(self._root):
            call_each(self._open_folder, list(dict.fromkeys(file.folder for file in self._files)))

    def rename(self, digests: Container[Digest]) -> None:
        with translated(self._root):
            for file in self._files:
                if file.digest in digests:
                    self._rename(file)

    def sync(self) -> None:
        renamed, self._renamed = self._renamed, set()
        with translated(self._root):
            # I2: a name is durable with its folder; only then may the caller commit its row.
            call_each(sync_descriptor, [self._folders[folder] for folder in renamed])

    def close(self) -> None:
        while self._folders:
            _, descriptor = self._folders.popitem()
            os.close(descriptor)

    def place_all(self) -> None:
        """Do all steps."""
        try:
            self.prepare()
            self.rename({file.digest for file in self._files})
            self.sync()
        finally:
            self.close()

    def _rename(self, file: StagedFile) -> None:
        for attempt in range(_ATTEMPTS):
            # I3: the bytes were verified when they arrived, and synced. I1: what is replaced has the same content.
            try:
                file.staging.move_to(file.name, folder=self._folders[file.folder])
                break
            except (IsADirectoryError, FileNotFoundError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                if isinstance(error, IsADirectoryError):
                    set_aside(self._root, Path(file.folder, file.name))
                else:
                    # A collection has removed the folder while it was empty.
                    os.close(self._folders.pop(file.folder))
                    self._open_folder(file.folder)
        self._renamed.add(file.folder)

    def _open_folder(self, folder: str) -> None:
        """Open `folder`, whose name is then durable. Make it if it does not exist."""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    self._make_folder(folder)
                self._folders[folder] = self._opened(folder)
                break
            except (FileNotFoundError, NotADirectoryError):
                # It does not exist yet, or a collection has removed it or the one above.
                if attempt == _ATTEMPTS - 1:
                    raise

    def _opened(self, folder: str) -> int:
        descriptor = unlocked(os.open, folder, _FOLDER)
        try:
            if not _holds_something(descriptor):
                # Also where another process made the folder: it may not have come here yet, or have died before.
                sync_path(_divided(folder)[0])
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _make_folder(self, folder: str) -> None:
        """Make `folder` in a folder whose name is durable. Set aside what is in its place."""
        parent = _divided(folder)[0]
        if not _holds_something(parent):
            self._make_folder(parent)
            sync_path(_divided(parent)[0])
        try:
            unlocked(os.mkdir, folder, 0o700)
        except FileExistsError:
            path = Path(folder)
            if not path.is_dir():
                set_aside(self._root, path)
                path.mkdir(0o700, exist_ok=True)


def set_aside(root: Path, path: Path) -> Path:
    """Move what is at `path`, which is not a frame or manifest of ours, to the folder for damaged ones.

    Return where it is now. Nothing is removed, because it may be the only copy of something. Blocks. Raises OSError.
    """
    aside = root / _DAMAGED / f"{path.relative_to(root).as_posix().replace('/', '.')}.{secrets.token_hex(4)}"
    aside.parent.mkdir(0o700, exist_ok=True)
    path.rename(aside)
    sync_path(aside.parent)
    return aside


def call_each(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call `function` for each of `items`, in this thread as long as that is fast, and else side by side.

    A change of threads takes longer than a call that waits for no disk.
    """
    slow = 0
    for place, item in enumerate(items):
        began = time.perf_counter()
        function(item)
        slow += time.perf_counter() - began > _SLOW_SECONDS
        # The first sync of several often does the work of all.
        if slow > 1:
            run_in_parallel(function, items[place + 1 :])
            return


def _divided(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _holds_something(folder: str | int) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
