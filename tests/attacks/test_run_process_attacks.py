"""Code of a pipeline starts processes that try to outlive it, and prints what would control a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.runtimes import RunningRuntime, is_running, running_runtime
from tests.support.server import eventually

HOSTILE = ("\x1b", "\x07", "\x9b", "\u202e", "\r")


def left_by(runtime: RunningRuntime, pipeline: str, how: str) -> list[int]:
    """The processes that a run has left, which run while the pipeline is loaded."""
    pids: list[int] = runtime.value(pipeline, how)
    assert pids
    assert all(map(is_running, pids))
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("how", ["session", "daemon", "stopped keeper"])
def test_a_process_with_a_session_of_its_own_ends_with_its_pipeline(user: Home, graphs: Path, tmp_path: Path, how: str) -> None:
    """The pipeline is ended because its code crashes. The process that left its session ends with it."""
    with running_runtime(user, tmp_path / "root", complains=None) as runtime:
        pipeline = runtime.pipeline(graphs / "misbehave")
        pids = left_by(runtime, pipeline, how)
        assert runtime.failure(pipeline, "crash").startswith("the process of the pipeline")
        assert not any(map(is_running, pids))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["session", "daemon"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_process_with_a_session_of_its_own_ends_with_the_runtime(
    user: Home, graphs: Path, tmp_path: Path, how: str, *, is_killed: bool
) -> None:
    """The runtime is stopped, or killed so that it can do nothing any more."""
    with running_runtime(user, tmp_path / "root", is_killed=is_killed, complains=None) as runtime:
        pipeline = runtime.pipeline(graphs / "misbehave")
        pids = [*left_by(runtime, pipeline, how), runtime.value(pipeline, "pid")]
        if is_killed:
            runtime.server.process.kill()
    eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.slow
def test_a_pipeline_that_kills_its_keeper_ends(user: Home, graphs: Path, tmp_path: Path) -> None:
    """What it had started before is found by its environment, and ends too."""
    with running_runtime(user, tmp_path / "root", complains=None) as runtime:
        pipeline = runtime.pipeline(graphs / "misbehave")
        pids = [*left_by(runtime, pipeline, "session"), *left_by(runtime, pipeline, "daemon"), runtime.value(pipeline, "pid")]
        assert "was ended by the signal SIGKILL" in runtime.failure(pipeline, "killed keeper")
        # Nobody is left who could wait for the end of what was killed.
        eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.slow
def test_escape_sequences_are_not_passed_on(user: Home, graphs: Path, tmp_path: Path) -> None:
    """The lines and the failure of a run have them escaped: in its answers, in its logs and in the server's log."""
    with running_runtime(user, tmp_path / "root", complains=None) as runtime:
        pipeline = runtime.pipeline(graphs / "misbehave")
        run = runtime.run(pipeline, "escapes")
        logs = runtime.ask("GET", f"/v3/runs/{run['id']}/logs").json
    assert run["detail"] == "ValueError: a\\x1b[2Jb\\x07c\\x9bd\\u202ee\nf"
    for text in (run["detail"], run["error"]["traceback"], str(logs)):
        assert not any(letter in text for letter in HOSTILE)
    assert "title" in str(logs) or "2J" in str(logs)
