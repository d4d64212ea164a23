"""Notice that a file of an open index was replaced or removed.

SQLite does not notice it: it goes on with the files that it has open, and a second process uses the new ones. So two
processes could write without knowing of each other. The files are compared by `stat`, because closing any descriptor
of them would drop the locks of this process.

While a connection in write-ahead mode is open, SQLite removes none of the three files. So a change of one of them was
made by another program.

Source: https://www.sqlite.org/howtocorrupt.html, sections 2.2 and 2.4.
"""

from __future__ import annotations

import os
from pathlib import Path

from filestore.errors import IndexReplaced
from filestore.repository.index.reading import LOG, SHARED_MEMORY

FileId = tuple[int, int]
"""The device and the inode of a file."""


def file_id(path: str) -> FileId | None:
    """Return the id of the file at `path`, or None if it does not exist. Blocks. Raises OSError."""
    try:
        found = os.stat(path)  # noqa: PTH116  # before and after each write: a Path takes three times as long
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class OpenFiles:
    """The files that a connection has open: the index, and after the first write its log and its shared memory.

    Make it right after the connection was opened.
    """

    def __init__(self, path: str) -> None:
        # The process may change its current folder.
        self._path = os.path.abspath(path)  # noqa: PTH100  # a text, which `os.stat` takes fastest
        self._index = file_id(path)
        self._others: list[tuple[str, FileId | None]] = []

    def is_index_replaced(self) -> bool:
        """Return whether another file, or none, has the name of the index. Blocks. Raises OSError."""
        return self._index != file_id(self._path)

    def check(self) -> None:
        """Raise IndexReplaced if a file was replaced or removed. The connection must have begun a write. Blocks."""
        if not self._others:
            self._others = [(path, file_id(path)) for path in (self._path + LOG, self._path + SHARED_MEMORY)]
        for path, known in ((self._path, self._index), *self._others):
            found = file_id(path)
            if found is None or found != known:
                how = "removed" if found is None else "replaced by another file"
                name = "it" if path == self._path else f"its file {Path(path).name}"
                raise IndexReplaced(self._path, f"{name} was {how} while this process had it open")
