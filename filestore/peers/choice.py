"""Choose which peer to ask for a chunk, and leave out those that fail.

Source: D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1),
1998, for the choice (rendezvous hashing). All clients with the same peers rank them alike for a chunk, so that only few peers get
it from the server. A peer that comes or goes changes only the ranks of its own chunks.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.system.retries import Clock

if TYPE_CHECKING:  # importing numpy takes 0.15 s
    import numpy as np
    from numpy.typing import NDArray

COPIES = 2
"""How many peers get each chunk. Each of them gets it from the server once."""
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
"""How long a peer that fails again and again is left out at a time."""
FULL_SECONDS = 60.0
"""How long a peer may be full before that is a failure of it. The server would have less room."""
_GROWTH = 2
_BLOCK = 1 << 16
"""How many pairs of a digest and a peer are computed in one call. They take some MiB."""


def choose(
    digests: Sequence[Digest], peers: Sequence[str], *, client: bytes, left_out: Collection[str] = ()
) -> list[tuple[int, ...]]:
    """Return for each digest the numbers of the peers to ask, in the order in which this client asks them.

    These are its first `COPIES` peers, without those that are `left_out`. If none is left, it is the next one in the ranking: one
    that is not asked by others, and would get the frame from the server too. No number means that all peers are left out.

    `peers` are texts such as HOST:PORT, each of them once. `client` is random. It decides which of them this client asks first:
    for each chunk, about the same number of clients ask each of them. It takes about 5 ns for each pair of a digest and a peer.
    """
    import numpy as np  # noqa: PLC0415  # on first use

    if not peers:
        return [()] * len(digests)
    keys = np.array([_key(peer.encode()) for peer in peers], np.uint64)
    works = np.array([peer not in left_out for peer in peers])
    names = np.frombuffer(b"".join(digests), "<u8")[:: DIGEST_SIZE // 8].astype(np.uint64)
    turns = _mixed(names ^ np.uint64(_key(client))).tolist()
    step = max(1, _BLOCK // len(peers))
    found: list[tuple[int, ...]] = []
    for start in range(0, len(digests), step):
        scores = _mixed(names[start : start + step, None] ^ keys)
        every = np.arange(len(scores))
        best = []
        for _ in range(min(COPIES, len(peers))):
            best.append(scores.argmax(axis=1))
            scores[every, best[-1]] = 0
        following = np.where(works, scores, np.uint64(0)).argmax(axis=1) if left_out else best[0]
        for place, first in enumerate(zip(*(each.tolist() for each in best), strict=True)):
            turn = turns[start + place] % len(first)
            asked = tuple(number for number in first[turn:] + first[:turn] if works[number])
            rest = int(following[place])
            found.append(asked or ((rest,) if works[rest] else ()))
    return found


@lru_cache(maxsize=1 << 13)
def _key(text: bytes) -> int:
    return int.from_bytes(blake3(text).digest(8), "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64 bits over all 64 bits.

    Source: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (the mixing of SplitMix).
    """
    import numpy as np  # noqa: PLC0415  # on first use

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Health:
    """Which peers are left out because they failed. A peer that fails again is left out for longer."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._failures: dict[str, int] = {}
        """How often each peer has failed since it last worked."""
        self._left_out_until: dict[str, float] = {}
        self._full_since: dict[str, float] = {}
        """Since when each peer has been full. It has given nothing since."""

    def left_out(self) -> set[str]:
        """Return the peers that are left out now."""
        now = self._clock()
        return {peer for peer, until in self._left_out_until.items() if until > now}

    def note_failure(self, peer: str) -> bool:
        """Leave a peer out for some time. Return False if it is left out already, as by a request at the same time."""
        now = self._clock()
        if self._left_out_until.get(peer, now) > now:
            return False
        # A peer that is not known any more takes no memory for ever.
        for old in [each for each, until in self._left_out_until.items() if until + LONGEST_PAUSE_SECONDS < now]:
            del self._left_out_until[old]
            self._failures.pop(old, None)
            self._full_since.pop(old, None)
        failures = self._failures[peer] = self._failures.get(peer, 0) + 1
        # The power is bounded: a larger number cannot become a float.
        pause = FIRST_PAUSE_SECONDS * _GROWTH ** min(failures - 1, 16)
        self._left_out_until[peer] = now + min(LONGEST_PAUSE_SECONDS, pause)
        return True

    def note_full(self, peer: str, asked: float) -> bool:
        """Note that a peer is full, and asks to come back after `asked` seconds. Return False if that is a failure.

        A peer that is full whenever it is asked, or asks for too long a pause, would else hold up every request.
        """
        now = self._clock()
        return now + asked < self._full_since.setdefault(peer, now) + FULL_SECONDS

    def note_success(self, peer: str) -> None:
        """Note that a peer works. One that is left out stays so until its time ends."""
        self._full_since.pop(peer, None)
        if self._failures and self._left_out_until.get(peer, 0.0) <= self._clock():
            self._failures.pop(peer, None)
