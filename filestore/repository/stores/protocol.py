"""The protocol of a chunk store. `tests/contracts/test_store.py` runs every rule against every implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import ObjectName
from filestore.repository.stores.temporary import TemporaryObjects

T = TypeVar("T")

PUBLISHED_WITHIN_SECONDS = 3600
"""How old an object may be when a transaction names it. `remove_abandoned` removes unnamed ones that are several times as old."""


class FrameProblem(StrEnum):
    """Why a frame cannot be read.

    MISSING: There is nothing under its digest.
    NO_FILE: Something else is in its place: a folder, a device, or a link that leads nowhere.
    UNREADABLE: The disk cannot read it.
    """

    MISSING = "missing"
    NO_FILE = "no-file"
    UNREADABLE = "unreadable"


class DiskState(NamedTuple):
    """The disk of a store, in bytes."""

    size: int
    free: int
    min_free: int
    """So many bytes stay free."""


class FrameUrl(NamedTuple):
    """Where a frame can be read without a server of ours."""

    url: str
    size: int
    """Bytes of the frame."""


class FrameState(NamedTuple):
    """What a store has under the digest of a chunk."""

    size: int
    """Its size in bytes. 0 if there is a problem."""
    problem: FrameProblem | None = None
    reason: str = ""
    """The problem as a clause, such as `a folder is in its place`."""


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed."""

    count: int
    size: int
    """Bytes of the files."""


NOTHING_REMOVED = Removed(0, 0)


class Staging(Protocol):
    """A frame that is being received. Readers cannot see it before `ChunkStore.publish`.

    Only one owner may use the object. Its methods block, so call them in a thread.
    """

    size: int
    """The number of bytes that were written so far."""
    object_id: bytes
    """The id of the object that `ChunkStore.sync` made of it. NO_OBJECT_ID if there is none."""

    def write(self, data: Buffer) -> None:
        """Append `data`. The caller may then reuse its memory at once. Raises StorageError, StorageFull."""

    def rest(self) -> None:
        """Free resources, such as an open file, until the next write.

        Call this when the frame is complete, or when no more bytes are expected for some time.
        """

    def read_into(self, buffer: memoryview) -> None:
        """Copy all written bytes to the start of `buffer`, which must be large enough. Raises StorageError."""

    def discard(self) -> None:
        """Discard the frame, and free its space. After `publish` or a second time, do nothing. This never raises.

        An object stays, because a transaction that seems to have failed may name it. `ChunkStore.remove_abandoned` finds it.
        """


class SpaceClaim(Protocol):
    """Space that was promised to a write, less what was written since. Any thread may use it.

    The methods raise MinFreeReached, StorageError.
    """

    def add(self, size: int) -> None:
        """Promise `size` more bytes."""

    def written(self, size: int) -> None:
        """Say that `size` more bytes are written, so that they are not counted twice. Call it before they are written.

        Bytes that were not promised are promised now. From time to time it raises MinFreeReached also for bytes that were
        promised, if other processes have used the space.
        """


class Placement(Protocol):
    """Synced frames that get their final names in one write transaction. All methods block.

    Call them in their order, and `close` in any case. They raise StorageError, StorageFull, and Busy if somebody has removed
    the staging files.
    """

    def prepare(self) -> None:
        """Do what can be done before the write transaction, for which other writers wait."""

    def rename(self, digests: Container[Digest]) -> None:
        """Make the frames with these digests readable, and leave the others. Call it inside the write transaction (I2).

        If a frame with the same digest exists, it is replaced: it has the same content (I1).
        """

    def sync(self) -> None:
        """Make the new names durable. Then their rows may be committed."""

    def close(self) -> None:
        """Free the resources. Frames that were not renamed are still staged."""


class ChunkStore(Protocol):
    """Stores frames and manifests by namespace and digest.

    Every method may be repeated without harm, and may be cancelled at any await. A store does not verify frames:
    `Ingest` verifies them before it passes them to the store, and a reader verifies them when it decodes them.

    A frame that cannot be read counts as absent, whatever the reason is: a bad sector, or something else in its place.
    """

    has_object_ids: bool
    """Whether each put of a frame or manifest makes a new object, which only its row in the index names.

    Then frames are durable before the transaction that publishes them, and are removed after the one that removes their rows. The
    engine keeps what it has acknowledged, so a push does not look at the frames that it finds in the index.
    """

    temporary: TemporaryObjects | None
    """Where servers keep uploads that are not finished. None if they do so in a folder of one host."""

    async def initialise(self, text: bytes) -> bytes:
        """Store `text` as the format file of the repository, if there is none yet. Return the content of this file.

        The format file is then durable. If two callers do this at the same time, both get the same result.
        """

    def new_staging(self) -> Staging:
        """Return an object for a new frame. It needs no resources until the first write."""

    def space_for(
        self, size: int, *, place: Path | None = None, for_reader: bool = False
    ) -> AbstractAsyncContextManager[SpaceClaim]:
        """Promise space for `size` bytes during an `async with` block, before anything of them is written.

        `place` is the folder that they are written to, if it is not the one of the store. With `for_reader`, they are for
        an answer that is removed soon: half of the space that stays free may be used for it.

        Raises MinFreeReached if less than the limit would stay free. Raises StorageFull if the disk is so full that the
        reserve cannot be made, which is there for removals; StorageError.
        """

    async def disk(self) -> DiskState | None:
        """Return the state of the disk, or None if the store is in memory. Raises StorageError."""

    async def release_reserve(self) -> bool:
        """Give the space of the reserve to a removal that found the disk full. Return False if it does not exist."""

    async def make_reserve(self) -> bool:
        """Make the reserve if there is none. Return False if the disk has too little space for it."""

    def sync(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Make all written bytes of frames durable, and free resources as `Staging.rest` does. Blocks.

        Raises StorageError, StorageFull.
        """

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> Placement:
        """Return what gives synced frames their names in a write transaction. There are at most 64 of them."""

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Make synced frames readable under their digests, durably.

        If a frame with the same digest exists, it is replaced: it has the same content (I1). Call this inside a write
        transaction of the index (I2), so that no collection removes frames at the same time.
        """

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for reading, in the order of `digests`. The result has None for an absent frame.

        The caller must close each file. A file has a descriptor (`fileno`) for `sendfile`, if the store supports it.
        """

    async def frame_urls(self, namespace: str, digests: Sequence[Digest], *, seconds: float) -> list[FrameUrl | None] | None:
        """Return a URL for each frame, in the order of `digests`, by which anybody can read it for so many seconds.

        The list has None for an absent frame. Return None if the store has no URLs.
        """

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        """Return the size of each frame in bytes, in the order of `digests`. The size of an absent frame is 0.

        Frames are not opened. Raises StorageError.
        """

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Read frames into `buffer` one after the other. Return the part of `buffer` for each frame.

        The result has None for an absent frame. `buffer` must have space for all frames. A frame is at most 8 bytes
        larger than its chunk. Raises ValueError if `buffer` is too small, and StorageError if a disk fails.
        """

    async def inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:
        """Return the state of each frame, in the order of `digests`. Frames are not opened.

        Damage is a result here, and not an error. Raises StorageError for a fault that is not the frame's.
        """

    async def read_each(
        self, namespace: str, digests: Sequence[Digest], buffer: memoryview, visit: Callable[[Digest, memoryview], T]
    ) -> list[T | FrameState]:
        """Read frames one after the other into `buffer`, and return `visit(digest, frame)` for each.

        For a frame that cannot be read or has more than FRAME_LIMIT bytes, its state is in the result instead. `buffer`
        has FRAME_LIMIT bytes. `visit` is called in a thread, and `frame` is valid until it returns. The bytes are those
        of the disk, if the store can tell. Damage is not an error, as in `inspect`.
        """

    async def set_aside(self, namespace: str, name: ObjectName) -> str | None:
        """Move what is in the place of a frame to where no reader finds it, and return where it is now.

        Return None if nothing is there. Call this inside a write transaction of the index, so that a push does not put a
        frame at the same time. Where the store `has_object_ids`, it is copied: no transaction is needed, and the caller removes
        the object when nothing names it any more.
        """

    async def read_object(self, namespace: str, name: ObjectName) -> Buffer | None:
        """Return the bytes of the object of a frame, whether a row names it or not. Return None if there is none.

        Of an object that is larger than a frame can be, only the first bytes are returned, more than a frame has. A store that
        does not `has_object_ids` has no objects. Raises StorageError, Busy.
        """

    async def namespaces(self) -> list[str]:
        """Return the namespaces that may have frames, in their order."""

    async def remove(self, namespace: str, names: Sequence[ObjectName]) -> None:
        """Remove frames. An absent frame is not an error.

        Call this inside a write transaction of the index (I2), so that no push publishes frames at the same time; where the store
        `has_object_ids`, after the transaction that has removed their rows.
        """

    def digests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all frames of a namespace, in any order.

        If a frame is published or removed at the same time, it may be included or not.
        """

    def frame_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield digest and size in bytes of all frames of a namespace, in pages, in the order of the digests.

        Frames are not opened. If a frame is published or removed at the same time, it may be included or not.
        """

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        """Store a manifest durably, and return the id of its object. If it is already stored on a disk, do nothing."""

    async def has_manifest(self, namespace: str, digest: Digest) -> bool:
        """Return whether a manifest is stored. It is not read. Where the store `has_object_ids`, only the index is asked."""

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        """Return the bytes of a manifest. Return None if it is absent, and b"" if it is there and cannot be read."""

    async def open_manifest(self, namespace: str, digest: Digest) -> BinaryIO | None:
        """Open a manifest for reading. Return None if it is absent, and an empty file if it is there and cannot be opened.

        The caller must close the file. It has a descriptor (`fileno`) for `sendfile`, if the store supports it.
        """

    async def remove_manifest(self, namespace: str, name: ObjectName) -> None:
        """Remove a manifest. An absent manifest is not an error. Call this as `remove`."""

    def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all manifests of a namespace, as `digests` does."""

    async def remove_abandoned(self, *, dry_run: bool = False) -> Removed:
        """Remove what processes that have ended left in staging. With `dry_run`, only return how much that is.

        Where the store `has_object_ids`, these are the objects that no row has named for hours.
        """

    def manifest_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield digest and size in bytes of all manifests of a namespace, as `frame_pages` does."""

    async def close(self) -> None:
        """Free the resources of the store. Frames that were not published are discarded."""
