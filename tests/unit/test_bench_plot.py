from __future__ import annotations

from pathlib import Path

import pytest

from filestore.errors import MissingPackage
from filestore.system.metrics import Stage, StageTotals, Usage
from filestore_cli.bench import plot as plot_module
from filestore_cli.bench.plot import check_plot, plot
from filestore_cli.bench.report import as_json, lines
from filestore_cli.bench.run import BenchResult, Link, Measurement, Plan, Side

CEILINGS = {"memory_copy": 1e10, "blake3": 4e9, "loopback": 2e9, "disk_write_sync": 1e9}
SIDE = Side([Usage(1.0, 1 << 26, 0.25)], 1 << 26, {Stage.SEND: StageTotals(1, 10, 2.0, 1.0)})
LINK: Link = {
    "connections": 4,
    "processes": None,
    "transfer_memory": None,
    "stall_seconds": 30.0,
    "retry_seconds": 300.0,
    "tls_client_cert": None,
    "tls_client_key": None,
}


def plan(path: Path) -> Plan:
    """One of a user's own content."""
    return Plan(
        "upload",
        str(path),
        path,
        [0],
        [1],
        None,
        1,
        path.parent,
        "auto",
        LINK,
    )


def test_what_brings_matplotlib_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an extra: most installations do not have it."""
    monkeypatch.setattr(plot_module, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match="pip install '\\.\\[plot\\]'"):
        check_plot(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 1 << 30])
@pytest.mark.parametrize("server", [None, SIDE])
def test_any_measurement_can_be_told_and_drawn(tmp_path: Path, size: int, server: Side | None) -> None:
    """This holds also for an empty file, and for a server that does not report its numbers."""
    found = BenchResult("http://127.0.0.1:1", CEILINGS, [Measurement(size, 1, 0.5, size // 2, 0, SIDE, server, 1.0)], 0)
    picture = tmp_path / "a.png"
    plot(plan(tmp_path / "mine"), found, picture)
    assert picture.stat().st_size > 1000
    assert all(line == line.rstrip() for line in lines(plan(tmp_path / "mine"), found))
    assert 1 == len(as_json(plan(tmp_path / "mine"), found)["runs"])  # type: ignore[arg-type]  # a list
