"""Select the versions of a name that may be removed. `rm` and the policy of a namespace use the same rule. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from filestore.core.records import Record
from filestore.errors import InvalidInput

_SECOND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRule:
    """Which versions of a name may be removed. If both limits are given, a version must be outside both of them.

    The newest version is never selected.

    keep_last: How many of the newest versions are kept, at least 1.
    older_than_seconds: Versions that were stored later than this time ago are kept.
    """

    keep_last: int | None = None
    older_than_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise InvalidInput(f"{self.keep_last} versions cannot be kept; at least the newest one is")
        if self.older_than_seconds is not None and not self.older_than_seconds >= 0:
            raise InvalidInput(f"an age of {self.older_than_seconds} seconds is not possible; give a number from 0")

    @property
    def kept_count(self) -> int:
        """How many of the newest versions are kept in any case."""
        return self.keep_last or 1

    def updated_before(self, now: int) -> int | None:
        """Return the time before which a version was stored that may be removed. None if it may be of any time.

        `now` is the time of the repository's clock. Both are in microseconds since 1970.
        """
        return None if self.older_than_seconds is None else now - int(self.older_than_seconds * _SECOND)

    def select(self, versions: Iterable[Record], *, now: int, newer_count: int = 0) -> Iterator[Record]:
        """Yield the versions that may be removed, in the order of `versions`: versions of one name, the newest first.

        `now` is the time of the repository's clock. `newer_count` says how many versions of the name are newer than the
        first one of `versions`.
        """
        limit = self.updated_before(now)
        for place, version in enumerate(versions, newer_count):
            is_old = limit is None or version.updated_at < limit
            if place >= self.kept_count and is_old:
                yield version
