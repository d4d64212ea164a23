from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.repository.protocol import Repository
from filestore.system.metrics import (
    SharedTimes,
    Stage,
    StageTimes,
    StageTotals,
    StartTotals,
    added,
    added_starts,
    async_span,
    count_into,
    count_start,
    own_usage,
    part,
    span,
)
from filestore.transfer.push import push
from tests.support.generator import octets
from tests.support.trees import plant


@pytest.fixture
def stage_times() -> Iterator[StageTimes]:
    """The stage times into which this process counts during the test."""
    stage_times = StageTimes()
    count_into(stage_times)
    yield stage_times
    count_into(None)


def use_processor(seconds: float) -> None:
    """Keep this thread busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_nothing_is_counted_unless_somebody_wants_it() -> None:
    """A stage without a counter leaves no trace in one that comes later."""
    with span(Stage.READ, 5) as reading, async_span(Stage.COMMIT, 5):
        reading.add(6)
    stage_times = StageTimes()
    count_into(stage_times)
    count_into(None)
    assert {} == stage_times.passed()


def test_bytes_and_times_are_added_up(stage_times: StageTimes) -> None:
    """Those known before and those known later, also where the stage fails."""
    with span(Stage.READ, 5):
        pass
    with pytest.raises(OSError, match="gone"), span(Stage.READ) as reading:
        reading.add(6)
        raise OSError("gone")
    found = stage_times.passed()
    assert [Stage.READ] == list(found)
    assert (2, 11) == found[Stage.READ][:2]


def test_a_stage_does_not_count_what_another_takes_within_it(stage_times: StageTimes) -> None:
    """Time is that of the innermost stage, so that the sum over all stages is the time of the thread."""
    started = time.thread_time()
    with span(Stage.RECEIVE):
        with span(Stage.WRITE):
            use_processor(0.05)
        use_processor(0.01)
    found = stage_times.passed()
    assert found[Stage.WRITE].cpu_seconds >= 0.05
    assert sum(passed.cpu_seconds for passed in found.values()) <= time.thread_time() - started
    assert found[Stage.RECEIVE].cpu_seconds >= 0.01


def test_a_part_of_a_stage_is_another_ones(stage_times: StageTimes) -> None:
    """Its bytes, times, time and share of processor time count for the other stage; outside a span nothing counts."""
    part(Stage.WRITE, 7, 1.0)
    with span(Stage.RECEIVE, 10):
        use_processor(0.02)
        part(Stage.WRITE, 3, 0.005)
        part(Stage.WRITE, 4, 0.005)
    found = stage_times.passed()
    assert (2, 7, 0.01) == found[Stage.WRITE][:3]
    assert (1, 10) == found[Stage.RECEIVE][:2]
    whole = found[Stage.RECEIVE].cpu_seconds + found[Stage.WRITE].cpu_seconds
    assert whole >= 0.02
    share = found[Stage.WRITE].seconds / (found[Stage.WRITE].seconds + found[Stage.RECEIVE].seconds)
    assert found[Stage.WRITE].cpu_seconds == pytest.approx(share * whole)


def test_threads_add_to_one_tally(stage_times: StageTimes) -> None:
    """Nothing is lost between them."""

    def pass_often() -> None:
        for _ in range(2000):
            with span(Stage.HASH, 3):
                pass

    threads = [threading.Thread(target=pass_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (8000, 24000) == stage_times.passed()[Stage.HASH][:2]


async def test_what_a_coroutine_waits_for_has_no_processor_time(stage_times: StageTimes) -> None:
    """Other coroutines use it meanwhile."""
    with async_span(Stage.COMMIT, 1) as committing:
        use_processor(0.01)
        committing.add(2)
    found = stage_times.passed()[Stage.COMMIT]
    assert (1, 3, 0.0) == (found.times, found.size, found.cpu_seconds)
    assert found.seconds >= 0.01


def test_a_board_shows_what_forked_processes_counted() -> None:
    """A new process continues to count at the place of one that has ended."""
    shared_times = SharedTimes(2)
    for place in (0, 1, 1):
        pid = os.fork()
        if pid == 0:
            shared_times.join(place)
            with span(Stage.SEND, 10):
                use_processor(0.02)
            shared_times.own.note_usage()
            os._exit(0)
        assert 0 == os.waitpid(pid, 0)[1]
    first, second = shared_times.each_process()
    assert [(1, 10), (2, 20)] == [stage_times.passed()[Stage.SEND][:2] for stage_times in (first, second)]
    assert first.usage().cpu_seconds >= 0.02
    assert second.usage().cpu_seconds >= 0.04
    assert 1 << 20 < second.usage().peak_memory <= 2 * own_usage().peak_memory


def test_passages_of_several_processes_add_up() -> None:
    """Stages that none has entered are not there."""
    total = added(
        [{Stage.READ: StageTotals(1, 2, 3.0, 4.0)}, {}, {Stage.READ: StageTotals(10, 20, 30.0, 40.0), Stage.SEND: StageTotals(1)}]
    )
    assert {Stage.READ: StageTotals(11, 22, 33.0, 44.0), Stage.SEND: StageTotals(1)} == total


async def test_a_push_of_a_tree_counts_each_byte_once(
    stage_times: StageTimes, local_repository: Repository, tmp_path: Path
) -> None:
    """Read counts the files, cut and hash count the zip, and encode and verify count only new content."""
    tree = plant(tmp_path / "tree", {"a/small": octets(1, 1000), "a/other": octets(2, 2000), "big": octets(3, 3_000_000)})
    pushed = await push(local_repository, tree)
    sizes = {stage: passed.size for stage, passed in stage_times.passed().items() if passed.size}
    size = pushed.record.size
    expected = {Stage.READ: 3_003_000, Stage.CUT: size, Stage.HASH: size, Stage.ENCODE: size, Stage.VERIFY: size}
    assert expected == {stage: sizes[stage] for stage in expected}


def test_starts_are_added_up_over_all_processes() -> None:
    """Counts stay whole numbers, and nothing is counted by a process that does not count."""
    start = StartTotals(times=1, bytes_received=2**40, bytes_cached=5, load_seconds=0.25)
    shared = SharedTimes(2)
    for place in range(2):
        shared.join(place)
        count_start(start)
    count_into(None)
    count_start(start)
    total = added_starts([stage_times.starts() for stage_times in shared.each_process()])
    assert StartTotals(times=2, bytes_received=2**41, bytes_cached=10, load_seconds=0.5) == total
    assert [int, int, int] == [type(number) for number in total[:3]]
    assert [{}, {}] == [stage_times.passed() for stage_times in shared.each_process()]


def test_the_time_without_the_interpreter_lock_is_not_counted_for_it() -> None:
    """Hashing gives up the lock and a loop of Python does not. Threads that have ended count too."""
    content = memoryview(bytes(64 << 20))
    count_into(StageTimes())
    try:
        before = own_usage()
        hashing = threading.Thread(target=chunk_digest, args=(content,))
        hashing.start()
        hashing.join()
        middle = own_usage()
        sum(range(300_000))
        after = own_usage()
    finally:
        count_into(None)

    hashed, looped = middle.cpu_seconds - before.cpu_seconds, after.cpu_seconds - middle.cpu_seconds
    assert middle.lock_seconds - before.lock_seconds < hashed / 2
    assert after.lock_seconds - middle.lock_seconds == pytest.approx(looped)
