"""A chunk store in memory. It is for tests, and for content that is not needed after the process ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import NO_OBJECT_ID, ObjectName
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores.protocol import NOTHING_REMOVED, FrameProblem, FrameState, Removed, Staging
from filestore.repository.stores.temporary import TemporaryObjects
from filestore.system.threads import in_cpu_thread

T = TypeVar("T")

_Key = tuple[str, Digest]


class MemoryStaging:
    """A frame that is being received, in memory."""

    object_id = NO_OBJECT_ID

    def __init__(self) -> None:
        self.size = 0
        self._data = bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data
        self.size += len(data)

    def rest(self) -> None:
        """Do nothing, because writing holds no resources."""

    def read_into(self, buffer: memoryview) -> None:
        buffer[: self.size] = self._data

    def discard(self) -> None:
        self._data = bytearray()

    def detach(self) -> bytes:
        """Return the bytes that were written, and remove them from this object."""
        data = bytes(self._data)
        self.discard()
        return data


class MemoryPlacement:
    """Frames that get their names."""

    def __init__(self, frames: dict[_Key, bytes], namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        self._frames = frames
        self._namespace = namespace
        self._staged = staged

    def prepare(self) -> None:
        """Do nothing: names in memory need no folders."""

    def rename(self, digests: Container[Digest]) -> None:
        for digest, staging in self._staged:
            if digest in digests:
                self._frames[self._namespace, digest] = cast("MemoryStaging", staging).detach()

    def sync(self) -> None:
        """Do nothing, as for the bytes."""

    def close(self) -> None:
        """Do nothing, because no resources are held."""


class NoSpaceClaim:
    """Space that nobody counts."""

    def add(self, size: int) -> None:
        """Do nothing."""

    def written(self, size: int) -> None:
        """Do nothing."""


class MemoryStore:
    """Stores frames and manifests in dictionaries. They are lost when the store is closed."""

    has_object_ids = False
    temporary: TemporaryObjects | None = None

    def __init__(self) -> None:
        self._format: bytes | None = None
        self._frames: dict[_Key, bytes] = {}
        self._manifests: dict[_Key, bytes] = {}
        self._set_aside: dict[str, bytes] = {}

    async def initialise(self, text: bytes) -> bytes:
        if self._format is None:
            self._format = text
        return self._format

    def new_staging(self) -> MemoryStaging:
        return MemoryStaging()

    @asynccontextmanager
    async def space_for(
        self,
        size: int,  # noqa: ARG002  # nothing is counted
        *,
        place: Path | None = None,  # noqa: ARG002  # as above
        for_reader: bool = False,  # noqa: ARG002  # as above
    ) -> AsyncIterator[NoSpaceClaim]:
        """Promise everything: the memory of this process has no limit here."""
        yield NoSpaceClaim()

    async def disk(self) -> None:
        return None

    async def release_reserve(self) -> bool:
        return False

    async def make_reserve(self) -> bool:
        return True

    def sync(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Do nothing: this store is as durable as its process."""

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> MemoryPlacement:
        return MemoryPlacement(self._frames, namespace, staged)

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        self.placement(namespace, staged).rename({digest for digest, _ in staged})

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for reading. The returned files have no descriptor."""
        frames = (self._frames.get((namespace, digest)) for digest in digests)
        return [None if frame is None else BytesIO(frame) for frame in frames]

    async def frame_urls(self, namespace: str, digests: Sequence[Digest], *, seconds: float) -> None:  # noqa: ARG002  # of the protocol
        return None

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        return [len(self._frames.get((namespace, digest), b"")) for digest in digests]

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        parts: list[memoryview | None] = []
        start = 0
        for digest in digests:
            frame = self._frames.get((namespace, digest))
            if frame is None:
                parts.append(None)
                continue
            part = buffer[start : start + len(frame)]
            part[:] = frame  # raises ValueError if `part` is shorter
            parts.append(part)
            start += len(frame)
        return parts

    async def inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:
        return [self._state(namespace, digest) for digest in digests]

    async def read_each(
        self,
        namespace: str,
        digests: Sequence[Digest],
        buffer: memoryview,  # noqa: ARG002  # frames are in memory already
        visit: Callable[[Digest, memoryview], T],
    ) -> list[T | FrameState]:
        results: list[T | FrameState] = []
        for digest in digests:
            frame = self._frames.get((namespace, digest))
            if frame is None or len(frame) > FRAME_LIMIT:
                results.append(self._state(namespace, digest))
            else:
                results.append(await in_cpu_thread(visit, digest, memoryview(frame)))
        return results

    def _state(self, namespace: str, digest: Digest) -> FrameState:
        frame = self._frames.get((namespace, digest))
        if frame is None:
            return FrameState(0, FrameProblem.MISSING, "it is missing")
        return FrameState(len(frame))

    async def set_aside(self, namespace: str, name: ObjectName) -> str | None:
        frame = self._frames.pop((namespace, name.digest), None)
        if frame is None:
            return None
        where = f"{namespace}/{name.digest}.{len(self._set_aside)}"
        self._set_aside[where] = frame
        return where

    async def read_object(self, namespace: str, name: ObjectName) -> None:  # noqa: ARG002  # of the protocol
        return None

    async def namespaces(self) -> list[str]:
        return sorted({namespace for namespace, _ in list(self._frames)})  # a copy, since a thread may add frames

    async def remove(self, namespace: str, names: Sequence[ObjectName]) -> None:
        for name in names:
            self._frames.pop((namespace, name.digest), None)

    async def digests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all frames of a namespace at the time of the call."""
        for kept, digest in list(self._frames):
            if kept == namespace:
                yield digest

    async def frame_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield digests and sizes of all frames at the time of the call, in one page."""
        yield _page(self._frames, namespace)

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        self._manifests[namespace, digest] = bytes(encoded)
        return NO_OBJECT_ID

    async def has_manifest(self, namespace: str, digest: Digest) -> bool:
        return (namespace, digest) in self._manifests

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        return self._manifests.get((namespace, digest))

    async def open_manifest(self, namespace: str, digest: Digest) -> BinaryIO | None:
        """Open a manifest for reading. The returned file has no descriptor."""
        encoded = self._manifests.get((namespace, digest))
        return None if encoded is None else BytesIO(encoded)

    async def remove_manifest(self, namespace: str, name: ObjectName) -> None:
        self._manifests.pop((namespace, name.digest), None)

    async def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        """Yield the digests of all manifests of a namespace at the time of the call."""
        for kept, digest in list(self._manifests):
            if kept == namespace:
                yield digest

    async def remove_abandoned(self, *, dry_run: bool = False) -> Removed:  # noqa: ARG002  # of the protocol
        """Do nothing, because staging ends with its process."""
        return NOTHING_REMOVED

    async def manifest_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield digests and sizes of all manifests at the time of the call, in one page."""
        yield _page(self._manifests, namespace)

    async def close(self) -> None:
        self._frames.clear()
        self._manifests.clear()


def _page(stored: dict[_Key, bytes], namespace: str) -> list[tuple[Digest, int]]:
    return sorted((digest, len(content)) for (kept, digest), content in list(stored.items()) if kept == namespace)
