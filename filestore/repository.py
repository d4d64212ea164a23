"""A repository: a chunk store and an index behind a few verbs, and the order between them.

Invariants I1 to I9 are stated in `ARCHITECTURE.md` and cited here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from filestore.digest import Digest
from filestore.objects import Frame, Kind, Record, Reference

REPOSITORY_VERSION = 1


class Identity(NamedTuple):
    """What a repository says of itself. Caches and journals key what they keep by `id` and `namespace`."""

    id: str
    """32 hex digits, made with the repository."""
    namespace: str
    cutting: int
    """The cutting version that pushers follow."""


class Repository(Protocol):
    """A folder here, or a server across HTTP: callers cannot tell which.

    All verbs are idempotent and may be cancelled at any await: then the whole of something is there, or nothing of it.
    `tests/contracts/test_repository.py` runs every rule against every implementation.
    """

    @property
    def location(self) -> str:
        """What a user calls it: a URL, or the path of a folder."""

    async def identity(self) -> Identity:
        """Asked once, then remembered. Raises UnknownFormat for a repository of another version."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` that must be sent, once each, in order. What is reported present stays for the grace period (I9)."""

    async def put(self, frames: Sequence[Frame]) -> None:
        """Keep frames, durably; each is verified first (I4). The caller may reuse their memory afterwards.

        Raises InvalidFrame for the first that does not decode to its digest; the whole ones before and after it may be kept.
        """

    async def get(self, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Read frames into `buffer`, one after the other; give each one's part of it, None where a chunk is absent.

        `buffer` must hold decoded sizes and 8 bytes a frame. Frames are not verified: whoever decodes them does that.
        """

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        """Record a file whose chunks were put. The same manifest, name and kind again is the same record, now the newest.

        Raises ChunksMissing with what must be sent first, InvalidManifest, InvalidName, LimitExceeded.
        """

    async def manifest(self, digest: Digest) -> bytes:
        """The canonical bytes of a file's manifest, verified. Raises NotFound, InvalidManifest."""

    async def record(self, reference: Reference) -> Record:
        """The newest record that `reference` means. Raises NotFound."""

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Records from the newest down; with `before`, those with an earlier `updated_at`, for the next page."""

    async def remove(self, file_id: str) -> Record:
        """Remove a record; its chunks go with a later collection. Raises NotFound."""

    async def close(self) -> None:
        """Free connections and files. No verb may be called afterwards."""
