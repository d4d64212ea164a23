"""Log which files a process opens, by Python's audit events. No code can open a file without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class OpenLog:
    """Read a log of the paths that another process opened, one on a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[str]:
        """Return the paths that were opened since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        return new.decode(errors="surrogateescape").splitlines()


def log_opens(path: Path) -> None:
    """Append each path that this process opens from now on to the file `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            os.write(log, os.fsencode(arguments[0]) + b"\n")

    sys.addaudithook(note)
