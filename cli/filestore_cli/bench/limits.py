"""Name what limits a transfer, from measured figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from filestore.system.metrics import Stage, StageTotals

BUSY_SHARE = 0.9
"""So much of the processors is all of them: the rest is lost when threads hand over work."""
LOCK_SHARE = 0.8
"""A process that holds its interpreter lock for so much of the time cannot do more."""
CEILING_SHARE = 0.85
"""So much of the rate that was measured alone is all of it."""
WAITING_SHARE = 0.8

_LINK_STAGES = (Stage.SEND, Stage.RECEIVE, Stage.WAIT)
_DISK_STAGES = (Stage.READ, Stage.WRITE, Stage.SYNC)
_OUTSIDE = "Python and the system"

Stages = Mapping[Stage, StageTotals]


class SideFacts(NamedTuple):
    """What one side did during a transfer."""

    cpu_seconds: float
    lock_seconds: float
    """How long all processes together held their interpreter locks, at most."""
    busiest_lock_seconds: float
    """How long the process that did so longest held its interpreter lock, at most."""
    stages: Stages


class Facts(NamedTuple):
    """The measured figures of a transfer."""

    seconds: float
    cores: int
    """The cores that the processes on this machine may use."""
    sides: Mapping[str, SideFacts]
    """By `client` and, if it tells its numbers, `server`."""
    is_one_machine: bool
    """Whether the server is on this machine too, and was started for the measurement."""
    machine_busy: float | None
    """The number of cores of this machine that any program kept busy. None if it is not known, or if `cores` are not all."""
    link_rate: float
    """Bytes a second over the link."""
    link_ceiling: float | None
    """Bytes a second that the link takes alone, in that direction."""
    disk_rate: float | None
    """Bytes a second that were written to the disk of this machine. None if the writing is elsewhere."""
    disk_ceiling: float
    connections: int
    """Connections of all clients together."""


class Limit(NamedTuple):
    """What limits a transfer."""

    what: str
    """`interpreter lock`, `link`, `disk`, `other programs`, `connections`, `waiting`, a stage such as `encode`, or `python` for
    work outside all stages.
    """
    reason: str
    """The figures behind it, as the end of a sentence for a person."""


def limit_of(facts: Facts) -> Limit:
    """Return the first of these that is used up: processors, an interpreter lock, the link, the disk, the connections."""
    for rule in (_processors, _other_programs, _lock, _link, _disk, _connections):
        found = rule(facts)
        if found is not None:
            return found
    return _waiting(facts)


def cores_busy(facts: Facts) -> float:
    """Return how many cores of this machine the transfer kept busy."""
    return sum(side.cpu_seconds for side in _here(facts).values()) / facts.seconds


def _here(facts: Facts) -> Mapping[str, SideFacts]:
    """Return the sides whose processes are on this machine."""
    return facts.sides if facts.is_one_machine else {"client": facts.sides["client"]}


def _processors(facts: Facts) -> Limit | None:
    busy = cores_busy(facts)
    if busy < BUSY_SHARE * facts.cores:
        return None
    works = [
        (passed.cpu_seconds, str(stage), name) for name, side in _here(facts).items() for stage, passed in side.stages.items()
    ]
    works += [(_outside(side), "python", name) for name, side in _here(facts).items()]
    seconds, what, where = max(works)
    words = _OUTSIDE if what == "python" else what
    return Limit(what, f"{words} at the {where} took {seconds:.1f} s, and {busy:.1f} of {facts.cores} cores were busy")


def _outside(side: SideFacts) -> float:
    """Return the processor time that belongs to no stage."""
    return side.cpu_seconds - sum(passed.cpu_seconds for passed in side.stages.values())


def _other_programs(facts: Facts) -> Limit | None:
    if facts.machine_busy is None or facts.machine_busy < BUSY_SHARE * facts.cores:
        return None
    others = facts.machine_busy - cores_busy(facts)
    return Limit("other programs", f"they kept {others:.1f} of {facts.cores} cores busy")


def _lock(facts: Facts) -> Limit | None:
    name, side = max(facts.sides.items(), key=lambda item: item[1].busiest_lock_seconds)
    share = side.busiest_lock_seconds / facts.seconds
    if share < LOCK_SHARE:
        return None
    return Limit("interpreter lock", f"one process of the {name} held it for up to {share:.0%} of the time")


def _link(facts: Facts) -> Limit | None:
    if facts.link_ceiling is None or facts.link_rate < CEILING_SHARE * facts.link_ceiling:
        return None
    return Limit("link", f"{facts.link_rate / facts.link_ceiling:.0%} of what it carries alone")


def _disk(facts: Facts) -> Limit | None:
    if facts.disk_rate is not None and facts.disk_rate >= CEILING_SHARE * facts.disk_ceiling:
        return Limit("disk", f"{facts.disk_rate / facts.disk_ceiling:.0%} of what it takes alone, with a sync")
    waits = [
        (passed.seconds - passed.cpu_seconds, stage, name)
        for name, side in facts.sides.items()
        for stage in _DISK_STAGES
        if (passed := side.stages.get(stage))
    ]
    if not waits:
        return None
    seconds, stage, where = max(waits)
    if seconds < WAITING_SHARE * facts.seconds:
        return None
    return Limit("disk", f"the {where} waited for it for {seconds:.1f} s in the stage {stage}")


def _connections(facts: Facts) -> Limit | None:
    used = sum(passed.seconds for stage, passed in facts.sides["client"].stages.items() if stage in _LINK_STAGES)
    share = used / facts.seconds / facts.connections
    if share < WAITING_SHARE:
        return None
    return Limit(
        "connections", f"all {facts.connections} were in use for {min(share, 1):.0%} of the time; try more --connections"
    )


def _waiting(facts: Facts) -> Limit:
    stages = facts.sides["client"].stages
    waits = {stage: stages[stage].seconds for stage in _LINK_STAGES if stage in stages}
    if not waits:
        return Limit("waiting", "nothing was used up")
    longest = max(waits, key=lambda stage: waits[stage])
    return Limit("waiting", f"nothing was used up; the client was longest in the stage {longest}. Try more --connections")
