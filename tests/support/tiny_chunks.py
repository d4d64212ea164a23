"""Files of absurdly many chunks, as an earlier version or a hostile server may have them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from filestore.backends import open_backend
from filestore.core.manifest import MANIFEST_LIMIT, Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from tests.support.frames import manifest

TINY_COUNT = (MANIFEST_LIMIT - 24) // 36
"""The most chunks that a manifest can have: 1.86 million."""


def repeated(content: bytes, count: int) -> Manifest:
    """Return the manifest of a file that is the same chunk many times."""
    one = manifest([content]).encoded
    return _manifest(one[:12], one[24:] * count, count=count, size=len(content))


def distinct(count: int) -> Manifest:
    """Return the manifest of a file of different chunks of one byte, which nobody has."""
    rows = np.random.default_rng(1).integers(0, 256, (count, 36), "u1")
    rows[:, 32:] = (1, 0, 0, 0)
    return _manifest(manifest([]).encoded[:12], rows.tobytes(), count=count, size=1)


def _manifest(head: bytes, rows: bytes, *, count: int, size: int) -> Manifest:
    return Manifest.parse(head + count.to_bytes(4, "little") + (count * size).to_bytes(8, "little") + rows)


def planted(root: Path, found: Manifest, name: str) -> Record:
    """Store a manifest in the repository at `root` as an earlier version did, which did not look at the number of chunks."""

    async def plant() -> Record:
        store, index = await open_backend(root, create=False)
        try:
            await store.put_manifest(DEFAULT_NAMESPACE, found.digest, found.encoded)
            async with index.transaction() as transaction:
                return await transaction.add_record(
                    DEFAULT_NAMESPACE, name=name, digest=found.digest, size=found.size, kind=Kind.FILE
                )
        finally:
            await index.close()
            await store.close()

    return asyncio.run(plant())
