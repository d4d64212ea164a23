"""What an object store asks the index: which object is the frame or the manifest with a digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from filestore.core.digest import Digest
from filestore.core.object_names import FrameObject, ObjectName

__all__ = ["FrameObject", "ObjectMap"]


class ObjectMap(Protocol):
    """Finds objects by their digests. Each call is one round trip. All raise StorageError, Busy."""

    async def frame_objects(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, FrameObject]:
        """Return the object of each of `digests` that has a live row."""

    async def manifest_object(self, namespace: str, digest: Digest) -> bytes | None:
        """Return the id of the object of a manifest, or None if no row names one."""

    async def unnamed_frames(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        """Return those of `names` that no row of a chunk names, live or condemned, in order.

        An object that could not be read has its name as long as `Index.lost_frames` has it: see `Transaction.lose_chunks`.
        """

    async def unnamed_manifests(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        """Return those of `names` that no row of a manifest names, in order."""
