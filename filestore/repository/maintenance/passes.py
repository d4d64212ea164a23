"""A pass reads the frames of a namespace in the order of their digests. A later one goes on where it stopped.

Digests are spread evenly. So a share of all possible digests is the same share of the chunks, and no chunk needs to be
counted. The state of a pass is kept in the index as JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.errors import InvalidDigest
from filestore.repository.index.protocol import ChunkRow, Index

SPACE = 1 << 8 * DIGEST_SIZE
"""The number of possible digests."""
DAMAGED_LIMIT = 1000
"""So many damaged chunks are remembered from pass to pass."""
_NUMBERS = ("begun_at", "read_count", "read_size", "damaged_count", "ended_at")
_DAY = 86_400_000_000
_PAGE = 1024
WINDOW_SIZE = 64 << 20
"""A pass can go on after each window of about so many bytes."""


class Window(NamedTuple):
    """Live rows that follow each other, and the place after them."""

    rows: list[ChunkRow]
    end: int


@dataclass(slots=True)
class Pass:
    """What a pass has read, and what it has left. Places are numbers from 0 to SPACE."""

    left: list[tuple[int, int]] = field(default_factory=list)
    """The half-open ranges of digests that are still to be read, in order."""
    next: int = 0
    """The place at which the next pass begins."""
    fraction: str = ""
    begun_at: int = 0
    """Microseconds since 1970."""
    read_count: int = 0
    read_size: int = 0
    damaged_count: int = 0
    """How many damaged chunks this pass has found."""
    ended_at: int = 0
    """When it ended, in microseconds since 1970. 0 while it is in progress."""
    damaged: dict[Digest, None] = field(default_factory=dict)
    """Chunks that this pass and earlier ones found damaged, at most DAMAGED_LIMIT. They may be repaired since."""
    last: dict[str, Any] = field(default_factory=dict)
    """The result of the pass before this one."""

    @property
    def share_read(self) -> float:
        """Which share of the pass was read, from 0 to 1."""
        return float(1 - Fraction(sum(end - start for start, end in self.left), SPACE))

    @property
    def last_ended_at(self) -> int:
        """When the last pass ended that came to its end, in microseconds since 1970. 0 if none did."""
        ended_at = self.last.get("ended_at", 0) if self.left else self.ended_at
        return ended_at if isinstance(ended_at, int) else 0

    @classmethod
    def load(cls, state: dict[str, Any] | None) -> Pass:
        """Make a pass from its state in the index. A state that is not valid is the same as none."""
        try:
            return cls._parse(state or {})
        except (KeyError, TypeError, ValueError, AttributeError, InvalidDigest):
            return cls()

    @classmethod
    def _parse(cls, state: dict[str, Any]) -> Pass:
        left = [(int(start, 16), int(end, 16)) for start, end in state.get("left", [])]
        if not all(0 <= start < end <= SPACE for start, end in left):
            raise ValueError("a range is not one")
        made = cls(
            left,
            int(state.get("next", "0"), 16) % SPACE,
            str(state.get("fraction", "")),
            last=dict(state.get("last", {})),
            damaged=dict.fromkeys(Digest(bytes.fromhex(text)) for text in state.get("damaged", [])),
        )
        for name in _NUMBERS:
            setattr(made, name, int(state.get(name, 0)))
        return made

    def as_json(self) -> dict[str, Any]:
        """Return the state for the index."""
        return {
            "left": [[f"{start:x}", f"{end:x}"] for start, end in self.left],
            "next": f"{self.next:x}",
            "fraction": self.fraction,
            **self._numbers(),
            "damaged": [str(digest) for digest in self.damaged],
            "last": self.last,
        }

    def summary(self, *, days: float) -> str:
        """Return a sentence about a pass that has ended, and should have taken `days`."""
        taken = (self.ended_at - self.begun_at) / _DAY
        late = f"; this should take {days:g} days, so raise its rate" if taken > 1.1 * days else ""
        return (
            f"read {self.read_count} chunks with {self.read_size} bytes in {taken:.1f} days,"
            f" and {self.damaged_count} of them are damaged{late}"
        )

    def _numbers(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _NUMBERS}

    def begin(self, fraction: Fraction, *, now: int) -> bool:
        """Prepare to read `fraction` of the chunks. Return True if this continues an interrupted pass.

        It does if that one had to read the same fraction. Otherwise a new pass begins where the last one stopped.
        """
        if self.left and self.fraction == str(fraction):
            return True
        start = self.left[0][0] if self.left else self.next
        end = start + max(1, int(SPACE * fraction))
        self.left = [(start, min(end, SPACE))]
        if end > SPACE:
            self.left.append((0, end - SPACE))
        if self.ended_at:
            self.last = self._numbers()
        self.fraction, self.begun_at = str(fraction), now
        self.read_count = self.read_size = self.damaged_count = self.ended_at = 0
        return False

    def advance(self, window: Window, *, now: int) -> None:
        """Take note that the rows of `window`, which is the first one that is left, were read."""
        _, end = self.left[0]
        self.left[0] = (window.end, end)
        if window.end >= end:
            del self.left[0]
            self.next = end % SPACE
            self.ended_at = 0 if self.left else now
        self.read_count += len(window.rows)
        self.read_size += sum(row.stored_size for row in window.rows)

    def note(self, digest: Digest, *, is_damaged: bool) -> None:
        """Remember a damaged chunk, or forget one that is intact again."""
        if not is_damaged:
            self.damaged.pop(digest, None)
            return
        self.damaged_count += 1
        if len(self.damaged) < DAMAGED_LIMIT:
            self.damaged[digest] = None

    async def windows(
        self, index: Index, namespace: str, *, size: int = WINDOW_SIZE, until: int | None = None
    ) -> AsyncIterator[Window]:
        """Yield windows of rows with about `size` bytes until nothing is left, or the place `until` is reached.

        The caller calls `advance` for each before it takes the next.
        """
        while self.left:
            start, end = self.left[0]
            if until is not None and start >= until:
                return
            yield await _window(index, namespace, start, end if until is None else min(end, until), size)


async def _window(index: Index, namespace: str, start: int, end: int, limit: int) -> Window:
    page = await index.chunk_rows(namespace, digest_at(start - 1), limit=_PAGE)
    rows: list[ChunkRow] = []
    size = 0
    for row, is_live, _ in page:
        place = int.from_bytes(row.digest, "big")
        if place >= end:
            return Window(rows, end)
        if size >= limit:
            return Window(rows, place)
        if is_live:
            rows.append(row)
            size += row.stored_size
    if len(page) < _PAGE:
        return Window(rows, end)
    return Window(rows, int.from_bytes(page[-1].row.digest, "big") + 1)


def digest_at(place: int) -> Digest | None:
    """Return the digest at a place. Return None for -1, the place before the first digest."""
    return None if place < 0 else Digest(place.to_bytes(DIGEST_SIZE, "big"))
