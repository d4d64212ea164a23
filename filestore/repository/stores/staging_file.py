"""The staging file of one frame or manifest on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filestore.core.digest import Buffer
from filestore.core.object_names import NO_OBJECT_ID
from filestore.core.unlocked import unlocked
from filestore.errors import Busy, StorageError
from filestore.repository.stores.disk_errors import translated
from filestore.repository.stores.staging_folder import StagingFolder
from filestore.system.files import read_at, sync_path, write_all


class DiskStaging:
    """A staging file: a frame that is being received. The file is made by the first write."""

    object_id = NO_OBJECT_ID

    def __init__(self, folder: StagingFolder, root: Path) -> None:
        self.size = 0
        self._folder = folder
        self._path = ""  # until the file exists
        self._root = root
        self._exists = False
        self._writing: int | None = None

    def write(self, data: Buffer) -> None:
        with translated(self._root):
            if self._writing is None:
                if self._exists:
                    with self._standing():
                        self._writing = unlocked(os.open, self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                else:
                    self._writing, self._path = self._folder.open_new()
                    self._exists = True
            write_all(self._writing, data)
            self.size += len(data)

    def rest(self) -> None:
        """Close the file until the next write. A batch may have more frames than a process may have open files."""
        writing, self._writing = self._writing, None
        if writing is not None:
            unlocked(os.close, writing)

    def read_into(self, buffer: memoryview) -> None:
        if not self._exists:
            return
        with translated(self._root), self._standing():
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                size = read_at(descriptor, buffer[: self.size], 0)
            finally:
                os.close(descriptor)
        if size != self.size:
            raise StorageError(self._path, "it is shorter than what was written to it")

    def sync(self) -> None:
        self.rest()
        if self._exists:
            with translated(self._root), self._standing():
                # A new descriptor reports write errors of the earlier ones, because none of them has reported any.
                sync_path(self._path)

    def discard(self) -> None:
        self.rest()
        if self._exists:
            self._exists = False
            with suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108  # a text, as everywhere here

    def link_to(self, path: Path) -> None:
        """Give the file the second name `path`. If that name already exists, do nothing. Raises OSError."""
        with suppress(FileExistsError), self._standing():
            os.link(self._path, path)

    def move_to(self, name: str, *, folder: int) -> None:
        """Rename the file to `name` in an open folder. It is then no longer a staging file: `discard` does nothing.

        Raises FileNotFoundError if the folder was removed, Busy as other methods do, OSError.
        """
        try:
            unlocked(_rename, self._path, name, folder)
        except FileNotFoundError:
            with self._standing():
                os.lstat(self._path)  # a text, as everywhere here
            raise
        self._exists = False

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """Raise Busy if somebody has removed the file. Another attempt writes it again."""
        try:
            yield
        except FileNotFoundError:
            raise Busy(str(self._root), "somebody removed the staging files in its folder tmp while they were written") from None


def _rename(path: str, name: str, folder: int) -> None:
    os.rename(path, name, dst_dir_fd=folder)  # relative to a folder
