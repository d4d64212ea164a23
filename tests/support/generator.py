"""Make portable pseudo-random content, the same on every machine and in every language. `docs/format.md` describes it."""

from __future__ import annotations

import numpy as np

_WORDS = b"the of and a to in is you that it he was for on are as".split()


def octets(seed: int, size: int) -> bytes:
    """Return the first `size` bytes of splitmix64 with this `seed`. Each number gives 8 bytes, little-endian."""
    count = -(-size // 8)
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state.astype("<u8").tobytes()[:size]


def prose(seed: int, size: int) -> bytes:
    """Return `size` bytes of text made from `octets`.

    Each byte is a word (low 4 bits), and a line end (high 4 bits all 0) or a space.
    """
    endings = [word + b"\n" for word in _WORDS] + [word + b" " for _ in range(15) for word in _WORDS]
    return b"".join(endings[choice] for choice in octets(seed, size // 2))[:size]
