"""A set of digests in little memory, which may say of a few digests wrongly that they are in it (a Bloom filter).

It never says wrongly that a digest is not in it. Another random salt in each filter makes the wrong answers of two
filters independent.

Source: Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970; Kirsch and Mitzenmacher, "Less
Hashing, Same Performance", 2006, for the two hash values that make all places.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.manifest import Chunks

SIZE_LIMIT = 64 << 20
"""Bytes of the largest filter. Up to 32 million digests, at most six answers in 10,000 are wrong."""
_SMALLEST = 1 << 12
_BITS_PER_DIGEST = 16
_PLACES = 8
_SLICE = 16384
"""How many digests are added at a time, because another thread waits for that long."""
_ENTRY = np.dtype([("words", "<u8", (DIGEST_SIZE // 8,)), ("size", "<u4")])
_ONE = np.uint64(1)
_BYTE = np.uint64(3)
_BIT = np.uint64(7)


class DigestFilter:
    """A Bloom filter of digests. Its methods block: call them in a thread for more than some thousand digests."""

    def __init__(self, expected_count: int, *, size_limit: int = SIZE_LIMIT) -> None:
        """Make an empty filter that answers well for about `expected_count` digests. `size_limit` is a power of two."""
        wanted = max(_SMALLEST, expected_count * _BITS_PER_DIGEST // 8)
        self.size = min(size_limit, 1 << (wanted - 1).bit_length())
        self._bits = np.zeros(self.size, dtype=np.uint8)
        self._shift = np.uint64(64 - (self.size * 8).bit_length() + 1)
        self._salt = np.frombuffer(secrets.token_bytes(32), dtype="<u8") | _ONE

    def add(self, digests: Iterable[Digest]) -> None:
        """Add digests."""
        self._add(_words(digests))

    def add_chunks(self, chunks: Chunks) -> None:
        """Add the digests of the chunks of a manifest."""
        for words in _slices(chunks):
            self._add(words)

    def contained(self, digests: Iterable[Digest]) -> list[bool]:
        """Return for each digest whether it was added. The answer may be wrong for a few that were not added."""
        return [bool(found) for found in self._contained(_words(digests))]

    def absent_chunks(self, chunks: Chunks) -> Iterable[list[Digest]]:
        """Yield the digests of the chunks of a manifest that were certainly not added, in lists."""
        for words in _slices(chunks):
            yield [Digest(each.tobytes()) for each in words[~self._contained(words)]]

    def _add(self, words: NDArray[np.uint64]) -> None:
        places = self._places(words).ravel()
        byte, bit = places >> _BYTE, places & _BIT
        for number in range(8):
            # One bit at a time: an assignment to several equal places keeps only the last value.
            self._bits[byte[bit == number]] |= 1 << number

    def _contained(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        places = self._places(words)
        found = (self._bits[places >> _BYTE] >> (places & _BIT).astype(np.uint8)) & np.uint8(1)
        return np.asarray(found.all(axis=1), dtype=np.bool_)

    def _places(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        # Digests are random already; the salt mixes the words of each one in another way for each filter.
        first = (words[:, 0] ^ self._salt[0]) * self._salt[1] + words[:, 1]
        second = (words[:, 2] ^ self._salt[2]) * self._salt[3] + words[:, 3]
        steps = np.arange(_PLACES, dtype=np.uint64)
        return np.asarray((first[:, None] + steps * (second | _ONE)[:, None]) >> self._shift, dtype=np.uint64)


def _words(digests: Iterable[Digest]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, DIGEST_SIZE // 8)


def _slices(chunks: Chunks) -> Iterable[NDArray[np.uint64]]:
    entries = np.frombuffer(chunks.encoded, dtype=_ENTRY)
    for start in range(0, len(entries), _SLICE):
        yield entries["words"][start : start + _SLICE]
