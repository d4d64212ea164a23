"""A peer is a store, with commands to push into it and fetch from it, and its servers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.run import Command, Service, folder_bytes


class Peer:
    """One way of storing files. Every method returns the command that does it, or None if this peer cannot do it.

    A file is stored under its own name. Commands that fetch get an empty folder and write `fetched` in it.
    """

    name: ClassVar[str]
    checks: ClassVar[str] = "no"
    """Whether digests are checked at both ends: yes, no, half."""
    serves_many: ClassVar[bool] = True
    """Whether several fetches can run at the same time."""
    programs: ClassVar[Mapping[str, str]] = {}
    """A program that must be on PATH, and the Debian package that contains it."""

    def __init__(self, folder: Path, *, tools: Path) -> None:
        """`folder` is for its store; `tools` is kept after the measurement."""
        self.folder = folder
        self.store = folder / "store"
        self.tools = tools
        self.services: list[Service] = []

    @classmethod
    def prepare(cls, _tools: Path) -> str | None:
        """Prepare what every round needs. Return how to install the missing programs, or None."""
        missing = [package for program, package in cls.programs.items() if shutil.which(program) is None]
        return f"apt-get install {' '.join(dict.fromkeys(missing))}" if missing else None

    def start(self) -> None:
        """Make an empty store, and start its servers."""
        self.store.mkdir(parents=True)

    def stop(self) -> None:
        """End the servers and remove the store."""
        for service in self.services:
            service.stop()
        self.services.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stored_bytes(self) -> int:
        """Return the bytes that the store takes."""
        return folder_bytes(self.store)

    def adopt(self, path: Path) -> None:
        """Put a file into the store without pushing it, for peers that only fetch."""

    def forget(self, name: str) -> None:
        """Free the space of a file that is not fetched any more, if the peer keeps whole files."""

    def push(self, _path: Path) -> Command | None:
        """Store a file that is new, or partly new."""
        return None

    def push_again(self, path: Path) -> Command | None:
        """Store a stored file again, and read every byte."""
        return self.push(path)

    def push_known(self, _path: Path) -> Command | None:
        """Store a stored file again, recognised by its state."""
        return None

    def fetch(self, _name: str, _folder: Path) -> Command | None:
        """Fetch a file."""
        return None

    def fetched(self, name: str, folder: Path) -> Path:
        """Return the path to which `fetch` writes."""
        return folder / name

    def push_tree(self, _tree: Path) -> Command | None:
        """Store a folder."""
        return None

    def fetch_tree(self, _name: str, _folder: Path) -> Command | None:
        """Fetch a folder."""
        return None

    def fetched_tree(self, name: str, folder: Path) -> Path:
        """Return the path to which `fetch_tree` writes."""
        return folder / name


class Archiver(Peer):
    """A peer whose command for a file also accepts a folder."""

    def push_tree(self, tree: Path) -> Command | None:
        return self.push(tree)

    def fetch_tree(self, name: str, folder: Path) -> Command | None:
        return self.fetch(name, folder)


def shell(script: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Command:
    """Return a command that `sh` runs, with `arguments` as $1 and so on. It fails if any part fails."""
    return Command(["bash", "-euo", "pipefail", "-c", script, "bash", *arguments], environment or {})
