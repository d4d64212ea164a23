"""Race with other processes for one repository.

Usage: `python -m tests.support.races push NUMBER ROOT` and `... collect ROOT`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from filestore.backends import open_backend
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.errors import ChunksMissing
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from tests.support.frames import buffer_for, contents, decoded, encoded, manifest

PUSHES = 15
COLLECTIONS = 60


async def push_again_and_again(number: int, root: Path) -> None:
    """Push a file that shares chunks with those of the others, check that all of it is there, and remove it, in a loop."""
    store, index = await open_backend(root, create=True)
    repository = LocalRepository(store, index, location=str(root))
    for turn in range(PUSHES):
        chunks = [*contents(2), *contents(2, seed=100 * number + turn)]
        frames = {frame.digest: frame for frame in map(encoded, chunks)}
        wanted = manifest(chunks)
        missing = await repository.missing(list(frames))
        while True:
            await repository.put([frames[digest] for digest in missing])
            try:
                record = await repository.commit(wanted.encoded, name=f"of {number}")
                break
            except ChunksMissing as error:
                missing = [digest for digest in frames if str(digest) in error.digests]
        assert wanted.encoded == await repository.manifest(record.digest)
        got = await repository.get(list(frames), buffer_for(len(frames)))
        for (digest, data), content in zip(zip(frames, got, strict=True), chunks, strict=True):
            assert data is not None, f"{digest} is gone, though a record needs it"
            assert content == decoded(digest, data)
        await repository.remove(record.id)
    await repository.close()


async def collect_again_and_again(root: Path) -> None:
    """Remove everything that no record needs, without a grace period, in a loop.

    The order of I2 must hold all the same.
    """
    store, index = await open_backend(root, create=True)
    for _ in range(COLLECTIONS):
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    await store.close()
    await index.close()


if __name__ == "__main__":
    if sys.argv[1] == "push":
        asyncio.run(push_again_and_again(int(sys.argv[2]), Path(sys.argv[3])))
    else:
        asyncio.run(collect_again_and_again(Path(sys.argv[2])))
