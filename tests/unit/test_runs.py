"""The runs that a runtime keeps, in a real database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.errors import StorageFull
from filestore.runtime.database import open_database
from filestore.runtime.errors import RunFailed, RunTimedOut, TooManyRuns, UnknownRun
from filestore.runtime.kept_clock import KeptClock
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.runs import Run, Runs, State, open_runs


def pipeline(number: int = 1) -> Pipeline:
    """Return a pipeline that was not uploaded."""
    return Pipeline(
        id=f"pipeline_{number:032x}",
        name="a pipeline",
        environment_id="default",
        created_at="2026-11-24T05:57:45.535263Z",
        graph_id="file_" + "0" * 32,
        path="pipeline_files/a",
        input_variables=[],
        output_variables=[],
    )


class Times:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = 1_700_000_000.0

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.monotonic += seconds
        self.wall += seconds


@contextmanager
def opened(folder: Path, times: Times | None = None, **limits: Any) -> Iterator[Runs]:
    """Open the runs of a database. Whoever opens them again does what a runtime does after a kill."""
    times = times or Times()
    with closing(open_database(folder)) as database:
        with database.read() as connection:
            clock = KeptClock(connection, monotonic=lambda: times.monotonic, wall=lambda: times.wall)
        yield open_runs(database, clock, **limits)


async def ended_run(runs: Runs, outcome: bytes | RunFailed = b"[]", *, number: int = 1) -> Run:
    """Return a run that has ended."""
    run = await runs.add(pipeline(number), request_size=0)
    await runs.end(run, outcome)
    return run


async def is_known(runs: Runs, run: Run) -> bool:
    """Return whether a run is still kept."""
    try:
        await runs.find(run.id)
    except UnknownRun:
        return False
    return True


async def test_ended_runs_are_forgotten_when_there_are_too_many(tmp_path: Path) -> None:
    """The oldest first; one that has not ended stays."""
    with opened(tmp_path, kept_size=20_000) as runs:
        waiting = await runs.add(pipeline(), request_size=0)
        ended = [await ended_run(runs, b'["' + bytes(b"x" * 8000) + b'"]') for _ in range(4)]

        assert waiting is await runs.find(waiting.id)
        assert [run.id for run in ended[2:]] == [(await runs.find(run.id)).id for run in ended[2:]]
        found = await runs.find(ended[-1].id)
        assert ["x" * 8000] == found.as_json_v4(found.outputs)["outputs"]
        for run in ended[:2]:
            with pytest.raises(UnknownRun):
                await runs.find(run.id)


async def test_the_newest_run_is_kept_whatever_its_size(tmp_path: Path) -> None:
    """Its client asks for it next."""
    with opened(tmp_path, kept_size=10) as runs:
        first, second = await ended_run(runs), await ended_run(runs)

        assert [False, True] == [await is_known(runs, run) for run in (first, second)]


async def test_runs_that_wait_are_bounded(tmp_path: Path) -> None:
    """Their number and the size of their requests are limited. A single run is always accepted."""
    with opened(tmp_path, waiting_limit=2, waiting_size=100) as runs:
        first = await runs.add(pipeline(), request_size=1000)
        with pytest.raises(TooManyRuns):
            await runs.add(pipeline(), request_size=0)
        await runs.end(first, RunFailed("why"))
        for _ in range(2):
            await runs.add(pipeline(), request_size=0)
        with pytest.raises(TooManyRuns):
            await runs.add(pipeline(), request_size=0)

        assert {"exception": "why", "traceback": None} == first.as_json()["error"]
        assert State.FAILED is (await runs.find(first.id)).state


async def test_ended_runs_outlive_the_runtime(tmp_path: Path) -> None:
    """Their answers and their lines are the same afterwards."""
    with opened(tmp_path) as runs:
        made = [await runs.add(pipeline(), request_size=0) for _ in range(3)]
        outcomes: list[bytes | RunFailed] = [b'[{"value": 1}]', RunFailed("why", "where"), RunTimedOut("it", 5.0)]
        for run, outcome in zip(made, outcomes, strict=True):
            run.log.add([b"printed", run.id.encode()])
            await runs.end(run, outcome)
        before = [(run.as_json(run.outputs), run.as_json_v4(run.outputs), run.log.lines(), run.url_mark) for run in made]
    with opened(tmp_path) as runs:
        found = [await runs.find(run.id) for run in made]
        after = [(run.as_json(run.outputs), run.as_json_v4(run.outputs), await runs.lines(run.id), run.url_mark) for run in found]

    assert before == after
    assert "timeout" == after[2][1]["error"]["type"]


async def test_runs_under_way_at_a_crash_have_failed(tmp_path: Path) -> None:
    """The next runtime says so once; what has ended stays as it was."""
    with opened(tmp_path) as runs:
        ended = await ended_run(runs)
        waiting = await runs.add(pipeline(), request_size=0)
    for _ in range(2):
        with opened(tmp_path) as runs:
            found = await runs.find(waiting.id)
            answer = found.as_json()
            assert (12, None) == (answer["state"], answer["result"])
            assert "the server ended in the middle of the run, and no result was stored; start the run again" == answer["detail"]
            assert State.COMPLETED is (await runs.find(ended.id)).state
            assert [] == runs.waiting


async def test_a_result_is_stored_before_it_is_told(tmp_path: Path) -> None:
    """A run that was told as completed never fails later, because of a kill."""
    with opened(tmp_path) as runs:
        run = await runs.add(pipeline(), request_size=0)
        ending = asyncio.create_task(runs.end(run, b"[]"))
        states = []
        while not run.ended.is_set():
            with closing(sqlite3.connect(tmp_path / "runtime.sqlite")) as other:
                (stored,) = other.execute("SELECT ended_at IS NOT NULL FROM runs").fetchone()
            states.append((run.has_ended, bool(stored)))
            await asyncio.sleep(0)
        await ending

    assert (True, False) not in states


async def test_a_result_that_cannot_be_stored_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered, and stored together with the next one."""
    with opened(tmp_path) as runs:
        update = runs._update

        def fail(*_: object) -> None:
            raise StorageFull("runtime.sqlite", "no space is left")

        monkeypatch.setattr(runs, "_update", fail)
        first = await ended_run(runs, b"[1]")
        assert b"[1]" == (await runs.find(first.id)).outputs
        monkeypatch.setattr(runs, "_update", update)
        second = await ended_run(runs, b"[2]")
    with opened(tmp_path) as runs:
        assert [b"[1]", b"[2]"] == [(await runs.find(run.id)).outputs for run in (first, second)]


async def test_runs_are_listed_from_the_newest(tmp_path: Path) -> None:
    """In pages, of all pipelines or of one; a run that waits has the state that it has now."""
    with opened(tmp_path) as runs:
        made = [await ended_run(runs, number=1 + place % 2) for place in range(4)]
        waiting = await runs.add(pipeline(), request_size=0)
        waiting.enter(State.RUNNING)
        newest = [run.id for run in (waiting, *reversed(made))]

        total, page = await runs.page(pipeline_id=None, skip=0, limit=2)
        assert (5, newest[:2], State.RUNNING) == (total, [run.id for run in page], page[0].state)
        _, rest = await runs.page(pipeline_id=None, skip=2, limit=100)
        assert newest[2:] == [run.id for run in rest]
        total, own = await runs.page(pipeline_id=pipeline(2).id, skip=0, limit=100)
        assert (2, [made[3].id, made[1].id]) == (total, [run.id for run in own])
        assert (0, []) == await runs.page(pipeline_id="none", skip=0, limit=100)


@pytest.mark.parametrize("run_id", ["", "run_0", "\x00", "\ud800", "%", "x" * 10_000])
async def test_an_unknown_run(tmp_path: Path, run_id: str) -> None:
    """Is an error of its own, whatever the text is."""
    with opened(tmp_path) as runs:
        with pytest.raises(UnknownRun):
            await runs.find(run_id)
        with pytest.raises(UnknownRun):
            await runs.lines(run_id)


def _nothing(_: Times) -> None:
    pass


def _a_year_ahead(times: Times) -> None:
    times.wall += 366 * 86400


def _a_year_back(times: Times) -> None:
    times.wall -= 366 * 86400


@pytest.mark.parametrize("jump", [_nothing, _a_year_ahead, _a_year_back])
async def test_a_run_is_kept_for_its_time(tmp_path: Path, jump: Callable[[Times], None]) -> None:
    """A clock that is set while the runtime runs changes nothing, in either direction."""
    times = Times()
    with opened(tmp_path, times, kept_seconds=100) as runs:
        first = await ended_run(runs)
        times.pass_by(60)
        jump(times)
        second = await ended_run(runs)
        assert [True, True] == [await is_known(runs, run) for run in (first, second)]
        times.pass_by(60)
        third = await ended_run(runs)

        assert [False, True, True] == [await is_known(runs, run) for run in (first, second, third)]


async def test_the_time_of_a_stop_counts(tmp_path: Path) -> None:
    """Unless the clock was set back meanwhile; then the stop counts as no time."""
    times = Times()
    with opened(tmp_path, times, kept_seconds=100) as runs:
        run = await ended_run(runs)
    times.wall -= 1000
    with opened(tmp_path, times, kept_seconds=100) as runs:
        assert await is_known(runs, run)
    times.wall += 1000 + 101
    with opened(tmp_path, times, kept_seconds=100) as runs:
        assert not await is_known(runs, run)
