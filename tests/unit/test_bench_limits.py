"""What `filestore bench` concludes about the limit of a transfer, from figures that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from filestore.system.metrics import Stage, StageTotals
from filestore_cli.bench.limits import Facts, SideFacts, cores_busy, limit_of


def stage(seconds: float, cpu_seconds: float = 0.0) -> StageTotals:
    """The totals of a stage."""
    return StageTotals(1, 0, seconds, cpu_seconds)


def side(cpu_seconds: float, *, lock_seconds: float = 0.0, **stages: StageTotals) -> SideFacts:
    """One side, with its stages by their names."""
    return SideFacts(cpu_seconds, lock_seconds, lock_seconds, {Stage(name): passed for name, passed in stages.items()})


IDLE_SERVER = side(0.5, receive=stage(1.0, 0.5))


def facts(client: SideFacts, server: SideFacts | None = IDLE_SERVER, **changes: Any) -> Facts:
    """Ten seconds on four cores, with a server of its own, where nothing is used up."""
    sides = {"client": client} | ({} if server is None else {"server": server})
    plain = Facts(
        seconds=10.0,
        cores=4,
        sides=sides,
        is_one_machine=True,
        machine_busy=None,
        link_rate=1e8,
        link_ceiling=1e9,
        disk_rate=1e8,
        disk_ceiling=1e9,
        connections=4,
    )
    return plain._replace(**changes)


def test_busy_processors_are_named_by_the_stage_that_took_most() -> None:
    """Of both sides, if they share the machine."""
    client = side(22.0, encode=stage(30.0, 12.0), hash=stage(5.0, 5.0))
    server = side(15.0, verify=stage(20.0, 10.0))
    assert ("encode", "encode at the client took 12.0 s, and 3.7 of 4 cores were busy") == limit_of(facts(client, server))
    assert 3.7 == pytest.approx(cores_busy(facts(client, server)))


def test_busy_processors_may_be_busy_outside_all_stages() -> None:
    """Python, and what the system does for it."""
    client = side(37.0, encode=stage(10.0, 10.0))
    assert ("python", "Python and the system at the client took 27.0 s, and 3.8 of 4 cores were busy") == limit_of(facts(client))


def test_a_server_elsewhere_does_not_keep_the_processors_here_busy() -> None:
    """Its cores are not known."""
    client = side(10.0, encode=stage(10.0, 9.0))
    assert "verify" == limit_of(facts(client, side(29.0, verify=stage(29.0, 29.0)))).what
    elsewhere = facts(client, side(29.0, verify=stage(29.0, 29.0)), is_one_machine=False)
    assert (1.0, "waiting") == (cores_busy(elsewhere), limit_of(elsewhere).what)


def test_other_programs_are_named() -> None:
    """They kept the processors busy, and the transfer did not."""
    found = limit_of(facts(side(10.0, encode=stage(10.0, 10.0)), machine_busy=3.95))
    assert ("other programs", "they kept 2.9 of 4 cores busy") == found
    assert "other programs" != limit_of(facts(side(10.0), machine_busy=2.0)).what


@pytest.mark.parametrize("name", ["client", "server"])
def test_a_process_that_holds_its_lock_all_the_time_is_the_limit(name: str) -> None:
    """At either side, while cores are idle."""
    held, free = side(12.0, lock_seconds=8.5), side(5.0, lock_seconds=2.0)
    client, server = (held, free) if name == "client" else (free, held)
    found = limit_of(facts(client, server))
    assert ("interpreter lock", f"one process of the {name} held it for up to 85% of the time") == found


def test_a_full_link_is_the_limit() -> None:
    """It carries what it carries alone."""
    assert ("link", "95% of what it carries alone") == limit_of(facts(side(5.0), link_rate=9.5e8))
    assert "link" != limit_of(facts(side(5.0), link_rate=9.5e8, link_ceiling=None)).what


def test_a_disk_that_takes_all_it_can_is_the_limit() -> None:
    """Measured alone, with a sync."""
    assert ("disk", "90% of what it takes alone, with a sync") == limit_of(facts(side(5.0), disk_rate=9e8))
    assert "disk" != limit_of(facts(side(5.0), disk_rate=None)).what


@pytest.mark.parametrize(
    ("client", "server", "said"),
    [
        (side(5.0, read=stage(9.5, 0.5)), IDLE_SERVER, "the client waited for it for 9.0 s in the stage read"),
        (side(5.0), side(5.0, sync=stage(8.2, 0.1)), "the server waited for it for 8.1 s in the stage sync"),
    ],
)
def test_a_side_that_waits_for_its_disk_is_named(client: SideFacts, server: SideFacts, said: str) -> None:
    """Time in a stage of the disk that no processor was used."""
    assert ("disk", said) == limit_of(facts(client, server))


def test_connections_that_are_all_in_use_are_the_limit() -> None:
    """Over a long link, each waits for its answer."""
    client = side(2.0, send=stage(5.0), wait=stage(33.0))
    found = limit_of(facts(client, None, is_one_machine=False))
    assert ("connections", "all 4 were in use for 95% of the time; try more --connections") == found


def test_otherwise_it_waits() -> None:
    """The stage is named in which the client spent most of its time on the link."""
    client = side(2.0, send=stage(3.0), wait=stage(9.0))
    found = limit_of(facts(client, None, is_one_machine=False))
    assert ("waiting", "nothing was used up; the client was longest in the stage wait. Try more --connections") == found
    assert ("waiting", "nothing was used up") == limit_of(facts(side(0.1), None))


def test_the_limits_have_an_order() -> None:
    """Where everything is used up, more cores are needed first."""
    client = side(40.0, lock_seconds=10.0, encode=stage(40.0, 35.0), send=stage(40.0))
    everything = facts(client, machine_busy=4.0, link_rate=1e9, disk_rate=1e9)
    without_lock = facts(side(40.0, send=stage(40.0))).sides
    changes: list[dict[str, Any]] = [
        {},
        {"cores": 16, "machine_busy": 16.0},
        {"cores": 16},
        {"cores": 16, "sides": without_lock},
        {"cores": 16, "sides": without_lock, "link_rate": 0.0},
        {"cores": 16, "sides": without_lock, "link_rate": 0.0, "disk_rate": 0.0},
    ]
    names = [limit_of(everything._replace(**change)).what for change in changes]
    assert ["encode", "other programs", "interpreter lock", "link", "disk", "connections"] == names
