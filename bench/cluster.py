"""Measure a server over an object store and PostgreSQL: transfers beside rclone with the same frames, and the index alone.

    python -m bench.cluster                                   # both parts
    python -m bench.cluster --only transfers --size 1GiB --rounds 3
    python -m bench.cluster --only index --rows 10000000 --shared-buffers 1GB

The gateway of Ceph and PostgreSQL run on this machine, on the same cores as the rest. rclone copies the frames that the push has
stored, between a folder and the gateway, without a server of ours, so it neither cuts, hashes nor encodes. A ratio compares one
round: the time that passed, and the processor time of all processes, which other work on the machine changes less. What an idle
server takes is subtracted. The goals are a ratio of 0.8, 0.02 s of the server's processor for a GB that is fetched by presigned
URLs, 50 ms for `missing`, and 2 s for a commit. "The same" is fetched a few seconds later, and gets the same URLs.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import NamedTuple

import asyncpg

from bench.data import write_safetensors
from bench.run import FILESTORE, Done, Server, family, folder_bytes, parse_size, run, start_server, unwind_when_told_to_end
from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from tests.support.ceph import Bucket, running_gateway
from tests.support.frames import encoded
from tests.support.postgres import running_postgres

GB = 10**9
CHUNK_SIZE = 750_000
CHUNKS_OF_100_GB = 100 * GB // CHUNK_SIZE
ASKED = 10_000
_FILL = (
    "INSERT INTO chunks (namespace, digest, size, stored_size, last_seen, going, object_id)"
    " SELECT 'a', sha256(int8send(number)), $4::bigint, $4::bigint, $1::bigint, false, 'object00'"
    " FROM generate_series($2::bigint, $3::bigint) AS number"
)
_FILLED_AT_ONCE = 250_000
_ASKED_TIMES = 10
_IDLE_SECONDS = 5
_OTHER_SIZE = 32 << 20


class Step(NamedTuple):
    """What a step took: the seconds that passed, and the processor seconds for a GB of frames of each process."""

    seconds: float
    client: float
    server: float
    """Above those of an idle server."""
    engines: float
    """Of Ceph and PostgreSQL."""

    @property
    def processor(self) -> float:
        """Of all of them."""
        return self.client + self.server + self.engines


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["transfers", "index"], help="one part (default: both)")
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the file (default %(default)s)")
    parser.add_argument("--content", choices=["bf16", "random"], default="bf16", help="of the file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are shown (default %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the index (default %(default)s)")
    parser.add_argument("--shared-buffers", default="1GB", help="of PostgreSQL, for the index alone (default %(default)s)")
    options = parser.parse_args()
    unwind_when_told_to_end()
    if options.only != "index":
        if not shutil.which("rclone"):
            sys.exit("rclone is the peer: apt-get install rclone")
        measure_transfers(options.size, options.rounds, options.content)
    if options.only != "transfers":
        with running_postgres(settings={"shared_buffers": options.shared_buffers}) as server:
            asyncio.run(measure_index(server.postgres.new_database(), options.rows, options.shared_buffers))


def measure_transfers(size: int, rounds: int, content: str) -> None:
    """Push and fetch a file, each time into a new bucket, beside rclone."""
    with running_gateway() as gateway, running_postgres() as database, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, other = folder / "model.safetensors", folder / "other.safetensors"
        write_safetensors(other, size=_OTHER_SIZE, seed=1)
        if content == "random":
            with source.open("wb") as file:
                for start in range(0, size, _OTHER_SIZE):
                    file.write(os.urandom(min(_OTHER_SIZE, size - start)))
        else:
            write_safetensors(source, size=size)
        found = [
            one_round(gateway.new_bucket(), database.postgres.new_database(), folder / str(number), source, other)
            for number in range(rounds)
        ]
        print(f"{source.stat().st_size / GB:.2f} GB of {content}, {rounds} rounds; processor seconds for a GB of frames")
        for what in found[0]:
            seconds, client, server, engines = (
                statistics.median(each) for each in zip(*(steps[what] for steps in found), strict=True)
            )
            print(
                f"  {what:17} {seconds:6.2f} s   client {client:5.2f}, server {server:6.3f}, Ceph and PostgreSQL {engines:5.2f}"
            )
        for ours, theirs in (("push", "put, rclone"), ("fetch, presigned", "get, rclone"), ("fetch, server", "get, rclone")):
            ratios = sorted(steps[theirs].seconds / steps[ours].seconds for steps in found)
            of_processor = statistics.median(steps[theirs].processor / steps[ours].processor for steps in found)
            shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"  {ours} / {theirs}: {shown}, by processor time {of_processor:.2f}")


def one_round(bucket: Bucket, index: str, folder: Path, source: Path, other: Path) -> dict[str, Step]:
    """Do each step once, and return what it took. The order is the one in which each step finds what it needs.

    `other` is a file that is fetched before, because the first fetch finds a server that has not answered such a request.
    """
    folder.mkdir()
    environment = {**bucket.environ, "FILESTORE_STORE": bucket.location("models"), "FILESTORE_INDEX": index}
    server = start_server(folder / "scratch", environment=environment)
    steps: dict[str, Step] = {}
    frames = folder / "frames"

    def step(name: str, call: Callable[[], Done]) -> None:
        before, engines = processor_seconds(server.pid), engines_seconds(server)
        done = call()
        server_seconds = processor_seconds(server.pid) - before - idle * done.seconds
        steps[name] = Step(done.seconds, done.cpu_seconds, server_seconds, engines_seconds(server) - engines)

    def fetch(name: str, what: Path, *options: str) -> None:
        target = folder / "fetched"
        command: list[str | Path] = [*FILESTORE, "fetch", what.name, "-o", target, "--quiet", *options]
        step(name, lambda: run(command, environment=server.environment))
        if not filecmp.cmp(what, target, shallow=False):
            sys.exit("what was fetched is not what was pushed")
        target.unlink()

    try:
        idle = idle_share(server)
        step("push", lambda: run([*FILESTORE, "push", source, "--quiet"], environment=server.environment))
        step("get, rclone", lambda: rclone(bucket, f"{bucket.name}/models/frames", str(frames), to_store=False))
        run([*FILESTORE, "push", other, "--quiet"], environment=server.environment)
        fetch("", other)
        del steps[""]
        fetch("fetch, presigned", source)
        fetch("fetch, the same", source)
        step("put, rclone", lambda: rclone(bucket, f"{bucket.name}/copy", str(frames), to_store=True))
        fetch("fetch, server", source, "--presigned-reads", "no")
    finally:
        server.service.stop()
    gigabytes = folder_bytes(frames) / GB
    shutil.rmtree(folder)
    return {
        name: Step(found.seconds, *(each / gigabytes for each in (found.client, found.server, found.engines)))
        for name, found in steps.items()
    }


def idle_share(server: Server) -> float:
    """Return the processor seconds that a server takes in a second without requests."""
    before = processor_seconds(server.pid)
    time.sleep(_IDLE_SECONDS)
    return (processor_seconds(server.pid) - before) / _IDLE_SECONDS


def engines_seconds(server: Server | None = None) -> float:
    """Return the processor seconds of the engines so far. They are processes of this one, as the server is if there is one."""
    others = {os.getpid(), *(family(server.pid) if server else ())}
    return sum(processor_seconds(pid, below=False) for pid in family(os.getpid()) if pid not in others)


def processor_seconds(pid: int, *, below: bool = True) -> float:
    """Return the processor seconds of the threads of a process so far, and of the processes below it.

    Those of threads that have ended do not count. The time of a whole process is in steps of 10 ms, which is half of the goal.
    """
    nanoseconds = 0
    for each in family(pid) if below else [pid]:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{each}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    nanoseconds += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return nanoseconds / 1e9


def rclone(bucket: Bucket, remote: str, folder: str, *, to_store: bool) -> Done:
    """Copy files between a folder and the store, 16 at a time."""
    keys = bucket.credentials
    remote = f":s3:{remote}"
    options = ["--config=", "--transfers=16", "--checkers=16", "--s3-provider=Ceph", "--ignore-checksum", "--s3-no-check-bucket"]
    options += [f"--s3-endpoint={bucket.endpoint}", f"--s3-access-key-id={keys.access_key}"]
    ends = [folder, remote] if to_store else [remote, folder]
    return run(
        ["rclone", *options, "copy", *ends], environment={"RCLONE_S3_SECRET_ACCESS_KEY": keys.secret_key, "AWS_CA_BUNDLE": ""}
    )


async def measure_index(url: str, rows: int, buffers: str) -> None:
    """Ask and commit in an index with many rows."""
    index = await open_postgres_index(url)
    await fill(url, max(rows, CHUNKS_OF_100_GB))
    print(f"index of {rows} rows, shared_buffers of {buffers}")
    await measure_missing(index, "of one file", [digest_of(number) for number in range(ASKED)])
    # Each row is in a page of its own.
    await measure_missing(index, "of as many files", [digest_of(number * max(1, rows // ASKED)) for number in range(ASKED)])
    await measure_missing(index, "absent", [chunk_digest(b"%d" % number) for number in range(ASKED)])
    await measure_commit(index)
    await index.close()


async def measure_missing(index: PostgresIndex, what: str, digests: list[Digest]) -> None:
    """Ask for digests, and print the median time, and the processor time of both ends, which other work changes less."""
    found: list[tuple[float, float, float]] = []
    for _ in range(_ASKED_TIMES):
        engine, client = engines_seconds(), processor_seconds(os.getpid(), below=False)
        began = time.perf_counter()
        await index.missing("a", digests)
        seconds = time.perf_counter() - began
        found.append((seconds, processor_seconds(os.getpid(), below=False) - client, engines_seconds() - engine))
    times, clients, engines = ([1000 * each for each in column] for column in zip(*found, strict=True))
    print(
        f"  missing, {len(digests)} {what}: {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f}),"
        f" processor time: client {statistics.median(clients):.1f} ms, PostgreSQL {statistics.median(engines):.0f}"
    )


async def measure_commit(index: PostgresIndex) -> None:
    """Commit a file of 100 GB, while another namespace commits small files."""
    store = MemoryStore()
    manifest = Manifest.build([Chunk(digest_of(number), CHUNK_SIZE) for number in range(CHUNKS_OF_100_GB)], chunking_version=1)
    large, small = (LocalRepository(store, index, location="bench", namespace=name) for name in "ab")
    frame = encoded(os.urandom(1000))
    await small.put([frame])
    little = Manifest.build([Chunk(frame.digest, 1000)], chunking_version=1)
    waits: list[float] = []

    async def commit_small() -> None:
        for number in count():
            began = time.perf_counter()
            await small.commit(little.encoded, name=f"small-{number}")
            waits.append(time.perf_counter() - began)

    task = asyncio.create_task(commit_small())
    await asyncio.sleep(1)
    alone, waits[:] = statistics.median(waits), []
    began = time.perf_counter()
    await large.commit(manifest.encoded, name="large")
    seconds = time.perf_counter() - began
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    print(f"  commit of 100 GB ({CHUNKS_OF_100_GB} chunks): {seconds:.2f} s")
    print(f"  commits of another namespace: {alone * 1000:.1f} ms alone, meanwhile {statistics.median(waits) * 1000:.1f}")
    print(f"  the longest of them meanwhile: {max(waits) * 1000:.0f} ms")


async def fill(url: str, rows: int) -> None:
    """Add rows of chunks that were seen now."""
    connection = await asyncpg.connect(url)
    for first in range(0, rows, _FILLED_AT_ONCE):
        await connection.execute(_FILL, time.time_ns() // 1000, first, min(rows, first + _FILLED_AT_ONCE) - 1, CHUNK_SIZE)
    await connection.execute("VACUUM ANALYZE chunks")
    # Or it would write these rows while others are read.
    await connection.execute("CHECKPOINT")
    await connection.close()


def digest_of(number: int) -> Digest:
    """Return the digest of a row that `fill` has made."""
    return Digest(sha256(number.to_bytes(8, "big", signed=True)).digest())


if __name__ == "__main__":
    main()
