"""What a chunk store must do. `tests/contracts/test_store.py` runs every rule against every implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO, Protocol

from filestore.core.digest import Buffer, Digest


class Staging(Protocol):
    """One frame on its way in: bytes that nobody sees yet. Owned by one caller; its methods block, call them in a thread."""

    size: int
    """Bytes written so far."""

    def write(self, data: Buffer) -> None:
        """Append. The caller may reuse `data` at once. Raises StorageError, StorageFull."""

    def rest(self) -> None:
        """Free what writing holds, until the next write. For a frame that is whole, or will not be soon."""

    def read_into(self, buffer: memoryview) -> None:
        """Copy all that was written to the start of `buffer`, which must be large enough. Raises StorageError."""

    def sync(self) -> None:
        """`rest`, and make durable what was written. Raises StorageError, StorageFull."""

    def discard(self) -> None:
        """Give up, and free the space. Does nothing after `publish` or a second time; never raises."""


class ChunkStore(Protocol):
    """Keeps frames and manifests by namespace and digest. All verbs are idempotent and may be cancelled at any await.

    A store does not verify: what it is given was verified at the repository's door, what it gives is verified by who decodes.
    """

    async def initialise(self, text: bytes) -> bytes:
        """Keep `text` as the repository's format file unless there is one; return the one that is kept, durable.

        Of two callers at once, both get the same answer.
        """

    def new_staging(self) -> Staging:
        """Begin a frame. Costs nothing until the first write."""

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Make synced frames readable under their digests, durably, replacing what is there (I1: the same content).

        Called inside an index's write transaction (I2), so that it excludes a collection's `remove`.
        """

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for reading, in the order asked; None where a frame is absent. The caller closes each.

        A file has a descriptor (`fileno`) where the store has one, for `sendfile`.
        """

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        """Bytes of each frame, in the order asked, without opening one; 0 where a frame is absent. Raises StorageError."""

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Read whole frames back to back into `buffer`; give each one's part of it, None where a frame is absent.

        `buffer` must hold them all: a frame is at most 8 bytes larger than its chunk. Raises ValueError when it is too small,
        StorageError when a disk fails.
        """

    async def remove(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Remove frames; an absent one is no error."""

    def digests(self, namespace: str) -> AsyncIterator[Digest]:
        """All frames of a namespace, in no order. What is published or removed meanwhile may be in it or not."""

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> None:
        """Keep a manifest, durably. Doing it again does nothing."""

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        """A manifest's bytes, or None."""

    async def remove_manifest(self, namespace: str, digest: Digest) -> None:
        """Remove a manifest; an absent one is no error."""

    def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        """All manifests of a namespace, as `digests` does."""

    async def close(self) -> None:
        """Free what the store holds. Frames staged and never published are discarded."""
