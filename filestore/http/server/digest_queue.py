"""What waits for its secondary digests: the namespaces take turns, and the newest of each comes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from filestore.core.digest import Digest

WANTED_LIMIT = 1000
"""The most contents of a namespace that are remembered because somebody asked for them."""
DUE_LIMIT = 10_000
"""The most contents of a namespace that are remembered because they are due, after `add`."""


class Due(NamedTuple):
    """A stored file or tree whose digests are not known."""

    position: int
    """The position of its record: a larger one is newer."""
    digest: Digest


@dataclass(slots=True)
class _Waiting:
    """What waits in one namespace. The last one is taken first."""

    wanted: dict[Digest, None] = field(default_factory=dict)
    due: list[Due] = field(default_factory=list)


class DigestQueue:
    """Contents by namespaces. One may be in it twice: as one that was asked for, and as one that is due."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, _Waiting] = OrderedDict()
        """The first one has the next turn. Those without anything that waits are not in it."""

    def __len__(self) -> int:
        return sum(len(waiting.wanted) + len(waiting.due) for waiting in self._namespaces.values())

    @property
    def has_wanted(self) -> bool:
        """Whether somebody asked for something that waits."""
        return any(waiting.wanted for waiting in self._namespaces.values())

    @property
    def has_due(self) -> bool:
        """Whether something waits that nobody asked for."""
        return any(waiting.due for waiting in self._namespaces.values())

    def want(self, namespace: str, digest: Digest) -> None:
        """Put a content at the front of its namespace, before all that is due. It is left out if too many are there."""
        wanted = self._namespaces.setdefault(namespace, _Waiting()).wanted
        if wanted.pop(digest, digest) is None or len(wanted) < WANTED_LIMIT:
            wanted[digest] = None

    def add(self, namespace: str, found: Iterable[Due]) -> bool:
        """Add contents that are due. Return whether old ones were left out, because too many are there."""
        due = sorted({*self._namespaces.get(namespace, _Waiting()).due, *found})
        if not due:
            return False
        self._namespaces.setdefault(namespace, _Waiting()).due = due[-DUE_LIMIT:]
        return len(due) > DUE_LIMIT

    def take_wanted(self) -> tuple[str, Digest] | None:
        """Take what was asked for last, in the namespace whose turn it is. Return None if nothing was asked for."""
        for namespace, waiting in self._namespaces.items():
            if waiting.wanted:
                digest, _ = waiting.wanted.popitem()
                self._end_turn(namespace)
                return namespace, digest
        return None

    def take_due(self, *, not_in: str | None = None) -> tuple[str, Due] | None:
        """Take the newest content that is due, in the namespace whose turn it is. Return None if there is none."""
        for namespace, waiting in self._namespaces.items():
            if waiting.due and namespace != not_in:
                due = waiting.due.pop()
                self._end_turn(namespace)
                return namespace, due
        return None

    def _end_turn(self, namespace: str) -> None:
        self._namespaces.move_to_end(namespace)
        waiting = self._namespaces[namespace]
        if not waiting.wanted and not waiting.due:
            del self._namespaces[namespace]
