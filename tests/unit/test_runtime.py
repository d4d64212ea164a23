"""The rooms of the runtime that need no Pipeline SDK; its processes are real ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from filestore.cache import Cache
from filestore.core.names import checked_pipeline_name
from filestore.errors import Busy, InvalidInput, LimitExceeded, StorageError
from filestore.repository.protocol import Repository
from filestore.runtime import worker_protocol as messages
from filestore.runtime.errors import PipelineEnded, RunFailed, RunTimedOut, UnknownPipeline
from filestore.runtime.loaded import LoadedPipeline, LoadedPipelines
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.process import PipelineProcess, ProcessLimits, start_process
from filestore.runtime.server import RuntimeLimits, open_runtime
from tests.support.disks import refuse_locks
from tests.support.import_crashes import opened_pipelines
from tests.support.runtimes import is_running, output_repository

LIMITS = ProcessLimits(seconds=60, memory=1 << 30)


def pipeline(name: str = "a pipeline", *, number: int = 1) -> Pipeline:
    """Return a pipeline that was not uploaded."""
    return Pipeline(
        id=f"pipeline_{number:032x}",
        name=name,
        environment_id="default",
        created_at="2026-11-24T05:57:45.535263Z",
        graph_id="file_" + "0" * 32,
        path="pipeline_files/a",
        input_variables=[],
        output_variables=[],
    )


class Processes:
    """Starts processes that have loaded nothing."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.started: list[PipelineProcess] = []
        self._repository = repository
        self._folder = folder
        self._numbers = count()

    async def load(self, pipeline_id: str) -> LoadedPipeline:
        """Return an object in the place of a loaded pipeline."""
        folder = self._folder / str(next(self._numbers))
        self.started.append(await start_process(folder, environ={"PATH": os.environ["PATH"]}, limits=LIMITS))
        return LoadedPipeline(pipeline_id, self.started[-1], Cache(self._folder / "cache", self._repository), [])


@pytest.fixture
async def processes(tmp_path: Path, local_repository: Repository) -> AsyncIterator[Processes]:
    """Processes that end with the test."""
    processes = Processes(tmp_path, local_repository)
    yield processes
    for process in processes.started:
        await process.end()


# Messages


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "text", [], {}, [[1], {"a": None}], Path("f"), [1, Path("f")], {"a": [Path("f"), {"b": Path("g")}]}],
)
def test_values_with_files_go_there_and_back(value: object) -> None:
    """In lists and dictionaries, at any depth."""
    encoded = messages.encode_value(value, lambda part: {"path": str(part)} if isinstance(part, Path) else None)
    sent = messages.decode(messages.encode(encoded)[messages.HEADER_SIZE :])

    assert value == messages.decode_value(sent, lambda told: Path(told["path"]))


@pytest.mark.parametrize("value", [object(), float("nan"), {1: object()}, [{"a": [b"bytes"]}]])
def test_values_that_are_neither_json_nor_files(value: object) -> None:
    """They are refused at every place."""
    with pytest.raises(messages.UnsupportedValue):
        messages.encode_value(value, lambda _: None)


def test_messages_have_a_limit() -> None:
    """In both directions: neither side believes the other."""
    with pytest.raises(LimitExceeded):
        messages.encode({"a": "x" * messages.MESSAGE_LIMIT})
    with pytest.raises(LimitExceeded):
        messages.body_size(b"\xff" * messages.HEADER_SIZE)
    with pytest.raises(ValueError, match="a message is an object"):
        messages.decode(b"[]")


# Pipelines


def test_pipelines_are_kept(tmp_path: Path) -> None:
    """They are found by id and by name after the folder is opened again."""
    with opened_pipelines(tmp_path) as kept:
        first = kept.add(pipeline("team/model:v1"))
        second = kept.add(pipeline("team/model:v1", number=2))

    with opened_pipelines(tmp_path) as found:
        assert (1, 2) == (first.version, second.version)
        assert second == found.find("team/model:v1")
        assert first == found.find(f"pipeline_{1:032x}")
        for unknown in ("", "team", f"pipeline_{3:032x}", "../names", "x" * 10_000, "a\udc80", "a\0b"):
            with pytest.raises(UnknownPipeline):
                found.find(unknown)


@pytest.mark.parametrize("name", ["", "a\nb", "\udc80", "x" * 256, "é" * 128])
def test_names_of_pipelines(name: str) -> None:
    """One line of printable text, of 255 bytes."""
    with pytest.raises(InvalidInput):
        checked_pipeline_name(name)
    assert "a/b:c d" == checked_pipeline_name("a/b:c d")


# Processes


async def ask(process: PipelineProcess, verb: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Ask as the runtime does."""
    return await process.ask(verb, arguments, what="the test")


async def test_a_process_whose_code_fails_is_asked_again(processes: Processes) -> None:
    """Its error is reported; here, the Pipeline SDK is missing."""
    process = (await processes.load("a")).process
    for _ in range(2):
        with pytest.raises(RunFailed, match="ModuleNotFoundError: ") as failed:
            await ask(process, "load", {"graph": "none"})
        assert "Traceback" in failed.value.traceback
    assert process.is_usable


async def test_a_process_that_is_killed(processes: Processes) -> None:
    """The error says how it ended. It is not used again, and its folder is removed."""
    process = (await processes.load("a")).process
    process._process.kill()
    with pytest.raises(PipelineEnded, match="was ended by the signal SIGKILL in the middle of the test"):
        await ask(process, "load", {"graph": "none"})
    with pytest.raises(PipelineEnded):
        await ask(process, "load", {"graph": "none"})
    await process.end()
    await process.end()

    assert not process.is_usable
    assert not process.folder.exists()


async def test_a_process_that_is_too_slow(tmp_path: Path) -> None:
    """Is not asked again: its answer may come later."""
    limits = ProcessLimits(seconds=0.001, memory=1 << 30)
    process = await start_process(tmp_path / "a", environ={}, limits=limits)
    with pytest.raises(RunTimedOut, match=r"the test took longer than 0\.001 seconds"):
        await ask(process, "load", {"graph": "none"})
    await process.end()

    assert not process.is_usable
    assert not is_running(process._process.pid)


async def test_a_cancelled_request_ends_the_process(processes: Processes) -> None:
    """Otherwise its answer would be read as the answer to the next request."""
    loaded = LoadedPipelines(limit=1)

    async def run() -> None:
        async with loaded.acquire("a", lambda: processes.load("a")) as taken:
            await ask(taken.process, "load", {"graph": "none"})

    task = asyncio.create_task(run())
    while not processes.started or processes.started[0].is_usable:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [False] == [process.is_usable for process in processes.started]
    await loaded.close()


async def test_pipelines_take_turns(processes: Processes) -> None:
    """A pipeline does one run at a time. Above the limit, an idle pipeline is replaced, or the run waits."""
    loaded = LoadedPipelines(limit=2)
    order = []

    async def run(name: str) -> None:
        async with loaded.acquire(name, lambda: processes.load(name)) as taken:
            order.append(("begins", taken.pipeline_id))
            await asyncio.sleep(0)
            order.append(("ends", taken.pipeline_id))

    await asyncio.gather(*(run(name) for name in "aabbcc"))
    for name in "abc":
        own = [what for what, whose in order if whose == name]
        assert ["begins", "ends"] * 2 == own
    assert sum(process.is_usable for process in processes.started) <= 2
    await loaded.close()
    assert [False] * len(processes.started) == [process.is_usable for process in processes.started]


async def test_runs_of_one_pipeline_are_spread_over_its_processes(processes: Processes) -> None:
    """As many runs as it has processes are done at the same time; the next ones wait, and use the same processes."""
    loaded = LoadedPipelines(limit=3, limit_per_pipeline=2)
    meeting = asyncio.Barrier(2)
    used = []

    async def run() -> None:
        async with loaded.acquire("a", lambda: processes.load("a")) as taken:
            used.append(taken.process)
            await meeting.wait()

    await asyncio.gather(*(run() for _ in range(6)))
    assert 2 == len(processes.started)
    assert [3, 3] == [used.count(process) for process in processes.started]
    await loaded.close()


async def test_a_process_is_started_only_for_a_run_that_needs_it(processes: Processes) -> None:
    """Runs that come one after the other have one process."""
    loaded = LoadedPipelines(limit=3, limit_per_pipeline=3)
    for _ in range(3):
        async with loaded.acquire("a", lambda: processes.load("a")):
            pass
    assert 1 == len(processes.started)
    await loaded.close()


async def test_a_pipeline_that_is_unloaded_keeps_no_process(processes: Processes) -> None:
    """Neither an idle one, nor one whose run ends later."""
    loaded = LoadedPipelines(limit=2, limit_per_pipeline=2)
    async with loaded.acquire("a", lambda: processes.load("a")):
        async with loaded.acquire("a", lambda: processes.load("a")):
            pass
        await loaded.unload("a")
        assert [True, False] == [process.is_usable for process in processes.started]
    assert [False, False] == [process.is_usable for process in processes.started]
    assert [] == loaded.pipeline_ids


@pytest.mark.parametrize("limit", [1, 2])
async def test_the_runs_of_one_pipeline_do_not_keep_another_one_waiting(processes: Processes, limit: int) -> None:
    """Pipelines take turns, however many runs one of them has: these runs end only after that of the other pipeline."""
    loaded = LoadedPipelines(limit=limit, limit_per_pipeline=2)
    other_has_begun = asyncio.Event()
    begun = count()

    async def run() -> None:
        async with loaded.acquire("a", lambda: processes.load("a")):
            if next(begun) > limit:
                await other_has_begun.wait()

    async def run_other() -> None:
        async with loaded.acquire("b", lambda: processes.load("b")):
            other_has_begun.set()

    async with asyncio.timeout(60):
        await asyncio.gather(*(run() for _ in range(8)), run_other())
    await loaded.close()


async def test_a_run_that_is_cancelled_while_it_waits_takes_no_place(processes: Processes) -> None:
    """It may have been granted one at the same moment; the next run gets it."""
    loaded = LoadedPipelines(limit=1)

    async def run() -> str:
        async with loaded.acquire("a", lambda: processes.load("a")):
            return "done"

    async with loaded.acquire("a", lambda: processes.load("a")):
        waiting = [asyncio.create_task(run()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    # The second run has been granted the place, and has not gone on yet.
    waiting[1].cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)

    assert [asyncio.CancelledError, asyncio.CancelledError, str] == [type(each) for each in ended]
    await loaded.close()


async def test_an_idle_process_that_died_is_replaced(processes: Processes) -> None:
    """The next run gets a new process, without a failure."""
    loaded = LoadedPipelines(limit=1)
    async with loaded.acquire("a", lambda: processes.load("a")) as taken:
        first = taken.process
    first._process.kill()
    await first._process.wait()
    async with loaded.acquire("a", lambda: processes.load("a")) as taken:
        assert taken.process is not first
        assert taken.process.is_usable
    await loaded.close()


async def test_a_pipeline_that_cannot_be_loaded_takes_no_place(processes: Processes) -> None:
    """Others find it free."""
    loaded = LoadedPipelines(limit=1)

    async def fail() -> LoadedPipeline:
        raise RunFailed("no")

    for _ in range(2):
        with pytest.raises(RunFailed):
            async with loaded.acquire("a", fail):
                pass
    async with loaded.acquire("b", lambda: processes.load("b")) as taken:
        assert taken.process.is_usable
    await loaded.close()


async def test_a_file_system_without_locks_is_told_as_one(
    tmp_path: Path, local_repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not reported as another runtime, which the user could not find."""
    refuse_locks(monkeypatch)
    limits = RuntimeLimits(pipelines=1, process=LIMITS)
    with pytest.raises(StorageError, match=r"file locks do not work there \(No locks available\)"):
        async with open_runtime(
            output_repository(local_repository),
            partial(Cache, tmp_path / "cache"),
            tmp_path / "runtime",
            environ={},
            limits=limits,
        ):
            pass


async def test_a_folder_has_one_runtime(tmp_path: Path, local_repository: Repository) -> None:
    """The lock ends with the block. Files of an earlier runtime are removed."""
    limits = RuntimeLimits(pipelines=1, process=LIMITS)
    cache = partial(Cache, tmp_path / "cache")
    (tmp_path / "runtime/work/left").mkdir(parents=True)
    for _ in range(2):
        async with open_runtime(output_repository(local_repository), cache, tmp_path / "runtime", environ={}, limits=limits):
            assert not (tmp_path / "runtime/work").exists()
            with pytest.raises(Busy):
                async with open_runtime(
                    output_repository(local_repository), cache, tmp_path / "runtime", environ={}, limits=limits
                ):
                    pass
