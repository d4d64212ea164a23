"""Check that all chunks of a manifest are live when its record is stored, without a long transaction (I2, I9).

A manifest may have millions of chunks, and others wait for a transaction. So they are looked up before it, in slices.
The index keeps the digests of the last removals of a namespace. They are read after each slice of a large manifest, and
once more in the transaction, which looks only at what was removed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.errors import ChunksMissing
from filestore.repository import manifest_check
from filestore.repository.index.protocol import Index, RemovedRows, Transaction
from filestore.repository.manifest_check import Sizes, check_chunks
from filestore.system.threads import in_cpu_thread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEY_SIZE = 8


class CommitCheck:
    """The check of one manifest for one commit. Call `look` outside of a transaction, and then `is_complete` in one."""

    def __init__(self, index: Index, namespace: str, manifest: Manifest) -> None:
        self._index = index
        self._namespace = namespace
        self._manifest = manifest
        self._slice_size = manifest_check.SLICE
        """The largest number of chunks that the transaction looks at."""
        self._number = 0
        """The number of removals that are known here."""
        self._again: set[Digest] | None = None
        """The chunks of the manifest to look at, because they were removed since. None means all."""
        self._keys: NDArray[np.uint64] | None = None

    async def look(self) -> None:
        """Look at all chunks, or at those that were removed since the last look. Their last-seen times are set to now (I9).

        Raises ChunksMissing if rows are missing, and InvalidManifest if a size is wrong.
        """
        if self._again is None:
            self._number, self._again = await self._index.removals(self._namespace), set()
            await check_chunks(self._manifest, self._sizes)
        else:
            again, self._again = list(self._again), set()
            for start in range(0, len(again), self._slice_size):
                await _check_live(again[start : start + self._slice_size], self._sizes)
        await self._note_removed()

    async def is_complete(self, transaction: Transaction) -> bool:
        """Look at the chunks that were removed since `look` began. Return False if these are too many: then look again.

        Raises ChunksMissing if rows are missing, and InvalidManifest if a size is wrong.
        """
        removed = await transaction.removed_since(self._namespace, self._number)
        sizes = partial(transaction.sizes, self._namespace)
        if not self._again and self._again is not None and removed.number == self._number:
            return True
        if len(self._manifest.chunks) <= self._slice_size:
            await check_chunks(self._manifest, sizes)
            return True
        if removed.number != self._number and self._keys is None:
            # To sort the digests takes long, so not in the transaction.
            return False
        await self._note(removed)
        if self._again is None or len(self._again) > self._slice_size:
            return False
        await _check_live(list(self._again), sizes)
        return True

    async def _sizes(self, digests: Sequence[Digest]) -> Mapping[Digest, int]:
        sizes = await self._index.refreshed_sizes(self._namespace, digests)
        # Now, because the index keeps only the last removals.
        await self._note_removed()
        return sizes

    async def _note_removed(self) -> None:
        """Note what was removed meanwhile, outside of a transaction. A transaction can look at all of a small manifest."""
        if len(self._manifest.chunks) > self._slice_size:
            await self._note(await self._index.removed_since(self._namespace, self._number))

    async def _note(self, removed: RemovedRows) -> None:
        """Note which chunks of the manifest were removed."""
        if removed.number == self._number:
            return
        self._number = removed.number
        if self._again is None or removed.digests is None:
            self._again = None
            return
        if self._keys is None:
            self._keys = await in_cpu_thread(_sorted_keys, self._manifest)
        self._again.update(await in_cpu_thread(_contained, self._keys, list(removed.digests)))


async def _check_live(digests: Sequence[Digest], sizes: Sizes) -> None:
    """Check only that the rows are live. Their sizes were right before, and the digest of a chunk determines its size."""
    live = await sizes(digests)
    absent = [str(digest) for digest in digests if digest not in live]
    if absent:
        raise ChunksMissing(*absent)


def _sorted_keys(manifest: Manifest) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each digest, sorted. They take a fifth of the manifest's memory (I6)."""
    import numpy as np  # noqa: PLC0415  # on first use

    rows = manifest.chunks.row_array()
    return np.sort(np.ascontiguousarray(rows[:, :_KEY_SIZE]).view(">u8").ravel().astype(np.uint64))


def _contained(keys: NDArray[np.uint64], digests: Sequence[Digest]) -> list[Digest]:
    import numpy as np  # noqa: PLC0415  # on first use

    wanted = np.array([int.from_bytes(digest[:_KEY_SIZE], "big") for digest in digests], np.uint64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return [digest for digest, found in zip(digests, (keys[places] == wanted).tolist(), strict=True) if found]
