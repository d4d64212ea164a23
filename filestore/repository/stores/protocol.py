"""The protocol of a chunk store. `tests/contracts/test_store.py` runs every rule against every implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO, Protocol

from filestore.core.digest import Buffer, Digest


class Staging(Protocol):
    """One frame that is being received. No reader sees its bytes yet.

    It has one owner. Its methods block; call them in a thread.
    """

    size: int
    """The number of bytes written so far."""

    def write(self, data: Buffer) -> None:
        """Append `data`, which the caller may reuse at once. Raises StorageError, StorageFull."""

    def rest(self) -> None:
        """Free the resources of writing until the next write.

        Call it for a frame that is whole, or that is not whole for a while.
        """

    def read_into(self, buffer: memoryview) -> None:
        """Copy all written bytes to the start of `buffer`, which must be large enough. Raises StorageError."""

    def sync(self) -> None:
        """Call `rest`, and make all written bytes durable. Raises StorageError, StorageFull."""

    def discard(self) -> None:
        """Discard the frame and free the space. Does nothing after `publish` or at a second call; never raises."""


class ChunkStore(Protocol):
    """Keeps frames and manifests by namespace and digest. All verbs are idempotent and may be cancelled at any await.

    A store does not verify. Ingest verifies frames before the store gets them, and a reader verifies them when it
    decodes them.
    """

    async def initialise(self, text: bytes) -> bytes:
        """Keep `text` as the repository's format file unless there is one. Return the stored one, which is durable.

        Two callers at the same time get the same result.
        """

    def new_staging(self) -> Staging:
        """Start a frame. It needs no resources until the first write."""

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Make synced frames readable under their digests, durably, and replace existing ones (I1: the same content).

        Call it inside an index's write transaction (I2), so that it excludes a collection's `remove`.
        """

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for reading, in the order of `digests`; None for an absent frame. The caller closes each.

        A file has a descriptor (`fileno`) if the store has one, for `sendfile`.
        """

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        """Return the size of each frame in bytes, in the order of `digests`, without opening it; 0 for an absent frame.

        Raises StorageError.
        """

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Read whole frames into `buffer` without gaps; return each one's part of it, None for an absent frame.

        `buffer` must have space for all of them; a frame is at most 8 bytes larger than its chunk. Raises ValueError if
        it is too small, StorageError if a disk fails.
        """

    async def remove(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Remove frames. An absent frame is not an error."""

    def digests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all frames of a namespace, in any order.

        Frames that are published or removed meanwhile may be included or not.
        """

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> None:
        """Keep a manifest, durably. A second call does nothing."""

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        """Return a manifest's bytes, or None."""

    async def remove_manifest(self, namespace: str, digest: Digest) -> None:
        """Remove a manifest. An absent manifest is not an error."""

    def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all manifests of a namespace, as `digests` does."""

    async def close(self) -> None:
        """Free the store's resources. Frames that were staged and not published are discarded."""
