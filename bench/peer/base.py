"""What every peer is: a store that commands push into and fetch from, with the servers that it needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.run import Command, Service, folder_bytes


class Peer:
    """One way of storing files. Every method gives the command that does it, or None where this peer has no such thing.

    A file is stored under its own name. Commands that fetch get an empty folder and write `fetched` in it.
    """

    name: ClassVar[str]
    checks: ClassVar[str] = "no"
    """Whether digests are checked at both ends: yes, no, half."""
    serves_many: ClassVar[bool] = True
    """Whether several fetches may be under way at once."""
    programs: ClassVar[Mapping[str, str]] = {}
    """What must be on PATH, and the Debian package that brings it."""

    def __init__(self, folder: Path, *, tools: Path) -> None:
        """`folder` is for its store; `tools` outlives the run."""
        self.folder = folder
        self.store = folder / "store"
        self.tools = tools
        self.services: list[Service] = []

    @classmethod
    def prepare(cls, _tools: Path) -> str | None:
        """Get ready what every run of it needs; how to install what is absent, or None where all is there."""
        missing = [package for program, package in cls.programs.items() if shutil.which(program) is None]
        return f"apt-get install {' '.join(dict.fromkeys(missing))}" if missing else None

    def start(self) -> None:
        """Make an empty store, and start what serves it."""
        self.store.mkdir(parents=True)

    def stop(self) -> None:
        """End the servers and remove the store."""
        for service in self.services:
            service.stop()
        self.services.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stored_bytes(self) -> int:
        """Bytes that the store takes."""
        return folder_bytes(self.store)

    def adopt(self, path: Path) -> None:
        """Have a file in the store without pushing it, for peers that only fetch."""

    def forget(self, name: str) -> None:
        """Give the space of a file back that is not fetched any more, where the peer keeps whole files."""

    def push(self, _path: Path) -> Command | None:
        """Store a file that is new, or of which a part is."""
        return None

    def push_again(self, path: Path) -> Command | None:
        """Store a file that is stored, every byte read again."""
        return self.push(path)

    def push_known(self, _path: Path) -> Command | None:
        """Store a file that is stored, known by its state."""
        return None

    def fetch(self, _name: str, _folder: Path) -> Command | None:
        """Get a file back."""
        return None

    def fetched(self, name: str, folder: Path) -> Path:
        """Where `fetch` leaves it."""
        return folder / name

    def push_tree(self, _tree: Path) -> Command | None:
        """Store a folder."""
        return None

    def fetch_tree(self, _name: str, _folder: Path) -> Command | None:
        """Get a folder back."""
        return None

    def fetched_tree(self, name: str, folder: Path) -> Path:
        """Where `fetch_tree` leaves it."""
        return folder / name


class Archiver(Peer):
    """A peer that takes a folder by the very command that takes a file."""

    def push_tree(self, tree: Path) -> Command | None:
        return self.push(tree)

    def fetch_tree(self, name: str, folder: Path) -> Command | None:
        return self.fetch(name, folder)


def shell(script: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Command:
    """A command that `sh` runs, with `arguments` as $1 and so on; any part that fails fails the whole."""
    return Command(["bash", "-euo", "pipefail", "-c", script, "bash", *arguments], environment or {})
