"""The result of a measurement, as lines for a person and as the object that --json prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from filestore.system.machine import core_count
from filestore.system.metrics import Stage, StageTotals
from filestore_cli.bench.limits import Facts, SideFacts, cores_busy, limit_of
from filestore_cli.bench.run import BenchResult, Measurement, Plan, Side, connection_count
from filestore_cli.text import duration, for_display, in_units, table
from filestore_cli.version import installed_version

CEILINGS = {
    "memory_copy": "copy of memory",
    "blake3": "BLAKE3 on one core",
    "loopback": "a bare socket over loopback",
    "disk_write_sync": "write to disk and sync",
    "link_send": "a bare body to the server",
    "link_receive": "a bare body from the server",
}
STAGES = {
    Stage.READ: "reading files",
    Stage.CUT: "finding where chunks begin",
    Stage.HASH: "hashing",
    Stage.ENCODE: "compressing",
    Stage.SEND: "sending",
    Stage.WAIT: "waiting for an answer",
    Stage.RECEIVE: "receiving",
    Stage.VERIFY: "verifying",
    Stage.WRITE: "writing",
    Stage.SYNC: "waiting for the disk",
    Stage.COMMIT: "changing the index",
}
"""What happens in each stage, for a person."""
MOVED = {"upload": "sent", "fetch": "received"}
_LINKS = {"upload": "link_send", "fetch": "link_receive"}
"""The ceiling that is the rate of the link to a server of the user."""


class Machine(NamedTuple):
    """The machine and the versions of a measurement."""

    cores: int
    system: str
    python: str
    filestore: str


def machine() -> Machine:
    """Describe this machine."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(core_count(), system, platform.python_version(), installed_version() or "unknown")


def as_json(plan: Plan, found: BenchResult) -> dict[str, object]:
    """Return the whole result as a JSON object. Rates are bytes a second."""
    return {
        "verb": plan.verb,
        "kind": plan.kind if plan.path is None else "path",
        "path": None if plan.path is None else str(plan.path),
        "server": found.url,
        "is_own_server": plan.server is None,
        "codec": plan.codec,
        "connections": plan.link["connections"],
        "workers": plan.workers if plan.server is None else None,
        "folder": str(plan.folder),
        "machine": machine()._asdict(),
        "ceilings": dict(found.ceilings),
        "runs": [run_json(plan, found, run) for run in found.runs],
        "records_removed": found.removed,
    }


def run_json(plan: Plan, found: BenchResult, run: Measurement) -> dict[str, object]:
    """Return one measurement as a JSON object. `found` has the ceilings that were measured with it."""
    facts = facts_of(plan, found, run)
    limit = limit_of(facts)
    return {
        "size": run.size,
        "clients": run.clients,
        "seconds": run.seconds,
        "rate": run.rate,
        f"bytes_{MOVED[plan.verb]}": run.bytes_moved,
        "bytes_shared": run.bytes_shared,
        "client": _side_json(run.client),
        "server": None if run.server is None else _side_json(run.server),
        "cores_busy": cores_busy(facts),
        "limited_by": limit.what,
        "limited_by_reason": limit.reason,
    }


def _side_json(side: Side) -> dict[str, object]:
    return {
        "cpu_seconds": side.cpu_seconds,
        "lock_seconds": side.lock_seconds,
        "busiest_lock_seconds": side.busiest_lock_seconds,
        "peak_memory": side.peak_memory,
        "stages": {stage.value: passed._asdict() for stage, passed in side.stages.items()},
    }


def lines(plan: Plan, found: BenchResult) -> Iterator[str]:
    """Yield the whole result as lines for a person."""
    here = machine()
    yield f"{here.cores} cores, {here.system}, Python {here.python}, filestore {here.filestore}, in {for_display(plan.folder)}"
    yield f"server {for_display(found.url)}" + ("" if plan.server else ", started on an empty folder, and removed again")
    for run in found.runs:
        yield ""
        yield from _run_lines(plan, found, run)
    yield ""
    yield (
        "What this machine can do at most, in the same run:"
        if plan.server is None
        else "What is possible at most, in the same run:"
    )
    yield from table(**{CEILINGS[name].replace(" ", "_"): _rate(rate) for name, rate in found.ceilings.items()})
    if plan.server is not None:
        records = "1 record was" if found.removed == 1 else f"{found.removed} records were"
        yield ""
        yield f"{records} removed from the server, with all chunks that no other record needs."


def facts_of(plan: Plan, found: BenchResult, run: Measurement) -> Facts:
    """Return what says what limits a transfer."""
    cores = core_count()
    sides = {"client": run.client} | ({} if run.server is None else {"server": run.server})
    link_rate = run.bytes_moved / run.seconds
    if plan.verb == "fetch":
        disk_rate: float | None = run.rate
    else:
        disk_rate = link_rate if plan.server is None else None
    return Facts(
        seconds=run.seconds,
        cores=cores,
        sides={
            name: SideFacts(side.cpu_seconds, side.lock_seconds, side.busiest_lock_seconds, side.stages)
            for name, side in sides.items()
        },
        is_one_machine=plan.server is None,
        machine_busy=run.machine_busy if cores == os.cpu_count() else None,
        link_rate=link_rate,
        link_ceiling=found.ceilings["loopback"] if plan.server is None else found.ceilings.get(_LINKS[plan.verb]),
        disk_rate=disk_rate,
        disk_ceiling=found.ceilings["disk_write_sync"],
        connections=connection_count(plan.link) * max(run.clients, len(run.client.processes) - run.clients),
    )


def _run_lines(plan: Plan, found: BenchResult, run: Measurement) -> Iterator[str]:
    what = plan.kind if plan.path is None else for_display(plan.path)
    clients = "1 client" if run.clients == 1 else f"{run.clients} clients at the same time"
    yield f"{plan.verb} of {what}, {in_units(run.size)}, {clients}: {_rate(run.rate)}"
    share = f", {run.bytes_moved / run.size:.1%} of the content" if run.size else ""
    rows = {"time": duration(run.seconds), MOVED[plan.verb]: in_units(run.bytes_moved) + share}
    if run.bytes_shared:
        rows["did_not_move"] = f"{in_units(run.bytes_shared)}, because it was there already"
    rows["client"] = _side_line(run.client, run)
    rows["server"] = "its numbers are not shown for this token" if run.server is None else _side_line(run.server, run)
    rows |= _limit(facts_of(plan, found, run))
    yield from table(**rows)
    yield ""
    yield from _stage_lines(run)


def _side_line(side: Side, run: Measurement) -> str:
    cost = f" ({side.cpu_seconds / run.size * 1e9:.2f} for a GB)" if run.size else ""
    return f"{side.cpu_seconds:.2f} s of processor time{cost}, {in_units(side.peak_memory)} of memory at the peak"


def _limit(facts: Facts) -> dict[str, str]:
    """Return how busy processors and interpreter locks were, the longest stage of each side, and what limits the transfer."""
    where = "with it" if facts.is_one_machine else "with it here"
    locks = ", ".join(f"{name} {side.lock_seconds:.2f} s" for name, side in facts.sides.items())
    busiest = max(side.busiest_lock_seconds for side in facts.sides.values()) / facts.seconds
    rows = {
        "processors": f"{cores_busy(facts):.1f} of {facts.cores} were busy {where}",
        "lock": f"{locks}; the busiest process at most {busiest:.0%} of the time",
    }
    for name, side in facts.sides.items():
        if side.stages:
            longest = max(side.stages, key=lambda stage: side.stages[stage].seconds)  # called at once
            rows[f"the_{name}"] = f"spent most of its time {STAGES[longest]} (stage {longest})"
    limit = limit_of(facts)
    what = "Python" if limit.what == "python" else limit.what
    return rows | {"limited_by": f"{what}: {limit.reason}"}


def _stage_lines(run: Measurement) -> Iterator[str]:
    """Yield a row for each stage. For each side, it has time, processor time, bytes, and the rate of one thread."""
    sides = [("client", run.client.stages)] + ([] if run.server is None else [("server", run.server.stages)])
    titles = "".join(f"{name:>10}{'processor':>12}{'bytes':>10}{'a thread':>12}" for name, _ in sides)
    yield f"{'stage':<8}{titles}"
    for stage in Stage:
        if any(stage in stages for _, stages in sides):
            yield (f"{stage:<8}" + "".join(_cells(stages.get(stage)) for _, stages in sides)).rstrip()


def _cells(passed: StageTotals | None) -> str:
    if passed is None:
        return " " * 44
    rate = _rate(passed.size / passed.seconds) if passed.size and passed.seconds else ""
    size = in_units(passed.size) if passed.size else ""
    return f"{passed.seconds:>8.2f} s{passed.cpu_seconds:>10.2f} s{size:>10}{rate:>12}"


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e8 else f"{in_units(rate)}/s"


def stages_of(run: Measurement) -> Mapping[str, Mapping[Stage, StageTotals]]:
    """Return the stages of each side that reported them, by the name of the side."""
    return {"client": run.client.stages} | ({} if run.server is None else {"server": run.server.stages})
