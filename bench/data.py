"""Files for measurements are generated in pieces from fixed seeds, so that large files need little memory."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

_THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_PIECE = 1 << 18
"""Values that are made at a time, in memory that stays in the cache of a core."""

TENSOR_SIZE = 32 << 20
"""Bytes of each tensor, a middle-sized matrix of a language model."""


def bf16(seed: int, size: int) -> bytes:
    """Return `size` bytes of normally distributed bfloat16, the hardest weights to compress."""
    return _bf16(seed, size).tobytes()


def _bf16(seed: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    generator = np.random.default_rng(seed)
    made = np.empty(size // 2, dtype="<u2")
    for start in range(0, len(made), _PIECE):
        piece = made[start : start + _PIECE]
        values = generator.standard_normal(len(piece), dtype=np.float32)
        values *= np.float32(0.02)
        # The high half of each value.
        piece[:] = values.view("<u2")[1::2]
    return made


def _tensors(seeds: Iterable[int], size: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint16]]]:
    """Yield the tensors of these seeds, which threads make: numpy does not hold the interpreter lock meanwhile."""
    with ThreadPoolExecutor(_THREADS) as pool:
        made: deque[Future[np.ndarray[tuple[int], np.dtype[np.uint16]]]] = deque()
        for seed in seeds:
            made.append(pool.submit(_bf16, seed, size))
            if len(made) > _THREADS:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def write_tree(folder: Path, *, file_count: int, largest: int = 64 << 10, big_count: int = 0, big_size: int = 0) -> int:
    """Make `folder` with small files of 1 KiB to `largest` and large ones of bf16; return their total size in bytes.

    A folder has a hundred files. Every second folder has random bytes, like images; the others have text.
    """
    generator = np.random.default_rng(11)
    words = [bytes(generator.integers(97, 123, length, dtype=np.uint8)) + b" " for length in generator.integers(2, 10, 4000)]
    text = b"".join(words[word] for word in generator.zipf(1.3, 1 << 20) % len(words))
    total = 0
    for place in range(file_count):
        size = int(generator.integers(1 << 10, largest + 1))
        below = folder / f"{place // 100:05}"
        if place % 100 == 0:
            below.mkdir(parents=True)
        start = int(generator.integers(0, len(text) - size))
        is_text = place // 100 % 2
        (below / f"{place:07}.bin").write_bytes(text[start : start + size] if is_text else generator.bytes(size))
        total += size
    for place in range(big_count):
        (folder / f"weights-{place}.bin").write_bytes(bf16(place, big_size))
    return total + big_count * big_size


def write_safetensors(
    path: Path,
    *,
    size: int,
    seed: int = 0,
    changed: float = 0,
    changed_seed: int = 1,
    header_padding: int = 0,
    tensor_size: int = TENSOR_SIZE,
) -> int:
    """Write about `size` bytes of bf16 tensors; return the bytes of tensors that come from `changed_seed`.

    A share of `changed` of the tensors, spread evenly, comes from the other seed, as in a fine-tune. The header is
    `header_padding` bytes longer, which shifts everything after it. `tensor_size` is a multiple of 8192.
    """
    count = max(1, size // tensor_size)
    tensors = {
        f"layers.{place}.weight": {
            "dtype": "BF16",
            "shape": [tensor_size // 8192, 4096],
            "data_offsets": [place * tensor_size, (place + 1) * tensor_size],
        }
        for place in range(count)
    }
    header = json.dumps({"__metadata__": {"note": "x" * header_padding}} | tensors).encode()
    header += b" " * (-len(header) % 8)
    fresh = [int((place + 1) * changed) > int(place * changed) for place in range(count)]
    seeds = [(changed_seed if is_fresh else seed) * 1_000_003 + place for place, is_fresh in enumerate(fresh)]
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in _tensors(seeds, tensor_size):
            file.write(tensor.data)
    return tensor_size * sum(fresh)
