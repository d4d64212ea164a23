"""How much of a transfer runs at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.backends import connect
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import TransferLimits
from filestore.transfer import parallelism
from filestore.transfer.parallelism import (
    IN_A_SERVER,
    LARGE_SIZE,
    LEAST_MEMORY,
    MEMORY_PER_CORE,
    MIB,
    Parallelism,
    default_memory,
    fetch_parallelism,
    limits_of,
    push_parallelism,
)

_LARGE = 8 << 30


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that makes the number of cores another one."""
    return lambda count: monkeypatch.setattr(parallelism, "core_count", lambda: count)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_cores_work_as_before(cores: Callable[[int], None], count: int) -> None:
    """Three windows or four batches in one process, whatever the size."""
    cores(count)
    assert push_parallelism(_LARGE) == Parallelism(0, 3)
    assert fetch_parallelism(_LARGE) == Parallelism(0, 4)


@pytest.mark.parametrize(("connections", "processes"), [(1, 0), (2, 0), (3, 2), (4, 3), (5, 4), (100, 4)])
def test_each_process_needs_a_connection(cores: Callable[[int], None], connections: int, processes: int) -> None:
    """The process of the caller, too. One worker process is used only where it is asked for."""
    cores(16)
    assert processes == push_parallelism(_LARGE, TransferLimits(connections=connections)).processes
    assert processes == fetch_parallelism(_LARGE, TransferLimits(connections=connections)).processes
    asked = TransferLimits(processes=8, memory=4 << 30, connections=connections)
    assert min(8, connections - 1) == push_parallelism(_LARGE, asked).processes


def test_processes_windows_and_memory_follow_the_cores(cores: Callable[[int], None]) -> None:
    """One process for four cores. A small transfer starts none."""
    found = {}
    for count in (4, 8, 16, 64):
        cores(count)
        found[count] = push_parallelism(_LARGE), fetch_parallelism(_LARGE), default_memory() // MIB
    assert found == {
        4: (Parallelism(0, 5), Parallelism(0, 5), 396),
        8: (Parallelism(2, 5, 3), Parallelism(2, 8, own_slots=4), 588),
        16: (Parallelism(4, 4, 8), Parallelism(4, 7, own_slots=6), 972),
        64: (Parallelism(16, 3, 32), Parallelism(16, 6, own_slots=8), 3276),
    }
    assert push_parallelism(LARGE_SIZE - 1).processes == 0
    assert push_parallelism(LARGE_SIZE).processes == 16


def test_each_number_can_be_capped(cores: Callable[[int], None]) -> None:
    """By the number of processes, and by memory, which is shared by all of them."""
    cores(16)
    assert push_parallelism(_LARGE, TransferLimits(processes=0)) == Parallelism(0, 6, 3)
    assert push_parallelism(_LARGE, TransferLimits(processes=3)) == Parallelism(3, 6, 7)
    assert push_parallelism(_LARGE, TransferLimits(memory=300 * MIB)).processes == 0
    assert push_parallelism(_LARGE, TransferLimits(memory=120 * MIB)) == Parallelism(0, 2)
    assert push_parallelism(_LARGE, TransferLimits(memory=1)) == Parallelism(0, 1)
    assert fetch_parallelism(_LARGE, TransferLimits(memory=300 * MIB)) == Parallelism(2, 1, own_slots=5)
    assert fetch_parallelism(_LARGE, TransferLimits(memory=350 * MIB)) == Parallelism(3, 1, own_slots=4)


async def test_a_repository_that_only_this_process_has(
    cores: Callable[[int], None], repository: LocalRepository, tmp_path: Path
) -> None:
    """One in memory. The process of the caller does all, with as many windows as it can use."""
    cores(16)
    assert push_parallelism(_LARGE, limits_of(repository)) == Parallelism(0, 6, 3)
    async with connect(tmp_path / "folder", create=True, transfer_memory=2 << 30) as folder:
        assert limits_of(folder) == TransferLimits(memory=2 << 30)


def test_a_server_pushes_an_upload_with_three_windows(cores: Callable[[int], None]) -> None:
    """As before, on any number of cores, because many clients share it."""
    for count in (1, 2, 64):
        cores(count)
        assert push_parallelism(_LARGE, IN_A_SERVER) == Parallelism(0, 3)


@given(st.integers(1, 256), st.integers(100 * MIB, 16 << 30), st.none() | st.integers(0, 64))
def test_the_budget_holds(count: int, memory: int, processes: int | None) -> None:
    """50 MiB for a process, 33 for a window with its frames and 17 for one without are together at most the budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallelism, "core_count", lambda: count)
        found = push_parallelism(_LARGE, TransferLimits(memory=memory, processes=processes))
        own = 3 if found.processes else found.slots
        windows = found.processes * found.slots + own
        cut = max(0, found.cutters - own)
        assert (50 * (1 + found.processes) + 33 * windows + 17 * cut) * MIB <= memory
        assert default_memory() == LEAST_MEMORY + MEMORY_PER_CORE * max(0, count - 2)


@given(st.integers(1, 256), st.integers(102 * MIB, 16 << 30), st.none() | st.integers(0, 64))
def test_the_budget_of_a_fetch_holds(count: int, memory: int, processes: int | None) -> None:
    """50 MiB for a process and 21 MiB for a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallelism, "core_count", lambda: count)
        found = fetch_parallelism(_LARGE, TransferLimits(memory=memory, processes=processes))
        batches = found.processes * found.slots + (found.own_slots if found.processes else found.slots)
        assert (50 * (1 + found.processes) + 21 * batches) * MIB <= memory
        assert found.own_slots <= min(8, max(4, count + 1))
