"""Measure the commits of windows by several processes, how long writers wait for a huge manifest, and what a long listing costs.

python bench/commits.py                                # all of it: a manifest of 270,000 chunks, and 100,000 records
python bench/commits.py --chunks 27000 --records 10000 --folder /var/tmp
python bench/commits.py --chunks 0 --records 0 --processes 1 4 --folder /dev/shm

Processes that serve one folder commit windows of 14 small chunks, four at a time each, and take turns at the index. A turn
begins when the turnstile lets a process in. A gap is the time between two turns while somebody waits.

A second process makes one small transaction after the other, and notes how long the longest one took, with its wait. The manifest
is committed three times: first all its rows are new; then their last-seen time is fresh; then it is a day old, so that all rows
are written to. No content is stored: only the rows and the manifest exist. Then `filestore ls` lists many records, of the
folder and of a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

_WINDOW = 14
"""The chunks of a window of 16 MiB."""
_AT_ONCE = 4
_COMMITTER = """
import asyncio, json, os, sys, time
from pathlib import Path
from filestore.backends import connect
from filestore.core.digest import chunk_digest
from filestore.format.codec import Encoder, Frame
from filestore.system import metrics
from filestore.system.turnstile import Turnstile

windows, size, at_once = map(int, sys.argv[2:])
turns, began = [], []
enter, leave = Turnstile.try_enter, Turnstile.leave

def try_enter(self, limit_seconds):
    began.append(time.monotonic())
    if not enter(self, limit_seconds):
        return False
    turns.append([began[0], time.monotonic(), 0.0])
    began.clear()
    return True

def left(self):
    leave(self)
    if turns and not turns[-1][2]:
        turns[-1][2] = time.monotonic()

Turnstile.try_enter, Turnstile.leave = try_enter, left

def encoded():
    content = os.urandom(4096)
    out = bytearray(8192)
    return Frame(chunk_digest(content), bytes(out[: Encoder().encode(memoryview(content), memoryview(out))]))

async def main():
    frames = [[encoded() for _ in range(size)] for _ in range(windows)]
    waits = []
    async with connect(Path(sys.argv[1])) as repository:
        async def work():
            while frames:
                window = frames.pop()
                async with repository.ingest() as ingest:
                    for frame in window:
                        ingest.add(frame)
                    started = time.monotonic()
                    await ingest.commit()
                    waits.append(time.monotonic() - started)
        metrics.count_into(metrics.StageTimes())
        print(flush=True)
        sys.stdin.readline()
        before = metrics.own_usage()
        await asyncio.gather(*(work() for _ in range(at_once)))
        after = metrics.own_usage()
    used = [after.cpu_seconds - before.cpu_seconds, after.lock_seconds - before.lock_seconds]
    print(json.dumps({"turns": turns, "waits": waits, "used": used}))

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
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 4], help="that commit windows (default 1 4)")
    parser.add_argument("--windows", type=int, default=400, help="of each process (default %(default)s)")
    options = parser.parse_args()
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-commits-") as name:
        if options.processes:
            print(f"commits of {_WINDOW} chunks | a second | turns | mean turn | longest | mean gap | longest | of waits", end="")
            print(" | mean wait | CPU ms a commit | lock ms a commit")
            print("---|---|---|---|---|---|---|---|---|---|---")
        for count in options.processes:
            asyncio.run(_measure_windows(Path(name) / f"windows-{count}", count, options.windows))
        if options.chunks:
            asyncio.run(_measure_commits(Path(name) / "commits", options.chunks))
        if options.records:
            asyncio.run(_add_records(Path(name) / "records", options.records))
            _measure_listings(Path(name) / "records", options.records)


async def _measure_windows(root: Path, count: int, windows: int) -> None:
    """Let `count` processes commit windows at the same time, and print a row."""
    async with connect(root, create=True):
        pass
    command = (sys.executable, "-c", _COMMITTER, str(root), str(windows), str(_WINDOW), str(_AT_ONCE))
    processes = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 26)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        await process.stdout.readline()
    started = time.perf_counter()
    printed = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    seconds = time.perf_counter() - started
    found = [json.loads(out) for out, _ in printed]
    turns = sorted((tuple(turn) for each in found for turn in each["turns"]), key=lambda turn: turn[1])
    gaps = []
    for place, (_, _, left) in enumerate(turns[:-1]):
        following = turns[place + 1 : place + 1 + 2 * count]
        if min(asked for asked, _, _ in following) < left:
            gaps.append(max(0.0, following[0][1] - left))
    gaps = gaps or [0.0]
    held = [left - entered for _, entered, left in turns]
    waits = [wait for each in found for wait in each["waits"]]
    cpu, lock = (sum(each["used"][place] for each in found) / len(waits) * 1000 for place in (0, 1))
    name = f"{count} process{'es' if count > 1 else ''}"
    print(f"{name} | {len(waits) / seconds:.0f} | {len(turns)} | {_ms(sum(held) / len(held))} | {_ms(max(held))}", end="")
    print(f" | {_ms(sum(gaps) / len(gaps))} | {_ms(max(gaps))} | {len(gaps)} | {_ms(sum(waits) / len(waits))}", end="")
    print(f" | {cpu:.2f} | {lock:.2f}", flush=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


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
