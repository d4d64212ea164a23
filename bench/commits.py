"""Measure how long other writers wait while the manifest of a huge file is committed, and what a long listing costs.

python bench/commits.py                                # a manifest of 270,000 chunks, and 100,000 records
python bench/commits.py --chunks 27000 --records 10000 --folder /var/tmp

A second process makes one small transaction after the other, and notes how long the longest one took, with its wait. The manifest
is committed three times: first all its rows are new; then their last-seen time is fresh; then it is a day old, so that all rows
are written to. No content is stored: only the rows and the manifest exist. Then `filestore ls` lists many records, of the
folder and of a server.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.run import FILESTORE, run, serving, unwind_when_told_to_end  # noqa: E402  # a script finds its neighbours only now
from filestore.backends import connect  # noqa: E402
from filestore.core.digest import Digest  # noqa: E402
from filestore.core.manifest import Chunk, Manifest  # noqa: E402
from filestore.core.names import DEFAULT_NAMESPACE  # noqa: E402
from filestore.core.records import Kind  # noqa: E402
from filestore.repository.index.protocol import ChunkRow  # noqa: E402
from filestore.repository.index.sqlite import open_index  # noqa: E402

_CHUNK_SIZE = 1 << 20
_DAY_MICROSECONDS = 86400 * 1_000_000
_ROWS_AT_ONCE = 10_000

_OTHER_WRITER = """
import asyncio, sys, time
from pathlib import Path
from filestore.repository.index.sqlite import open_index

async def main():
    index = await open_index(Path(sys.argv[1]))
    loop = asyncio.get_running_loop()
    asking = loop.run_in_executor(None, sys.stdin.readline)
    waits = []
    print(flush=True)
    while not asking.done():
        started = time.perf_counter()
        async with index.transaction() as transaction:
            await transaction.set_task_state("default", "bench", {"number": len(waits)})
        waits.append(time.perf_counter() - started)
        await asyncio.sleep(0.01)
    await index.close()
    print(len(waits), max(waits), sum(waits) / len(waits))

asyncio.run(main())
"""


class Waits(NamedTuple):
    """What the other process saw: its transactions, and the seconds that they took."""

    number: int
    longest: float
    mean: float


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=270_000, help="of the manifest (default %(default)s)")
    parser.add_argument("--records", type=int, default=100_000, help="of the listing (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-commits-") as name:
        if options.chunks:
            asyncio.run(_measure_commits(Path(name) / "commits", options.chunks))
        if options.records:
            asyncio.run(_add_records(Path(name) / "records", options.records))
            _measure_listings(Path(name) / "records", options.records)


async def _measure_commits(root: Path, count: int) -> None:
    async with connect(root, create=True) as repository:
        chunking_version = (await repository.identity()).chunking_version
    digests = [Digest(number.to_bytes(32, "big")) for number in range(1, count + 1)]
    # In an order that is not that of the digests, as in a file.
    digests = [digests[(place * 104_729) % count] for place in range(count)]
    manifest = Manifest.build((Chunk(digest, _CHUNK_SIZE) for digest in digests), chunking_version=chunking_version)
    index = await open_index(root / "index.sqlite")
    for start in range(0, count, _ROWS_AT_ONCE):
        async with index.transaction() as transaction:
            rows = [ChunkRow(digest, _CHUNK_SIZE, 1000) for digest in digests[start : start + _ROWS_AT_ONCE]]
            await transaction.add_chunks(DEFAULT_NAMESPACE, rows)
    await index.close()
    print(f"commit of {count:,} chunks | seconds | other writer: transactions | longest | mean")
    print("---|---|---|---|---")
    for what in ("first", "again", "rows of yesterday"):
        if what == "rows of yesterday":
            with sqlite3.connect(root / "index.sqlite") as connection:
                connection.execute("UPDATE chunks SET last_seen = last_seen - ?", (_DAY_MICROSECONDS,))
            connection.close()
        seconds, waits = await _commit(root, manifest)
        print(f"{what} | {seconds:.2f} | {waits.number} | {waits.longest:.2f} s | {waits.mean * 1000:.0f} ms", flush=True)


async def _add_records(root: Path, count: int) -> None:
    async with connect(root, create=True):
        pass
    index = await open_index(root / "index.sqlite")
    for start in range(0, count, _ROWS_AT_ONCE):
        async with index.transaction() as transaction:
            for number in range(start, min(start + _ROWS_AT_ONCE, count)):
                digest = Digest(number.to_bytes(32, "big"))
                await transaction.add_record(DEFAULT_NAMESPACE, name=f"{number}.bin", digest=digest, size=number, kind=Kind.FILE)
    await index.close()


def _measure_listings(root: Path, count: int) -> None:
    print(f"\nlisting of {count:,} records | seconds | peak MiB | peak MiB of the server")
    print("---|---|---|---")
    with serving(root) as server:
        for what, environment in (("folder", {"FILESTORE_URL": str(root)}), ("server", server.environment)):
            for options in (["--limit", "1"], [], ["--json"]):
                done = run([*FILESTORE, "ls", *options], environment=environment)
                peak = f"{server.peak_memory() / 2**20:.0f}" if what == "server" else ""
                print(
                    f"{what}, ls {' '.join(options)} | {done.seconds:.2f} | {done.peak_memory / 2**20:.0f} | {peak}", flush=True
                )


async def _commit(root: Path, manifest: Manifest) -> tuple[float, Waits]:
    """Commit a manifest while another process writes to the index. Return the seconds, and what the other process saw."""
    command = (sys.executable, "-c", _OTHER_WRITER, str(root / "index.sqlite"))
    other = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if other.stdout is None:
        raise RuntimeError("a pipe is missing")
    await other.stdout.readline()
    async with connect(root) as repository:
        started = time.perf_counter()
        await repository.commit(manifest.encoded, name="model.bin")
        seconds = time.perf_counter() - started
    printed, _ = await other.communicate(b"\n")
    number, longest, mean = printed.split()
    return seconds, Waits(int(number), float(longest), float(mean))


if __name__ == "__main__":
    main()
