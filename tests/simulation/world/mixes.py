"""Which processes a simulation has, and which trouble. Each seed has one mix, so that rare meetings become frequent in one.

Source: A. Groce et al., "Swarm Testing", ISSTA 2012: many different configurations, each with a part of the features, find more
faults than one configuration with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.world.model import GRACE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The processes and the trouble of one simulation. The weights of trouble are chances in a hundred."""

    name: str
    servers: int = 1
    remote_clients: int = 0
    local_clients: int = 0
    cache_users: int = 0
    collections: int = 0
    checks: int = 0
    repairs: int = 0
    kills: int = 0
    cuts: int = 0
    store_power_cuts: int = 0
    desk_power_cuts: int = 0
    nights: int = 0
    full_disks: int = 0
    pauses: int = 0
    collection_pause_seconds: float = 0.02
    """How long a process waits at most between two collections."""
    collection_slowness_seconds: float = 0
    """How long a collection waits at most after each of its writes. Others can write meanwhile."""
    grace_seconds: float = GRACE_SECONDS
    """The grace period of collections."""
    kept_limit: int = 6
    """A client that has more files removes one."""
    fetches: float = 0
    """The chance that a client that has files fetches one, instead of anything else."""
    cancels: float = 0
    """The chance that a fetch is cancelled at any moment, and then done again."""
    slow_pushes: float = 0
    """The chance that a push does nothing for a while after it has asked which chunks are missing."""
    repeats: float = 0
    """The chance that a client removes a file, or pushes a removed one again, instead of anything else."""
    moves: bool = False
    """Each of these removals comes after a fetch of the file."""
    killed: frozenset[str] = field(default=frozenset())
    """The beginnings of the names of the processes that are killed. None means all."""


MIXES = (
    Mix(
        name="everything",
        servers=2,
        remote_clients=2,
        local_clients=1,
        cache_users=2,
        collections=1,
        checks=1,
        repairs=1,
        kills=12,
        cuts=8,
        store_power_cuts=3,
        desk_power_cuts=2,
        nights=5,
        full_disks=3,
        pauses=2,
    ),
    Mix(name="collections", servers=0, local_clients=3, collections=2, nights=35, kills=2),
    Mix(name="power", servers=0, local_clients=2, collections=1, store_power_cuts=25, kills=10, nights=10),
    Mix(name="caches", local_clients=1, cache_users=3, kills=35, desk_power_cuts=2, killed=frozenset({"cache"})),
    Mix(name="clients", servers=2, remote_clients=3, kills=20, cuts=20, desk_power_cuts=3, full_disks=4),
    Mix(name="repeats", servers=0, local_clients=3, collections=1, nights=45, repeats=0.8),
    Mix(name="cancels", servers=0, local_clients=2, kills=8, fetches=0.8, cancels=0.7),
    Mix(
        name="slow pushes",
        servers=0,
        local_clients=3,
        collections=1,
        nights=18,
        collection_pause_seconds=0.1,
        repeats=0.8,
        slow_pushes=0.95,
    ),
    Mix(
        name="slow collections",
        servers=0,
        local_clients=2,
        collections=2,
        grace_seconds=0,
        collection_slowness_seconds=0.05,
        kept_limit=2,
        repeats=0.8,
        moves=True,
    ),
    Mix(name="power alone", servers=0, local_clients=4, store_power_cuts=40),
)
"""The mixes. A seed has the one whose number is the rest of its division by their count."""


def mix_of(seed: int) -> Mix:
    """Return the mix of a seed."""
    return MIXES[seed % len(MIXES)]
