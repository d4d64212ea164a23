"""What the repository of a trial must have: everything that was acknowledged and not removed."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from pathlib import Path

_BLOCK_SIZE = 96 << 10
_BLOCK_COUNT = 24
"""All actors take their blocks from these, so that their files share chunks."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file: some of the blocks of a trial, and a beginning of its own if it has a number."""

    seed: int
    blocks: tuple[int, ...]
    number: int = 0

    @property
    def data(self) -> bytes:
        """The bytes."""
        own = random.Random(f"{self.seed} own {self.number}").randbytes(_BLOCK_SIZE // 2) if self.number else b""
        return own + b"".join(random.Random(f"{self.seed} {block}").randbytes(_BLOCK_SIZE) for block in self.blocks)


def content_of(chance: random.Random, seed: int, *, number: int = 0) -> Content:
    """Return the content of the next file of an actor."""
    return Content(seed, tuple(chance.randrange(_BLOCK_COUNT) for _ in range(chance.randint(1, 4))), number)


class Model:
    """The stored files by their ids. All actors use it at once; each changes only its own files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Content] = {}
        self._removed: set[str] = set()

    def acknowledge(self, file_id: str, content: Content) -> None:
        """Note that a push printed this id and ended well."""
        with self._lock:
            self._kept[file_id] = content

    def remove(self, file_id: str) -> None:
        """Note that a file was removed, or that its removal was begun."""
        with self._lock:
            del self._kept[file_id]
            self._removed.add(file_id)

    @property
    def kept(self) -> dict[str, Content]:
        """What must be there."""
        with self._lock:
            return dict(self._kept)

    @property
    def removed(self) -> set[str]:
        """What must not be there. An id is never used again."""
        with self._lock:
            return set(self._removed)


def check_bytes(path: Path, content: Content, file_id: str) -> None:
    """Compare a fetched file with what was pushed."""
    if path.read_bytes() != content.data:
        raise AssertionError(f"{file_id} has other bytes than were pushed: {path}")
