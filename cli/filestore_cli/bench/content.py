"""Make the content of a measurement from a seed. It is made in pieces, so that a large size takes no more memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

PIECE = 16 << 20
TENSOR_SIZE = 32 << 20
"""Bytes of a tensor: a matrix of medium size in a language model."""
SIZE_MIN = 64 << 10

_SMALL_MIN, _SMALL_MAX = 1 << 10, 64 << 10
_FOLDER_COUNT = 100
"""Number of files in a folder."""
_BIG_COUNT = 4
_POOL_WORDS = 1 << 20
_TENSOR_ENTRY = 128
"""The most bytes that one tensor takes in a header."""

Done = Callable[[int], None]
"""A function that is called with the number of bytes that were made."""


def make(kind: str, path: Path, *, size: int, seed: int, done: Done = lambda _: None) -> None:
    """Make a file of `size` bytes, or for `tree` a folder.

    It is synced, so that the disk is not busy with it afterwards.

    `size` is at least 64 KiB. Content from two seeds shares no chunks, except by chance and for a few headers.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    if kind == "tree":
        _make_tree(generator, path, size, done)
        return
    with path.open("wb") as file:
        pieces = _tensors(generator, kind, size) if kind in _FLOATS else _plain(generator, kind, size)
        for piece in pieces:
            file.write(piece)
            done(len(piece))
        _settle(file)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _normal(generator: np.random.Generator, size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    # Weights of this kind are the hardest to compress.
    return generator.standard_normal(size, dtype=np.float32) * np.float32(0.02)


def _bf16(generator: np.random.Generator, size: int) -> bytes:
    return (_normal(generator, size // 2).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def _fp32(generator: np.random.Generator, size: int) -> bytes:
    return _normal(generator, size // 4).astype("<f4").tobytes()


_FLOATS = {"bf16": ("BF16", 2, _bf16), "fp32": ("F32", 4, _fp32)}


def _tensors(generator: np.random.Generator, kind: str, size: int) -> Iterator[bytes]:
    """Yield the pieces of a safetensors file."""
    dtype, item_size, values = _FLOATS[kind]
    count = -(-size // TENSOR_SIZE)
    header_size = _TENSOR_ENTRY * (count + 1)
    data_size = (size - 8 - header_size) // item_size * item_size
    ends = [min((place + 1) * TENSOR_SIZE, data_size) for place in range(count)]
    header = {
        f"layers.{place}.weight": {
            "dtype": dtype,
            "shape": [(end - place * TENSOR_SIZE) // item_size],
            "data_offsets": [place * TENSOR_SIZE, end],
        }
        for place, end in enumerate(ends)
        if end > place * TENSOR_SIZE
    }
    yield header_size.to_bytes(8, "little") + json.dumps(header).encode().ljust(header_size)
    for start in range(0, data_size, PIECE):
        yield values(generator, min(PIECE, data_size - start))
    # The rest is smaller than one number.
    yield bytes(size - 8 - header_size - data_size)


def _plain(generator: np.random.Generator, kind: str, size: int) -> Iterator[bytes]:
    pool = _words(generator) if kind == "text" else b""
    for start in range(0, size, PIECE):
        count = min(PIECE, size - start)
        yield _text(generator, pool, count) if kind == "text" else generator.bytes(count)


def _words(generator: np.random.Generator) -> bytes:
    """Return random words. Some are frequent and most are rare, as in a language."""
    lengths = generator.integers(2, 10, 4000)
    words = [bytes(generator.integers(97, 123, length, dtype=np.uint8)) + b" " for length in lengths]
    return b"".join(words[word] for word in generator.zipf(1.3, _POOL_WORDS) % len(words))


def _text(generator: np.random.Generator, pool: bytes, size: int) -> bytes:
    """Return text that is made of passages of the pool.

    They are short and from many places, so that two chunks are never the same.
    """
    lengths = generator.integers(64, 1024, size // 400 + 16)
    starts = generator.integers(0, len(pool) - 1024, len(lengths))
    return b"".join(pool[start : start + length] for start, length in zip(starts, lengths, strict=True))[:size]


def _make_tree(generator: np.random.Generator, root: Path, size: int, done: Done) -> None:
    """Make a folder. Half of its bytes are small files: text or random bytes, by folder. Half are big files of bf16."""
    pool = _words(generator)
    root.mkdir()
    big_size = size // 2 // _BIG_COUNT // 2 * 2
    left = size - big_size * _BIG_COUNT
    place = 0
    while left:
        count = min(left, int(generator.integers(_SMALL_MIN, _SMALL_MAX + 1)))
        folder = root / f"{place // _FOLDER_COUNT:05}"
        folder.mkdir(exist_ok=True)
        is_text = place // _FOLDER_COUNT % 2
        (folder / f"{place:07}.bin").write_bytes(_text(generator, pool, count) if is_text else generator.bytes(count))
        left -= count
        place += 1
        done(count)
    for number in range(_BIG_COUNT):
        with (root / f"weights-{number}.bin").open("wb") as file:
            for start in range(0, big_size, PIECE):
                piece = _bf16(generator, min(PIECE, big_size - start))
                file.write(piece)
                done(len(piece))
    os.sync()
