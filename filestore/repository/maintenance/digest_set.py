"""A set of digests that takes little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filestore.core.digest import DIGEST_SIZE, Digest

if TYPE_CHECKING:  # importing numpy takes 0.15 s
    import numpy as np
    from numpy.typing import NDArray

_PREFIX_SIZE = 8
_ENTRY = [("prefix", "<u8"), ("rest", f"V{DIGEST_SIZE - _PREFIX_SIZE}"), ("size", "<u4")]


class DigestSet:
    """A set that knows the first 8 bytes of each digest.

    It takes about 8 bytes for each, so that ten million of them fit. Two chunks of one repository have the same 8 bytes
    with a chance of one in 10^19 for each pair. Use it only for reports.
    """

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._sorted: NDArray[np.uint64] | None = None

    def __bool__(self) -> bool:
        return bool(self._new) or self._sorted is not None

    def add(self, digest: Digest) -> None:
        """Add a digest."""
        self._new.add(_prefix(digest))
        if len(self._new) >= 1 << 17:
            self._merge()

    def __contains__(self, digest: Digest) -> bool:
        if _prefix(digest) in self._new:
            return True
        if self._sorted is None:
            return False
        place = int(self._sorted.searchsorted(self._sorted.dtype.type(_prefix(digest))))
        return place < len(self._sorted) and int(self._sorted[place]) == _prefix(digest)

    def count_in(self, entries: memoryview) -> int:
        """Return how many different chunks of a manifest are in this set. `entries` is `Chunks.encoded`."""
        if not self:
            return 0
        import numpy as np  # noqa: PLC0415  # on first use

        self._merge()
        assert self._sorted is not None  # noqa: S101  # it has merged something
        prefixes = np.unique(np.frombuffer(entries, dtype=_ENTRY)["prefix"])
        return int(np.isin(prefixes, self._sorted).sum())

    def _merge(self) -> None:
        if not self._new:
            return
        import numpy as np  # noqa: PLC0415  # on first use

        new = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
        self._new = set()
        self._sorted = np.unique(new if self._sorted is None else np.concatenate((self._sorted, new)))


def _prefix(digest: Digest) -> int:
    return int.from_bytes(digest[:_PREFIX_SIZE], "little")
