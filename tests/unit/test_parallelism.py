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
from filestore.transfer import parallelism, schedule
from filestore.transfer.fetch import fetch_record
from filestore.transfer.parallelism import (
    IN_A_SERVER,
    LARGE_SIZE,
    MEMORY_OF_TWO_CORES,
    MEMORY_PER_CORE,
    MIB,
    MOST_SLOT,
    Parallelism,
    default_memory,
    fetch_parallelism,
    limits_of,
    push_parallelism,
)
from filestore.transfer.push import push
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

_LARGE = 8 << 30


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that makes the number of cores another one."""
    monkeypatch.setattr(parallelism, "memory_size", lambda: 1 << 40)
    return lambda count: monkeypatch.setattr(parallelism, "core_count", lambda: count)


@pytest.mark.parametrize(
    ("memory", "push", "fetch"),
    [
        (128, Parallelism(0, 1), Parallelism(0, 1)),
        (256, Parallelism(0, 2, slot_size=18 * MIB), Parallelism(0, 3, slot_size=20 * MIB)),
        (512, Parallelism(0, 3, slot_size=MOST_SLOT), Parallelism(0, 4, slot_size=MOST_SLOT)),
    ],
)
def test_half_of_a_small_memory_is_used(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, memory: int, push: Parallelism, fetch: Parallelism
) -> None:
    """A container may have little."""
    cores(2)
    monkeypatch.setattr(parallelism, "memory_size", lambda: memory * MIB)
    assert (push, fetch) == (push_parallelism(_LARGE), fetch_parallelism(_LARGE))
    assert push.slots * 2 * push.slot_size <= memory * MIB / 2


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_cores_have_one_process(cores: Callable[[int], None], count: int) -> None:
    """Three windows or four batches, whatever the size."""
    cores(count)
    for size in (0, LARGE_SIZE, _LARGE):
        assert push_parallelism(size)[:4] == (0, 3, 1, 0)
        assert fetch_parallelism(size)[:4] == (0, 4, 1, 0)


@pytest.mark.parametrize(
    ("size", "slot_size"),
    [(0, 16), (512 * MIB, 16), (800 * MIB, 25), (1024 * MIB, 32), (_LARGE, 32)],
)
@pytest.mark.parametrize("count", [2, 4])
def test_a_large_transfer_has_larger_windows_and_batches(
    cores: Callable[[int], None], count: int, size: int, slot_size: int
) -> None:
    """There are still at least 32 windows or batches."""
    cores(count)
    limits = TransferLimits(processes=0)
    assert slot_size * MIB == push_parallelism(size, limits).slot_size
    assert slot_size * MIB == fetch_parallelism(size, limits).slot_size


@pytest.mark.parametrize(("file_count", "slot_size"), [(1_000, 32), (70_000, 29), (200_000, 16), (10_000_000, 16)])
def test_many_files_leave_less_memory_for_windows(cores: Callable[[int], None], file_count: int, slot_size: int) -> None:
    """Each takes some memory too."""
    cores(2)
    assert slot_size * MIB == push_parallelism(_LARGE, file_count=file_count).slot_size


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
        4: (Parallelism(0, 5, slot_size=MOST_SLOT), Parallelism(0, 5, slot_size=MOST_SLOT), 396),
        8: (Parallelism(2, 5, 3), Parallelism(2, 8, own_slots=4), 588),
        16: (Parallelism(4, 4, 8), Parallelism(4, 7, own_slots=6), 972),
        64: (Parallelism(16, 3, 32), Parallelism(16, 6, own_slots=8), 3276),
    }
    assert push_parallelism(LARGE_SIZE - 1).processes == 0
    assert push_parallelism(LARGE_SIZE).processes == 16


def test_each_number_can_be_capped(cores: Callable[[int], None]) -> None:
    """By the number of processes, and by memory, which is shared by all of them."""
    cores(16)
    assert push_parallelism(_LARGE, TransferLimits(processes=0)) == Parallelism(0, 6, 3, slot_size=MOST_SLOT)
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
    assert push_parallelism(_LARGE, limits_of(repository)) == Parallelism(0, 6, 3, slot_size=MOST_SLOT)
    async with connect(tmp_path / "folder", create=True, transfer_memory=2 << 30) as folder:
        assert limits_of(folder) == TransferLimits(memory=2 << 30)


@pytest.mark.parametrize(("wanted", "counts"), [(100, (6, 11)), (1, (4, 3))])
async def test_a_transfer_has_windows_and_batches_of_this_size(
    watched: WatchedRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, counts: tuple[int, int]
) -> None:
    """80 MiB in windows of 16 or 32 MiB, of which the first one has 8, and in batches of 8 or 32."""
    monkeypatch.setattr(parallelism, "core_count", lambda: 2)
    monkeypatch.setattr(parallelism, "_SLOTS_WANTED", wanted)
    monkeypatch.setattr(schedule, "_BATCHES_WANTED", wanted)
    source, target = tmp_path / "model", tmp_path / "back"
    source.write_bytes(octets(1, 80 * MIB))
    record = (await push(watched, source)).record
    await fetch_record(watched, record, target=target)
    assert counts == (watched.calls.count("put"), watched.calls.count("get"))
    assert source.read_bytes() == target.read_bytes()


def test_a_server_pushes_an_upload_with_three_windows(cores: Callable[[int], None]) -> None:
    """As before, on any number of cores, because many clients share it."""
    for count in (1, 2, 64):
        cores(count)
        assert push_parallelism(_LARGE, IN_A_SERVER) == Parallelism(0, 3)


@given(st.integers(1, 256), st.integers(100 * MIB, 16 << 30), st.none() | st.integers(0, 64))
def test_the_budget_holds(count: int, memory: int, processes: int | None) -> None:
    """50 MiB for a process, a window, its frames and 1 MiB, and as much for a window without frames are at most the budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallelism, "core_count", lambda: count)
        patch.setattr(parallelism, "memory_size", lambda: 1 << 40)
        found = push_parallelism(_LARGE, TransferLimits(memory=memory, processes=processes))
        own = 3 if found.processes else found.slots
        windows = found.processes * found.slots + own
        cut = max(0, found.cutters - own)
        small = 50 * (1 + found.processes) + windows + cut
        assert small * MIB + found.slot_size * (2 * windows + cut) <= memory
        assert default_memory() == MEMORY_OF_TWO_CORES + MEMORY_PER_CORE * max(0, count - 2)


@given(st.integers(1, 256), st.integers(102 * MIB, 16 << 30), st.none() | st.integers(0, 64))
def test_the_budget_of_a_fetch_holds(count: int, memory: int, processes: int | None) -> None:
    """50 MiB for a process, and for each batch 5 MiB more than its frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallelism, "core_count", lambda: count)
        found = fetch_parallelism(_LARGE, TransferLimits(memory=memory, processes=processes))
        batches = found.processes * found.slots + (found.own_slots if found.processes else found.slots)
        assert (50 * (1 + found.processes) + 5 * batches) * MIB + found.slot_size * batches <= memory
        assert found.own_slots <= min(8, max(4, count + 1))
