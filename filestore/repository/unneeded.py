"""Remove frames and manifests together with their rows, in the order that each kind of store needs (I2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from filestore.core.digest import Digest
from filestore.core.object_names import ObjectName
from filestore.errors import Busy, StorageError
from filestore.repository.index.protocol import Transaction
from filestore.repository.stores.protocol import ChunkStore

logger = logging.getLogger("filestore.store")


async def remove_duplicates(
    store: ChunkStore, namespace: str, *, frames: Sequence[ObjectName] = (), manifests: Sequence[ObjectName] = ()
) -> None:
    """Remove objects that were put, and that no row names, because another object was committed before.

    What cannot be removed now is abandoned, and removed later. What was committed must not fail because of them.
    """
    try:
        await store.remove(namespace, frames)
        for name in manifests:
            await store.remove_manifest(namespace, name)
    except (StorageError, Busy) as error:
        logger.warning("objects that were stored already are left to the search for abandoned ones: %s", error)


class Unneeded:
    """What one transaction removes. Call `remove_objects` after it.

    A file is removed inside the transaction, so that no push puts it again meanwhile. An object is removed after it: nobody can
    put an object with this name again. If this process is killed in between, a later `ChunkStore.remove_abandoned` finds it.
    """

    def __init__(self, store: ChunkStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._frames: list[ObjectName] = []
        self._manifests: list[ObjectName] = []

    async def remove_frames(self, transaction: Transaction, digests: Sequence[Digest]) -> None:
        """Remove the rows of chunks whose rows are condemned, and their frames."""
        if not self._store.has_object_ids:
            await self._store.remove(self._namespace, [ObjectName(digest) for digest in digests])
        names = await transaction.forget_chunks(self._namespace, digests)
        if self._store.has_object_ids:
            self._frames += names

    async def remove_manifest(self, transaction: Transaction, digest: Digest) -> None:
        """Remove a manifest that no record needs."""
        name = await transaction.forget_manifest(self._namespace, digest)
        if self._store.has_object_ids:
            self._manifests.append(name)
        else:
            await self._store.remove_manifest(self._namespace, name)

    async def remove_objects(self) -> None:
        """Remove what is left to remove when the transaction is committed."""
        frames, self._frames = self._frames, []
        manifests, self._manifests = self._manifests, []
        if frames:
            await self._store.remove(self._namespace, frames)
        for name in manifests:
            await self._store.remove_manifest(self._namespace, name)
