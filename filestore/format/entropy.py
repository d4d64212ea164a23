"""Estimate by samples of chunks how much Huffman coding would leave of their bytes.

All chunks are measured in one pass. A call of numpy takes some microseconds under the interpreter's lock, however few
bytes it gets, and gives the lock up for the time of the work itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from filestore.core.unlocked import unlocked

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLICE_COUNT = 8
FREQUENCY_SLICE_SIZE = 1024
"""A sample of 8 KiB shows a plane's entropy to 1 %."""

_VALUES = 256
_PLANES = 4
_PARTS = (1, 2, 2, 4, 4, 4, 4)
"""The whole and each plane, by the share of the bytes that it has: one half, one quarter."""


def sample(content: memoryview, slice_size: int) -> bytes:
    """Return slices of `content` from its start to its end.

    Each slice starts at a multiple of 4, and their total length is a multiple of 4.
    """
    if len(content) <= SLICE_COUNT * slice_size:
        return bytes(content[: len(content) // 4 * 4])
    step = (len(content) - slice_size) // (SLICE_COUNT - 1) // 4 * 4
    return b"".join([content[start : start + slice_size] for start in range(0, step * SLICE_COUNT, step)])


def huffman_shares(contents: Sequence[memoryview], np: ModuleType | None) -> list[list[float]]:
    """Return the shares that Huffman coding would leave of each of `contents`, which have at least 4 bytes.

    These are seven numbers from 0 to 1: of the whole, of each of 2 planes, of each of 4 planes. All planes are
    measured, because cuts fall on odd offsets, so the exponents may be in any plane.
    """
    samples = [sample(content, FREQUENCY_SLICE_SIZE) for content in contents]
    if np is None:
        return [[_plain_share(each[place::part]) for part in (1, 2, 4) for place in range(part)] for each in samples]
    sizes = np.array([len(each) for each in samples])
    size = int(sizes.max())
    if size * len(samples) > sizes.sum():
        samples = [each.ljust(size, b"\0") for each in samples]
    # Each plane of each sample has a row of 256 counts. `places` says for each byte where it is counted.
    planes = np.frombuffer(b"".join(samples), "u1").reshape(len(samples), size // _PLANES, _PLANES).transpose(2, 0, 1)
    rows = np.arange(_PLANES)[:, np.newaxis] + np.arange(0, len(samples) * _PLANES, _PLANES)
    places = np.empty(planes.shape, np.intp)
    unlocked(np.add, planes, (rows * _VALUES)[:, :, np.newaxis], places)
    counts = np.empty((len(samples), len(_PARTS), _VALUES), np.intp)
    quarters, halves = counts[:, 3:], counts[:, 1:3]
    found = unlocked(np.bincount, places.ravel(), None, len(samples) * _PLANES * _VALUES)
    unlocked(np.copyto, quarters, found.reshape(quarters.shape))
    quarters[:, :, 0] -= ((size - sizes) // _PLANES)[:, np.newaxis]  # the zeros that `ljust` has added
    unlocked(np.add, quarters[:, :2], quarters[:, 2:], halves)
    unlocked(np.add, halves[:, 0], halves[:, 1], counts[:, 0])
    return _shares(counts, sizes[:, np.newaxis] // _PARTS, np)


def _plain_share(plane: bytes) -> float:
    """Return the share that Huffman coding leaves of a plane.

    Source: G. A. Miller, Note on the bias of information estimates, 1955: a sample shows too little entropy.
    """
    counts = Counter(plane).values()
    if len(counts) == 1:
        return 0.0
    total = len(plane)
    sums = sum([count * math.log2(count) for count in counts])
    bits = (
        math.log2(total) - sums / total + (len(counts) - 1) / (2 * total * math.log(2)) + _at_least_one_bit(max(counts) / total)
    )
    return min(bits / 8, 1.0)


def _at_least_one_bit(frequency: float) -> float:
    """Return by how many bits for each byte a code is longer than the entropy, given the most frequent byte's frequency.

    A code has at least one bit, even if the entropy of that byte is less.
    """
    if not 0.5 < frequency < 1:
        return 0.0
    return 1 + frequency * math.log2(frequency) + (1 - frequency) * math.log2(1 - frequency)


def _shares(counts: NDArray[Any], totals: NDArray[Any], np: ModuleType) -> list[list[float]]:
    """Return the share that Huffman coding leaves for each row of `counts`, which has the counts of 256 values.

    `totals` has the sum of each row. The formula is that of `_plain_share`.
    """
    logs, count_logs = _logs()
    sums = unlocked(np.add.reduce, unlocked(count_logs.take, counts), 2)
    kinds = unlocked(np.add.reduce, unlocked(np.not_equal, counts, 0), 2)
    frequencies = unlocked(np.maximum.reduce, counts, 2) / totals
    bits = logs.take(totals) - sums / totals + (kinds - 1) / (2 * totals * math.log(2))
    for row, part in np.argwhere(frequencies > 0.5).tolist():
        bits[row, part] += _at_least_one_bit(float(frequencies[row, part]))
    shares = np.minimum(bits / 8, 1.0)
    shares[kinds == 1] = 0.0
    return list(shares.tolist())


@cache
def _logs() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return log2(count) and count x log2(count) for each count that a sample can have. They are 0 for 0."""
    import numpy as np  # noqa: PLC0415  # it is imported by now

    counts = np.arange(SLICE_COUNT * FREQUENCY_SLICE_SIZE + 1)
    return np.array([0.0, *map(math.log2, counts[1:].tolist())]), counts * np.log2(np.maximum(counts, 1))
