"""Measure each stage alone on one core, to compare it with a later change.

python bench/stages.py --json before.json                       # then change something
python bench/stages.py --against before.json
python bench/stages.py --chunks 100000 --rounds 1               # all stages, quickly
python bench/stages.py --folder /var/tmp                        # the index on a disk

`codec.py` measures codecs with more kinds of data. The index is one file of SQLite with ten million chunks, for 10 TB
of weights. It is asked for batches of chunks from all parts of it, and measured by the wall clock; all else is
processor time. *Cold* means: over new connections, after the kernel was told to forget the file's pages. *Lock* means:
processor time outside calls that give up the interpreter's lock, an upper bound of the time under it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import mmap
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.codec import measured  # noqa: E402  # a script finds its neighbours only now
from bench.data import bf16, write_safetensors  # noqa: E402
from filestore.core.digest import DIGEST_SIZE, Digest, chunk_digest  # noqa: E402
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest  # noqa: E402
from filestore.format.chunking import CHUNKING_VERSION, Chunker  # noqa: E402
from filestore.format.codec import Codec, Decoder, Encoder, Frame, frame_limit  # noqa: E402
from filestore.format.zip.checksum import Checksum  # noqa: E402
from filestore.http.wire import BatchEntry, BatchParser, decode_batch_entries, encode_batch_header  # noqa: E402
from filestore.repository.index.protocol import ChunkRow  # noqa: E402
from filestore.repository.index.sqlite import SqliteIndex, open_index  # noqa: E402
from filestore.system.metrics import StageTimes, count_into, own_usage  # noqa: E402
from filestore.transfer.sources.file import WINDOW_SIZE, Window  # noqa: E402

MIB = 1 << 20
PIECE = 256 << 10
FRAME_SIZE = 700 << 10
BATCHES = (16, 1024)
"""Chunks of one request: those of a window of weights, and more than any window has."""
ADDED = 64
"""Chunks of a batch, which are made live together."""
NAMESPACE = "default"


class Stage(NamedTuple):
    """The result of one stage. A larger value is better for rates, and worse for all others."""

    name: str
    value: float
    unit: str


def main() -> None:
    """Measure every stage, and print each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="MiB of content (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are shown (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=10_000_000, help="in the index (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the index (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="a file for the results")
    parser.add_argument("--against", type=Path, help="such a file of an earlier measurement")
    options = parser.parse_args()
    earlier = json.loads(options.against.read_text(encoding="utf-8"))["stages"] if options.against else {}
    found: dict[str, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-stages-") as name:
        for stage in _stages(Path(name), options):
            found[stage.name] = {"value": stage.value, "unit": stage.unit}
            before = f"   {stage.value / earlier[stage.name]['value']:.2f} x before" if stage.name in earlier else ""
            print(f"{stage.name:58} {stage.value:12,.2f} {stage.unit}{before}", flush=True)
    if options.json is not None:
        result = {"commit": _commit(), "machine": platform.platform(), "cores": os.cpu_count(), "stages": found}
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _commit() -> str:
    """Return the commit that was measured, as far as git knows it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _stages(folder: Path, options: argparse.Namespace) -> Iterator[Stage]:
    size, rounds = options.size * MIB, options.rounds
    yield from _scanning(folder, size, rounds)
    yield from _coding(size, rounds)
    yield from _locking(size, rounds)
    yield from _framing(size, rounds)
    yield from _listing(rounds)
    yield from asyncio.run(_indexing(folder / "index.sqlite", options.chunks, rounds))


def _scanning(folder: Path, size: int, rounds: int) -> Iterator[Stage]:
    path = folder / "weights.safetensors"
    write_safetensors(path, size=size)
    # Anonymous memory, like the buffers of a push. The bytes of a mapped file would also cost page faults.
    weights = memoryview(mmap.mmap(-1, path.stat().st_size))
    weights[:] = path.read_bytes()
    noise = memoryview(mmap.mmap(-1, size))
    noise[:] = np.random.default_rng(1).bytes(size)
    yield _rate("cut: safetensors of bf16", len(weights), rounds, lambda: Chunker().cut(weights, final=True))
    yield _rate("cut: random bytes, no structure", size, rounds, lambda: Chunker().cut(noise, final=True))
    pieces = [weights[start : start + MIB] for start in range(0, len(weights), MIB)]
    yield _rate("hash: chunks of 1 MiB", len(weights), rounds, lambda: [chunk_digest(piece) for piece in pieces])
    yield _rate("sum: CRC of an entry, pieces of 1 MiB", len(weights), rounds, lambda: _summed(pieces))


def _summed(pieces: list[memoryview]) -> None:
    checksum = Checksum()
    offset = 0
    for piece in pieces:
        checksum.add(offset, piece)
        offset += len(piece)


def _coding(size: int, rounds: int) -> Iterator[Stage]:
    generator = np.random.default_rng(1)
    normal = generator.standard_normal(size // 4, dtype=np.float32) * np.float32(0.02)
    kinds = {
        "bf16": bf16(1, size + 2)[1 : size + 1],
        "fp32": normal.tobytes(),
        "int8": np.clip(np.round(normal * 1600), -127, 127).astype("i1").tobytes(),
        "text": b" ".join(b"%x" % number for number in generator.zipf(1.3, size // 16) % 5000),
        "random": generator.bytes(size),
    }
    for kind, content in kinds.items():
        yield from _coded(kind, content, rounds, None)
    # Each codec, on the data for which it is made.
    yield from _coded("random", kinds["random"], rounds, Codec.RAW)
    yield from _coded("text", kinds["text"], rounds, Codec.ZSTD)
    yield from _coded("bf16", kinds["bf16"], rounds, Codec.PLANES2_ZSTD)
    yield from _coded("fp32", kinds["fp32"], rounds, Codec.PLANES4_ZSTD)


def _coded(kind: str, content: bytes, rounds: int, codec: Codec | None) -> Iterator[Stage]:
    result = measured(kind, content, chunk_size=MIB, rounds=rounds, codec=codec)
    what = f"{kind}, {'the best codec' if codec is None else codec.name.lower().replace('_', '+')}"
    yield Stage(f"encode: {what}", result.size / result.encode_seconds / 1e9, "GB/s")
    yield Stage(f"decode and verify: {what}", result.size / result.decode_seconds / 1e9, "GB/s")
    yield Stage(f"size left: {what}", 100 * result.stored_size / result.size, "%")


class _Windows:
    """Windows of content in memory of their own, and each step that a thread of a push or a fetch does with them."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(mmap.mmap(-1, len(content)))
        self._content[:] = content
        self._views = [self._content[start : start + WINDOW_SIZE] for start in range(0, len(content), WINDOW_SIZE)]
        self._cuts = [Chunker().cut(view, final=True) for view in self._views]
        self._out = memoryview(mmap.mmap(-1, WINDOW_SIZE + (64 << 10)))
        self._scratch = memoryview(mmap.mmap(-1, frame_limit(CHUNK_LIMIT)))
        self._encoder, self._decoder = Encoder(), Decoder()
        self._hashed = self.hash()
        self._frames = [Frame(frame.digest, bytes(frame.data)) for chunks in self._hashed for frame in self._encoded(chunks)]

    def cut(self) -> None:
        """Find where chunks begin."""
        for view in self._views:
            Chunker().cut(view, final=True)

    def hash(self) -> list[list[tuple[Digest, memoryview]]]:
        """Return the digests and contents of the chunks of each window."""
        return [Window.cut(view, sizes, bytearray()).hash() for view, sizes in zip(self._views, self._cuts, strict=True)]

    def encode(self) -> None:
        """Choose codecs, and encode."""
        for chunks in self._hashed:
            self._encoded(chunks)

    def decode(self) -> None:
        """Decode and verify all frames."""
        for frame in self._frames:
            self._decoder.decode(frame, self._scratch)

    def _encoded(self, chunks: list[tuple[Digest, memoryview]]) -> list[Frame]:
        frames, start = [], 0
        lengths = self._encoder.encode_all([content for _, content in chunks], self._out)
        for (digest, _), length in zip(chunks, lengths, strict=True):
            frames.append(Frame(digest, self._out[start : start + length]))
            start += length
        return frames


def _locking(size: int, rounds: int) -> Iterator[Stage]:
    for kind, content in (("bf16", bf16(1, size + 2)[1 : size + 1]), ("random", np.random.default_rng(1).bytes(size))):
        both = _Windows(content), _Windows(content)
        for what, step in (
            ("cut", _Windows.cut),
            ("hash", _Windows.hash),
            ("encode", _Windows.encode),
            ("decode and verify", _Windows.decode),
        ):
            for threads in (1, 2):
                works = [partial(step, windows) for windows in both[:threads]]
                seconds = median(_lock_seconds(works) for _ in range(rounds))
                named = "one thread" if threads == 1 else "two threads"
                yield Stage(f"lock: {what} {kind}, {named}", seconds / (threads * len(content)) * 1e12, "ms/GB")


def _lock_seconds(works: Sequence[Callable[[], object]]) -> float:
    """Run each work in a thread, and return the processor time of all outside calls that give up the interpreter's lock."""
    threads = [threading.Thread(target=work) for work in works]
    count_into(StageTimes())
    before = own_usage().lock_seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = own_usage().lock_seconds - before
    count_into(None)
    return passed


def _framing(size: int, rounds: int) -> Iterator[Stage]:
    frame = os.urandom(FRAME_SIZE)
    entries = [BatchEntry(Digest(hashlib.sha256(b"%d" % place).digest()), FRAME_SIZE) for place in range(size // FRAME_SIZE)]
    batch = memoryview(encode_batch_header(entries) + frame * len(entries))

    def parse() -> None:
        parser = BatchParser(size=len(batch))
        for start in range(0, len(batch), PIECE):
            for _ in parser.feed(batch[start : start + PIECE]):
                pass

    header = encode_batch_header(entries)
    yield Stage("take a batch apart: a frame in pieces of 256 KiB", _median(parse, rounds) / len(entries) * 1e6, "us")
    yield Stage(
        "parse a batch's header: a frame",
        _median(lambda: decode_batch_entries(header[4:], absent_allowed=True), rounds) / len(entries) * 1e6,
        "us",
    )
    yield Stage(
        "encode a batch's header: a frame", _median(lambda: encode_batch_header(entries), rounds) / len(entries) * 1e6, "us"
    )


def _listing(rounds: int) -> Iterator[Stage]:
    count = 200_000
    chunks = [Chunk(_digest(place, count), MIB) for place in range(count)]
    manifest = Manifest.build(chunks, chunking_version=CHUNKING_VERSION)
    seconds = _median(lambda: Manifest.build(chunks, chunking_version=CHUNKING_VERSION), rounds)
    yield Stage("build a manifest: a chunk", seconds / count * 1e6, "us")
    yield Stage("parse a manifest: a chunk", _median(lambda: Manifest.parse(manifest.encoded), rounds) / count * 1e6, "us")


async def _indexing(path: Path, count: int, rounds: int) -> list[Stage]:
    await (await open_index(path)).close()
    started = time.perf_counter()
    _fill(path, count)
    filled = (time.perf_counter() - started) / count
    size = path.stat().st_size  # noqa: ASYNC240  # nothing else waits for this loop
    stages = [
        Stage(f"index: {count:,} chunks by one insert in order, a chunk", filled * 1e6, "us"),
        Stage("index: size, a chunk", size / count, "bytes"),
    ]
    for batch in BATCHES:
        stages += await _asked(path, count, batch, rounds * 4)
    index = await open_index(path)
    try:
        return [*stages, await _added(index, rounds * 4)]
    finally:
        await index.close()


def _fill(path: Path, count: int) -> None:
    """Insert the rows of chunks into an unused index in the fastest way.

    `_added` measures how long a server takes for this.
    """
    # Seen just now, so that requests refresh nothing.
    seen = time.time_ns() // 1000
    rows = ((NAMESPACE, digest, MIB, FRAME_SIZE, seen, 0) for digest in _digests(count))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO chunks (namespace, digest, size, stored_size, last_seen, going) VALUES (?, ?, ?, ?, ?, ?)", rows
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


async def _asked(path: Path, count: int, batch: int, rounds: int) -> list[Stage]:
    """Yield how many chunks a second can be asked for in batches, for present and for missing ones."""
    chance = np.random.default_rng(batch)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        known = [_digest(int(place), count) for place in chance.choice(count, size=batch, replace=count < batch)]
        strange = [Digest(chance.bytes(DIGEST_SIZE)) for _ in range(batch)]
        for what, digests, answer in (("there", known, []), ("missing", strange, strange)):
            index = await open_index(path)
            try:
                # Open the reading connection before the measurement.
                await index.tokens()
                _forget_pages(path)
                # The second time, the pages are in memory.
                for state in ("cold", "warm"):
                    started = time.perf_counter()
                    missing = await index.missing(NAMESPACE, digests)
                    times.setdefault(f"{what}, {state}", []).append(time.perf_counter() - started)
                    if missing != answer:
                        raise SystemExit("the index gave a wrong answer")
            finally:
                await index.close()
    return [Stage(f"index: ask for {batch} that are {how}", batch / median(found), "chunks/s") for how, found in times.items()]


async def _added(index: SqliteIndex, rounds: int) -> Stage:
    chance = np.random.default_rng(2)
    times = []
    for _ in range(rounds):
        rows = [ChunkRow(Digest(chance.bytes(DIGEST_SIZE)), MIB, FRAME_SIZE) for _ in range(ADDED)]
        started = time.perf_counter()
        async with index.transaction() as transaction:
            await transaction.add_chunks(NAMESPACE, rows)
        times.append(time.perf_counter() - started)
    return Stage(f"index: make {ADDED} live in one durable transaction", ADDED / median(times), "chunks/s")


def _digest(place: int, count: int) -> Digest:
    """Return one of `count` digests that are spread evenly and increase with `place`."""
    return Digest((place * ((1 << 64) // count)).to_bytes(8, "big") + place.to_bytes(DIGEST_SIZE - 8, "big"))


def _digests(count: int) -> Iterator[bytes]:
    """Return all of these digests, the same bytes but much faster."""
    step = np.uint64((1 << 64) // count)
    for start in range(0, count, 1 << 16):
        places = np.arange(start, min(count, start + (1 << 16)), dtype=np.uint64)
        words = np.zeros((len(places), DIGEST_SIZE // 8), dtype=">u8")
        words[:, 0], words[:, -1] = places * step, places
        raw = words.tobytes()
        for place in range(0, len(raw), DIGEST_SIZE):
            yield raw[place : place + DIGEST_SIZE]


def _forget_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(name: str, size: int, rounds: int, work: Callable[[], object]) -> Stage:
    return Stage(name, size / _median(work, rounds) / 1e9, "GB/s")


def _median(work: Callable[[], object], rounds: int) -> float:
    return median(_once(work) for _ in range(rounds))


def _once(work: Callable[[], object]) -> float:
    # Processor time, because other work on this machine changes it less.
    started = time.thread_time()
    work()
    return time.thread_time() - started


if __name__ == "__main__":
    main()
