"""The measurements of peers are printed as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

MIB = 1 << 20


class Measured(NamedTuple):
    """One run of one workload of one peer."""

    peer: str
    workload: str
    round: int
    size: int
    """Bytes of content that the user sees move."""
    seconds: float
    client_cpu_seconds: float
    server_cpu_seconds: float
    client_memory: int
    """Bytes at the peak, of the largest command if there are several."""
    server_memory: int
    bytes_sent: int | None
    """Bytes over loopback, in both directions, with headers. None if other traffic is counted too, or without a server."""
    bytes_stored: int
    """Bytes by which the store grew."""

    @property
    def rate(self) -> float:
        """Return GB/s."""
        return self.size / self.seconds / 1e9

    @property
    def bytes_moved(self) -> int:
        """Return the bytes that were sent, or stored if nothing is sent."""
        return self.bytes_stored if self.bytes_sent is None else self.bytes_sent

    @property
    def cpu_cost(self) -> float:
        """Return the seconds of processor time for each GB, both ends together."""
        return (self.client_cpu_seconds + self.server_cpu_seconds) / self.size * 1e9


class Goal(NamedTuple):
    """A goal for the ratio of filestore's rate to a peer's: `must` has to be reached, `aim` would be good."""

    workload: str
    ours: str
    peer: str
    must: float | None
    aim: float | None = None


GOALS = (
    Goal("push", "filestore", "restic", 2.5),
    Goal("push", "filestore", "xet", 2.5),
    Goal("push", "filestore", "curl", None, 0.5),
    Goal("push", "filestore", "curl-sync", None, 1.0),
    Goal("push-tuned", "filestore", "borg", 2.0, 3.0),
    Goal("push-again", "filestore", "xet", 1.2),
    Goal("fetch", "filestore", "aria2", 1.0),
    Goal("fetch", "filestore", "restic", 1.5),
    Goal("fetch", "filestore", "xet", 1.5),
    Goal("fetch", "filestore", "curl", None, 1.2),
    Goal("fetch-4", "filestore", "curl", 1.0),
    Goal("fetch", "curl-filestore", "curl", 0.7, 1.0),
    Goal("push-tree", "filestore", "zip-curl", 2.0),
    Goal("push-tree", "filestore", "curl-filestore", 2.0),
    Goal("push-tree", "filestore", "tar-curl", None, 1.0),
    Goal("fetch-tree", "filestore", "zip-curl", 4.0),
    Goal("fetch-tree", "filestore", "rclone", 2.0),
    Goal("fetch-tree", "filestore", "tar-curl", None, 1.0),
)
"""The goals of the issues on speed and on directories."""


class Results:
    """All results of a measurement."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._all = list(measured)
        self.peers = list(dict.fromkeys(one.peer for one in sorted(self._all, key=lambda one: one.round)))
        self.workloads = list(dict.fromkeys(one.workload for one in self._all))

    def of(self, peer: str, workload: str) -> dict[int, Measured]:
        """Return the results by round."""
        return {one.round: one for one in self._all if one.peer == peer and one.workload == workload}

    def middle(self, peer: str, workload: str, value: Callable[[Measured], float]) -> float | None:
        """Return the median of a value over the rounds, or None if it was not measured."""
        found = [value(one) for one in self.of(peer, workload).values()]
        return median(found) if found else None

    def ratios(self, workload: str, ours: str, peer: str) -> list[float]:
        """Return the ratios of rates within each round, sorted."""
        theirs = self.of(peer, workload)
        return sorted(one.rate / theirs[number].rate for number, one in self.of(ours, workload).items() if number in theirs)


def show(measured: Sequence[Measured], ceilings: Sequence[dict[str, float]], *, titles: dict[str, str]) -> None:
    """Print the tables, as Markdown. `titles` are the peers' full names, with whether they check digests."""
    results = Results(measured)
    print("\nGB/s of content, medians\n")
    _per_peer(results, titles, lambda one: one.rate, "{:.2f}")
    print("\nSeconds of processor time for a GB, client and server added, medians\n")
    _per_peer(results, titles, lambda one: one.cpu_cost, "{:.2f}")
    print("\nBytes sent for each byte of content, or bytes stored without a server, medians\n")
    _per_peer(results, titles, lambda one: one.bytes_moved / one.size, "{:.3f}")
    print("\nPeak memory of client / server, MiB, medians\n")
    _per_peer(results, titles, lambda one: one.client_memory / MIB, "{:.0f}", lambda one: one.server_memory / MIB)
    print("\nfilestore's rate as a multiple of the peer's, medians of ratios within a round\n")
    _row("peer [checks digests]", *results.workloads)
    _row(*["---"] * (1 + len(results.workloads)))
    for peer in results.peers:
        found = [results.ratios(workload, "filestore", peer) for workload in results.workloads]
        _row(titles[peer], *(f"{median(ratios):.2f}" if ratios else "" for ratios in found))
    print("\nGoals\n")
    _row("workload", "ours", "peer", "ratio (least to most)", "must", "aim", "reached")
    _row(*["---"] * 7)
    for goal in GOALS:
        if ratios := results.ratios(goal.workload, goal.ours, goal.peer):
            _row(goal.workload, titles[goal.ours], titles[goal.peer], *_judged(goal, ratios))
    print("\nCeilings of this machine in the same run, GB/s, medians\n")
    _row("step", "GB/s")
    _row("---", "---")
    for name in ceilings[0]:
        _row(name, f"{median(limits[name] for limits in ceilings):.2f}")


def _per_peer(
    results: Results,
    titles: dict[str, str],
    value: Callable[[Measured], float],
    form: str,
    second: Callable[[Measured], float] | None = None,
) -> None:
    _row("peer [checks digests]", *results.workloads)
    _row(*["---"] * (1 + len(results.workloads)))
    for peer in results.peers:
        cells = []
        for workload in results.workloads:
            found = [results.middle(peer, workload, one) for one in (value, second) if one is not None]
            cells.append(" / ".join(form.format(one) for one in found if one is not None))
        _row(titles[peer], *cells)


def _judged(goal: Goal, ratios: Sequence[float]) -> tuple[str, str, str, str]:
    ratio = median(ratios)
    must, aim = ("" if limit is None else f"{limit:g}" for limit in (goal.must, goal.aim))
    if goal.aim is not None and ratio >= goal.aim:
        reached = "aim"
    elif goal.must is not None and ratio >= goal.must:
        reached = "must"
    else:
        reached = "no"
    return f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", must, aim, reached


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)
