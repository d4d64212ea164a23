"""Measure a collection: time and memory for a number of chunks, half of which no record needs any more.

python bench/collection.py                              # 1 million chunks
python bench/collection.py --chunks 10000000 --folder /var/tmp

The index and the manifests are real. The frames are not there, because ten million files would take most of the time to
make; so the time does not have their removal, about 20 microseconds each on a local disk.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from filestore.backends import open_backend  # noqa: E402  # a script finds the library only now
from filestore.core.digest import Digest  # noqa: E402
from filestore.core.manifest import Chunk, Manifest  # noqa: E402
from filestore.core.names import DEFAULT_NAMESPACE  # noqa: E402
from filestore.core.records import Kind  # noqa: E402
from filestore.repository.index.protocol import ChunkRow  # noqa: E402
from filestore.repository.maintenance.collect import Collection, CollectionReport  # noqa: E402

_MANIFEST_COUNT = 100_000


def main() -> None:
    """Make an index, collect in a process of its own, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000, help="(default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 400 bytes for each chunk")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-collection-") as name:
        root = Path(name) / "root"
        asyncio.run(_make(root, options.chunks))
        for what, dry_run in (("dry run", True), ("collection", False), ("nothing to remove", False)):
            process = get_context("spawn").Process(target=_measure, args=(root, what), kwargs={"dry_run": dry_run})
            process.start()
            process.join()


async def _make(root: Path, count: int) -> None:
    """Store records of `count` chunks, in manifests of 100,000 chunks, and remove every second record."""
    store, index = await open_backend(root, create=True)
    generator = Random(1)  # noqa: S311  # content, not a secret
    for number, start in enumerate(range(0, count, _MANIFEST_COUNT)):
        digests = [Digest(generator.randbytes(32)) for _ in range(min(_MANIFEST_COUNT, count - start))]
        manifest = Manifest.build([Chunk(digest, 65536) for digest in digests], chunking_version=1)
        await store.put_manifest(DEFAULT_NAMESPACE, manifest.digest, manifest.encoded)
        async with index.transaction() as transaction:
            await transaction.add_chunks(DEFAULT_NAMESPACE, [ChunkRow(digest, 65536, 60000) for digest in digests])
            if number % 2:
                await transaction.add_record(
                    DEFAULT_NAMESPACE, name=f"{number}", digest=manifest.digest, size=manifest.size, kind=Kind.FILE
                )
    await index.close()
    await store.close()


def _measure(root: Path, what: str, *, dry_run: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic(), time.process_time()
    report = asyncio.run(_collect(root, dry_run=dry_run))
    wall, cpu = time.monotonic() - started[0], time.process_time() - started[1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{what:<18} {report.kept.count:>9} kept {report.freed.count:>9} freed  {wall:7.1f} s, {cpu:7.1f} s of a core,"
        f" {memory / 1024:6.0f} MiB ({(memory - before) / 1024:.0f} MiB more than at the start)\n"
    )
    sys.stdout.flush()


async def _collect(root: Path, *, dry_run: bool) -> CollectionReport:
    store, index = await open_backend(root, read_only=dry_run)
    try:
        return await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0, dry_run=dry_run).run()
    finally:
        await index.close()
        await store.close()


if __name__ == "__main__":
    main()
