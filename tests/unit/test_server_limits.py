"""How many processes a server has by itself, and what each of them may take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filestore.http import limits as limits_module
from filestore.http.limits import ServerLimits
from filestore.http.server import serve

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cores", "memory", "memory_limit", "count"),
    [
        (1, 4 * GIB, 128 << 20, 1),
        (2, 4 * GIB, 128 << 20, 1),
        (4, 64 * GIB, 128 << 20, 1),
        (7, 64 * GIB, 128 << 20, 1),
        (8, 64 * GIB, 128 << 20, 2),
        (16, 64 * GIB, 128 << 20, 4),
        (64, 512 * GIB, GIB, 16),
        # 512 MiB of memory for each, and 16 MiB of the setting.
        (16, 512 << 20, 128 << 20, 1),
        (16, 1 << 20, 128 << 20, 1),
        (16, 64 * GIB, 32 << 20, 2),
        (64, 512 * GIB, 128 << 20, 8),
    ],
)
def test_processes_follow_the_cores_and_the_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, memory_limit: int, count: int
) -> None:
    """One for every four cores, and one on a small machine."""
    monkeypatch.setattr(limits_module, "core_count", lambda: cores)
    monkeypatch.setattr(limits_module, "memory_size", lambda: memory)
    assert count == ServerLimits(memory_limit=memory_limit).chosen_workers()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has affinity")
@pytest.mark.parametrize("count", [1, 2])
def test_a_process_on_few_cores_has_no_others_beside_it(count: int) -> None:
    """The affinity counts, as `taskset` sets it."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    program = (
        f"import os; os.sched_setaffinity(0, {cores!r})\n"
        "from filestore.http.limits import DEFAULT_SERVER_LIMITS; print(DEFAULT_SERVER_LIMITS.chosen_workers())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "1\n" == done.stdout


class FakeSupervisor:
    """Notes what would be supervised."""

    made: tuple[ServerLimits, int]

    def __init__(self, service: Any, _: object, *, count: int) -> None:
        FakeSupervisor.made = service.limits, count

    def run(self, *_: object) -> None:
        """Run nothing."""


@pytest.mark.parametrize(("workers", "share"), [(None, 4), (4, 1)])
def test_processes_that_nobody_asked_for_share_the_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int | None, share: int
) -> None:
    """A server on 16 cores takes not more memory than its operator allowed. A number of workers means what it meant."""
    monkeypatch.setattr(limits_module, "core_count", lambda: 16)
    monkeypatch.setattr(limits_module, "memory_size", lambda: 64 * GIB)
    monkeypatch.setattr(sys.modules[serve.__module__], "Supervisor", FakeSupervisor)
    whole = ServerLimits(connections_limit=4095)
    serve(
        lambda: pytest.fail("nothing is opened"),
        host="127.0.0.1",
        port=0,
        announce=lambda _: None,
        workers=workers,
        spool_folder=tmp_path,
        limits=whole,
    )
    each, count = FakeSupervisor.made
    assert 4 == count
    assert whole.memory_limit == each.memory_limit * share
    # What cannot be divided is rounded up: no connection is refused that one process would take.
    assert (4095 if share == 1 else 1024) == each.connections_limit
    assert (2048 // share, 100 // share) == (each.address_connections_limit, each.guesses_limit)
    assert whole.upload_limit == each.upload_limit
