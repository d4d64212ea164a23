"""Kill a collection at its n-th system call or SQL statement, for every n.

`python -m tests.support.collection_crashes FOLDER` works on FOLDER/<n>, and prints the number of runs. The last run is
not killed.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from filestore.backends import connect, open_backend
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.repository.maintenance.collect import Collection, CollectionReport
from tests.support.crashes import Fuse, kill_at_every_call, light
from tests.support.frames import contents, encoded, manifest

SHARED, OLD, NEW = contents(1), contents(1, seed=1), contents(1, seed=2)
KEPT = "kept"


async def prepare(root: Path) -> None:
    """Make a repository with a file that is kept, one that was removed, and one whose push was abandoned."""
    async with connect(root, create=True) as repository:
        await repository.put([encoded(content) for content in (*SHARED, *OLD, *NEW, *contents(1, seed=3))])
        removed = await repository.commit(manifest([*SHARED, *OLD]).encoded, name="removed")
        await repository.commit(manifest([*SHARED, *NEW]).encoded, name=KEPT)
        await repository.remove(removed.id)


async def collect(root: Path) -> CollectionReport:
    """Collect without a grace period."""
    store, index = await open_backend(root)
    try:
        return await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    finally:
        await index.close()
        await store.close()


def _main(folder: Path) -> None:
    prepared = folder / "prepared"
    asyncio.run(prepare(prepared))

    def attempt(place: int, fuse: Fuse) -> None:
        root = folder / str(place)
        shutil.copytree(prepared, root)
        light(fuse)
        asyncio.run(collect(root))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
