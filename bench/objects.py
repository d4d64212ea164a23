"""Measure puts and gets of an object store beside the library below it, and rclone if it is installed.

    python -m bench.objects --count 256 --sizes 0.75 2 4

Ceph's gateway runs on this machine, with its objects in memory, so its processor time bounds the figures as much as ours does.
A line has the rate, and the processor seconds of this process for 1 GB: of all its threads, and of those that run Python.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store as Engine

from filestore.core.digest import Digest, chunk_digest
from filestore.core.object_names import ObjectName
from filestore.repository.stores.protocol import Staging
from tests.support.ceph import Bucket, running_gateway
from tests.support.s3_stores import IndexedStore, open_indexed_store

NAMESPACE = "default"
GB = 10**9


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="objects of each size")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.75, 2, 4], help="MiB of an object")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8, 32], help="how many at the same time, but for ours")
    arguments = parser.parse_args()
    with running_gateway() as gateway, tempfile.TemporaryDirectory() as name:
        bucket, folder = gateway.new_bucket(), Path(name)
        for megabytes in arguments.sizes:
            work = Work(arguments.count, int(megabytes * (1 << 20)))
            for together in arguments.together:
                asyncio.run(measure_library(bucket, work, together))
                asyncio.run(measure_unsigned(bucket, work, together))
                if shutil.which("rclone"):
                    measure_rclone(bucket, folder, work, together)
            asyncio.run(measure_store(bucket, folder, work))
            for ours, theirs in (("put, S3Store", "put, "), ("get, read_into", "get, "), ("get, open", "get, ")):
                for peer in ("obstore", "rclone"):
                    if theirs + peer in work.seconds:
                        print(f"{ours} / the fastest {theirs}{peer}: {work.seconds[theirs + peer] / work.seconds[ours]:.2f}")


class Work:
    """Objects of one size, of which each has one of 16 contents."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.contents = [os.urandom(size) for _ in range(16)]
        self.seconds: dict[str, float] = {}
        """The least that each way took."""

    def content(self, number: int) -> bytes:
        """Return the content of an object."""
        return self.contents[number % len(self.contents)]

    @contextmanager
    def measured(self, what: str, together: int, *, whose: int = resource.RUSAGE_SELF) -> Iterator[None]:
        """Print the rate of a block that moves all objects, and the processor time of this process, or of its children."""
        began, used, below = time.perf_counter(), processor_seconds(whose), library_seconds()
        yield
        seconds, whole, library = time.perf_counter() - began, processor_seconds(whose) - used, library_seconds() - below
        moved = self.count * self.size
        self.seconds[what] = min(seconds, self.seconds.get(what, seconds))
        python = "" if whose == resource.RUSAGE_CHILDREN else f", {(whole - library) / moved * GB:5.2f} of Python's threads"
        name = f"{what:15} {self.count} x {self.size / (1 << 20):g} MiB, {together:2} at a time"
        print(f"{name:48} {moved / (1 << 20) / seconds:7.1f} MiB/s   {whole / moved * GB:5.2f} s/GB{python}", flush=True)


async def measure_library(bucket: Bucket, work: Work, together: int) -> None:
    """Put and get objects by obstore alone."""
    engine = library_engine(bucket)

    async def put(number: int) -> None:
        await obstore.put_async(engine, str(number), work.content(number), use_multipart=False)

    async def get(number: int) -> None:
        await obstore.get_range_async(engine, str(number), start=0, length=work.size)

    with work.measured("put, obstore", together):
        await side_by_side(put, work.count, together)
    with work.measured("get, obstore", together):
        await side_by_side(get, work.count, together)
    await obstore.delete_async(engine, [str(number) for number in range(work.count)])


async def measure_unsigned(bucket: Bucket, work: Work, together: int) -> None:
    """Put objects by obstore without the SHA-256 of their bytes in the request, which a store compares with what arrives.

    It costs as much as all the rest of a put. `S3Client` leaves it out only where TLS protects the bytes: Ceph's gateway knows no
    other checksum but MD5, which takes twice as long.
    """
    engine = library_engine(bucket, unsigned_payload=True)

    async def put(number: int) -> None:
        await obstore.put_async(engine, str(number), work.content(number), use_multipart=False)

    with work.measured("put, unsigned", together):
        await side_by_side(put, work.count, together)
    await obstore.delete_async(engine, [str(number) for number in range(work.count)])


def library_engine(bucket: Bucket, *, unsigned_payload: bool = False) -> Engine:
    """Return a client of obstore."""
    keys = bucket.credentials
    return Engine(
        bucket.name,
        prefix="plain",
        config={"endpoint": bucket.endpoint, "access_key_id": keys.access_key, "secret_access_key": keys.secret_key},
        client_options={"allow_http": True},
        unsigned_payload=unsigned_payload,
    )


async def measure_store(bucket: Bucket, folder: Path, work: Work) -> None:
    """Put frames in groups of 64, and read them in batches of 16 MiB: into memory, and into the files that a server sends."""
    store = await open_indexed_store(bucket, folder)
    digests = [chunk_digest(b"%d" % number) for number in range(work.count)]
    with work.measured("put, S3Store", 32):
        await asyncio.to_thread(put_groups, store, work, digests)
    batch = max(1, (16 << 20) // work.size)
    batches = [digests[start : start + batch] for start in range(0, work.count, batch)]
    buffer = memoryview(bytearray(batch * work.size))
    await store.read_into(NAMESPACE, batches[0], buffer)
    with work.measured("get, read_into", batch):
        for each in batches:
            await store.read_into(NAMESPACE, each, buffer)
    with work.measured("get, open", batch):
        for each in batches:
            for file in await store.open(NAMESPACE, each):
                if file is not None:
                    file.close()
    await store.remove(NAMESPACE, [ObjectName(digest) for digest in digests])
    await store.close()


def put_groups(store: IndexedStore, work: Work, digests: list[Digest]) -> None:
    """Stage and put frames as an ingest does."""
    for start in range(0, len(digests), 64):
        frames: list[tuple[Digest, Staging]] = []
        for number, digest in enumerate(digests[start : start + 64]):
            staging = store.new_staging()
            staging.write(work.content(number))
            staging.rest()
            frames.append((digest, staging))
        store.sync(NAMESPACE, frames)
        store.placement(NAMESPACE, frames).rename(set(digests))


def measure_rclone(bucket: Bucket, folder: Path, work: Work, together: int) -> None:
    """Copy the same objects from and to a folder by rclone."""
    source, target = folder / "source", folder / "target"
    source.mkdir()
    for number in range(work.count):
        (source / str(number)).write_bytes(work.content(number))
    keys = bucket.credentials
    common = [
        "rclone",
        "--config=",
        f"--transfers={together}",
        f"--checkers={together}",
        "--s3-provider=Ceph",
        "--ignore-checksum",
    ]
    options = [f"--s3-endpoint={bucket.endpoint}", f"--s3-access-key-id={keys.access_key}"]
    environ = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    environ["RCLONE_S3_SECRET_ACCESS_KEY"] = keys.secret_key
    remote = f":s3:{bucket.name}/rclone"
    for step, here, there in (("put", str(source), remote), ("get", remote, str(target))):
        with work.measured(f"{step}, rclone", together, whose=resource.RUSAGE_CHILDREN):
            subprocess.run([*common, *options, "copy", here, there], check=True, env=environ, stderr=subprocess.DEVNULL)
    subprocess.run([*common, *options, "delete", remote], check=True, env=environ, stderr=subprocess.DEVNULL)
    shutil.rmtree(source)
    shutil.rmtree(target)


async def side_by_side(call: Callable[[int], Awaitable[None]], count: int, together: int) -> None:
    """Make `count` calls, so many at the same time."""

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            await call(number)

    numbers = iter(range(count))
    await asyncio.gather(*(work(numbers) for _ in range(together)))


def processor_seconds(whose: int) -> float:
    """Processor time so far."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def library_seconds() -> float:
    """Processor time of the threads that obstore has made."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        if "tokio" in name:
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
