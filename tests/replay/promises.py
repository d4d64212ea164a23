"""What a process was told has happened: the marks in a log, and what a disk must hold after them."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from filestore.core.records import Record


@dataclass(slots=True)
class Promises:
    """What was acknowledged before a power cut. Nothing else is promised."""

    is_made: bool = False
    """The folder is a repository."""
    is_clean: bool = True
    """Nothing in the repository is damaged, also nothing that was not acknowledged."""
    stored: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Of each record that must be there, by its id: name, file digest, and the digest of its bytes."""
    removed: set[str] = field(default_factory=set)
    """The ids of records that must be gone."""
    paths: dict[str, set[str | None]] = field(default_factory=dict)
    """What may be at each path of a fetch, as `digest_of_path` says it. None means nothing."""
    is_backed_up: bool = False
    """The folder of backups has a backup with the records in `stored`."""

    def take(self, mark: str) -> None:
        """Take in a mark of the log."""
        values = json.loads(mark)
        what = values.pop("is")
        if what == "stored":
            self.stored[values["id"]] = values["name"], values["digest"], values["content"]
        elif what == "removing":
            self.stored.pop(values["id"], None)
        elif what == "removed":
            self.removed.add(values["id"])
        elif what in {"fetching", "fetched", "cached"}:
            self._take_path(what, values["path"], values["content"])
        elif what == "opening":
            self.is_clean = values["is_clean"]
            self.is_made = values["is_made"]
        elif what == "replacing-tree":
            # It is moved aside first, and the next fetch moves it back.
            self.paths[values["path"]].add(None)
        elif what == "made":
            self.is_made = True
        elif what == "clean":
            self.is_clean = True
        elif what == "backed-up":
            self.is_backed_up = True
        else:
            raise ValueError(mark)

    def _take_path(self, what: str, path: str, content: str) -> None:
        if what == "fetching":
            self.paths.setdefault(path, {None}).add(content)
        elif what == "fetched":
            self.paths[path] = {content}
        else:
            self.paths[path] = {content, None}  # a cache may lose entries

    @property
    def key(self) -> bytes:
        """The same for equal promises only."""
        paths = {path: sorted(map(str, contents)) for path, contents in self.paths.items()}
        values = [self.is_made, self.is_clean, self.is_backed_up, sorted(self.stored), sorted(self.removed), paths]
        return json.dumps(values, sort_keys=True).encode()


def mark(what: str, **values: Any) -> None:
    """Write a mark into the log of the recorder. It is true from now on. Without a recorder, do nothing."""
    recorder = ctypes.CDLL(None)
    if hasattr(recorder, "replay_mark"):
        recorder.replay_mark(json.dumps({"is": what, **values}).encode())


def mark_stored(record: Record, content: bytes) -> None:
    """Mark that a record with this content was acknowledged."""
    mark("stored", id=record.id, name=record.name, digest=str(record.digest), content=digest_of(content))


def digest_of(content: bytes) -> str:
    """Return the digest of bytes, by which promises name them."""
    return blake3(content).hexdigest()


def digest_of_path(path: Path) -> str | None:
    """Return the digest of a file, or of all names, bytes and links of a folder. Return None if nothing is there."""
    if path.is_symlink():
        return digest_of(b"link " + os.fsencode(path.readlink()))
    if path.is_file():
        return digest_of(path.read_bytes())
    if path.is_dir():
        return digest_of(json.dumps([(inner.name, digest_of_path(inner)) for inner in sorted(path.iterdir())]).encode())
    return None
