"""Publications without frames, for tests of an index."""

from __future__ import annotations

from collections.abc import Container, Sequence

from filestore.core.digest import Digest, chunk_digest
from filestore.errors import QuotaExceeded, StorageError
from filestore.repository.index.protocol import ChunkRow


def rows(*numbers: int) -> list[ChunkRow]:
    """Return rows of different chunks."""
    return [ChunkRow(chunk_digest(b"%d" % number), 10, 10) for number in numbers]


class Frames:
    """A publication that notes its calls in a list that several share. It may have a limit, and fail at a step."""

    def __init__(
        self, calls: list[str], rows: Sequence[ChunkRow], *, fails_at: str = "", limit: int | None = None, namespace: str = "a"
    ) -> None:
        self.namespace = namespace
        self.rows = rows
        self.is_limited = limit is not None
        self.renamed: set[Digest] = set()
        self._calls = calls
        self._fails_at = fails_at
        self._limit = limit

    def prepare(self) -> None:
        self._note("prepare")

    def check(self, stored_size: int) -> None:
        if self._limit is not None and stored_size > self._limit:
            raise QuotaExceeded("bytes", stored_size, self._limit)

    def rename(self, digests: Container[Digest]) -> None:
        self._note("rename")
        self.renamed |= {row.digest for row in self.rows if row.digest in digests}

    def sync(self) -> None:
        self._note("sync")

    def close(self) -> None:
        self._note("close")

    def _note(self, step: str) -> None:
        self._calls.append(step)
        if step == self._fails_at:
            raise StorageError("a disk", f"it fails at {step}")
