"""What a start of a pipeline took, as the answer of the run, the log of the server and its measurements state it."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from filestore.http.wire import API
from tests.support.commands import Home
from tests.support.runtimes import RunningRuntime, running_runtime

BYTES = ("bytes_received", "bytes_cached", "bytes_reused")
SECONDS = ("process_seconds", "fetch_seconds", "load_seconds")


def run_of(runtime: RunningRuntime, pipeline: str) -> Any:
    """Return a run, whose member `filestore` is the same in both formats."""
    run = runtime.run(pipeline, "pid")
    assert run["filestore"] == runtime.ask("GET", f"/v4/runs/{run['id']}").json["filestore"]
    return run


@pytest.mark.slow
def test_a_run_says_what_its_start_took(user: Home, graphs: Path, tmp_path: Path) -> None:
    """The first start fetches, the next run finds the pipeline loaded, and a start after a restart uses the cache.

    The restart does not forget what the first start took.
    """
    root, size = tmp_path / "root", (graphs / "misbehave").stat().st_size
    with running_runtime(user, root, is_killed=True) as runtime:
        pipeline = runtime.pipeline(graphs / "misbehave")
        first = run_of(runtime, pipeline)
        cold, loaded = first["filestore"], run_of(runtime, pipeline)["filestore"]
        starts = runtime.ask("GET", f"{API}/status").json["starts"]
        runtime.failure(pipeline, "raise")
        runtime.server.process.send_signal(signal.SIGTERM)
        log = runtime.server.process.communicate()[1]
    with running_runtime(user, root) as runtime:
        kept = runtime.ask("GET", f"/v3/runs/{first['id']}").json["filestore"]
        warm = run_of(runtime, pipeline)["filestore"]
        failed = runtime.run(runtime.pipeline(graphs / "no-graph"))["filestore"]

    assert [False, True, False] == [start["was_loaded"] for start in (cold, loaded, warm)]
    assert cold == kept
    assert cold["bytes_received"] > 0
    assert (0, size, 0) == tuple(warm[name] for name in BYTES)
    assert all(cold[name] > 0 < warm[name] for name in SECONDS)
    assert {0} == {loaded[name] for name in BYTES + SECONDS}
    assert failed is None
    assert {"times": 1, "already_loaded": 1} | {name: cold[name] for name in BYTES + SECONDS} == starts
    assert 1 == len(re.findall(rf" INFO run_\w+ started {pipeline} in .* {cold['bytes_received']} bytes received, ", log))
    assert 1 == len(re.findall(rf" INFO run_\w+ {pipeline}: the run has failed: ValueError: what a pity$", log, re.MULTILINE))
