"""Runs as things: they are listed, cancelled and kept, and their logs and files stay readable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import aiohttp
import pytest

from tests.support.commands import Home, scripts_of
from tests.support.runtimes import TOKEN, VENVS, RunningRuntime, is_running, running_runtime
from tests.support.server import SECONDS, eventually


@pytest.fixture(scope="module")
def runtime(user: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A runtime that all tests of this module share, in any state."""
    with running_runtime(user, tmp_path_factory.mktemp("served") / "root", complains=None) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def misbehaving(runtime: RunningRuntime, graphs: Path) -> str:
    """The id of a pipeline that does what its input says."""
    return runtime.pipeline(graphs / "misbehave")


@pytest.fixture(scope="module")
def returned(runtime: RunningRuntime, graphs: Path) -> str:
    """The id of a pipeline that returns files."""
    return runtime.pipeline(graphs / "returned")


def run_of(runtime: RunningRuntime, run_id: str, version: str = "v3") -> Any:
    """Return a run as the runtime tells it now."""
    reply = runtime.ask("GET", f"/{version}/runs/{run_id}")
    assert 200 == reply.status, reply.body
    return reply.json


def lines_of(runtime: RunningRuntime, run_id: str) -> list[str]:
    """Return what a run has printed."""
    told = runtime.ask("GET", f"/v3/runs/{run_id}/logs").json
    assert run_id == told["run_id"]
    return [line["text"] for line in told["lines"]]


def file_of(run: Any) -> Any:
    """Return the file that is the only output of a run."""
    (output,) = run["result"]["outputs"]
    return output["file"]


@pytest.mark.slow
def test_a_run_is_cancelled(runtime: RunningRuntime, misbehaving: str) -> None:
    """While it runs, its process ends; while it waits, it never begins. Both say so. The next run is a usual one."""
    process = runtime.value(misbehaving, "pid")
    running, waiting = [runtime.begin(misbehaving, "lines and hang", is_async=True).json["id"] for _ in range(2)]
    eventually(lambda: run_of(runtime, running)["state"] == 7)
    eventually(lambda: lines_of(runtime, running) == ["before it hangs"])

    for run_id in (waiting, running, running):
        told = runtime.ask("POST", f"/v3/runs/{run_id}/cancel").json
        assert (run_id, 12, "the run was cancelled") == (told["id"], told["state"], told["detail"])
    assert not is_running(process)
    assert ([], ["before it hangs"]) == (lines_of(runtime, waiting), lines_of(runtime, running))
    assert "failed" == run_of(runtime, waiting, "v4")["state"]
    assert isinstance(runtime.value(misbehaving, "pid"), int)


def test_a_run_that_has_ended_is_not_cancelled(runtime: RunningRuntime, misbehaving: str) -> None:
    """It stays as it is. An unknown run is not found."""
    run = runtime.run(misbehaving, "threads")

    assert run == runtime.ask("POST", f"/v3/runs/{run['id']}/cancel").json
    assert "completed" == runtime.ask("POST", f"/v4/runs/{run['id']}/cancel").json["state"]
    for version in ("v3", "v4"):
        reply = runtime.ask("POST", f"/{version}/runs/run_0/cancel")
        assert (404, "unknown-run") == (reply.status, reply.slug)


def test_a_client_that_waits_is_told_of_the_cancel(runtime: RunningRuntime, misbehaving: str) -> None:
    """It gets the answer of a failed run."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(runtime.failure, misbehaving, "hang")

        def newest() -> Any:
            return runtime.ask("GET", f"/v3/runs?pipeline_id={misbehaving}&limit=1").json["data"][0]

        eventually(lambda: newest()["state"] == 7)
        runtime.ask("POST", f"/v3/runs/{newest()['id']}/cancel")
        assert "the run was cancelled" == asked.result()


@pytest.mark.slow
def test_runs_are_listed(runtime: RunningRuntime, misbehaving: str, returned: str) -> None:
    """The newest first, in pages, without results and tracebacks; of one pipeline or of all."""
    first, second = runtime.run(misbehaving, "threads"), runtime.run(misbehaving, "raise")
    other = runtime.run(returned, "memory")
    page = runtime.ask("GET", f"/v3/runs?pipeline_id={misbehaving}&skip=0&limit=2").json

    assert (0, 2) == (page["skip"], page["limit"])
    assert page["total"] >= 2
    listed = second | {"error": second["error"] | {"traceback": None}}
    assert [listed, first | {"result": None}] == page["data"]
    assert other["id"] == runtime.ask("GET", "/v3/runs?limit=1").json["data"][0]["id"]
    (newest,) = runtime.ask("GET", "/v4/runs?limit=1").json["data"]
    assert (other["id"], "completed", None) == (newest["id"], newest["state"], newest["outputs"])
    assert 400 == runtime.ask("GET", "/v3/runs?limit=0").status


def test_the_logs_of_a_run(runtime: RunningRuntime, misbehaving: str) -> None:
    """Everything that its process prints, in order and as text; of a run that fails, too."""
    said, failed = runtime.run(misbehaving, "lines"), runtime.run(misbehaving, "lines and raise")

    expected = ["by print", "to standard error", "binary \\xff\\x00\\x1b[2J", "by another program", "without an end"]
    assert expected == lines_of(runtime, said["id"])
    assert ["before the failure"] == lines_of(runtime, failed["id"])
    line = runtime.ask("GET", f"/v3/runs/{said['id']}/logs").json["lines"][0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
    reply = runtime.ask("GET", "/v3/runs/run_0/logs")
    assert (404, "unknown-run") == (reply.status, reply.slug)


def logged_in(runtime: RunningRuntime, folder: Path, version: str) -> Callable[..., CompletedProcess[str]]:
    """Return a function that types a command of a version of the SDK, after `pipeline cluster login`."""

    def typed(*arguments: str, code: str = "from pipeline.console import _run; _run()") -> CompletedProcess[str]:
        return Home(folder).run("-c", code, *arguments, program=scripts_of(VENVS[version]) / "python")

    done = typed("cluster", "login", "here", TOKEN, "-u", runtime.server.url, "-a")
    assert "Successfully authenticated" in done.stdout, done.stderr
    return typed


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0.12", "1.0.15"])
def test_the_sdk_prints_the_logs_of_a_run(runtime: RunningRuntime, misbehaving: str, tmp_path: Path, version: str) -> None:
    """`pipeline logs run`, of a run that has ended, and of one that is cancelled while the SDK follows it."""
    command = partial(logged_in(runtime, tmp_path, version), "logs", "run")
    done = command(runtime.run(misbehaving, "lines")["id"])
    for text in ("by print", "to standard error", "by another program", "without an end", "Run completed successfully"):
        assert text in done.stdout, (done.stdout, done.stderr)
    hanging = runtime.begin(misbehaving, "lines and hang", is_async=True).json["id"]
    with ThreadPoolExecutor() as pool:
        following = pool.submit(command, hanging)
        eventually(lambda: lines_of(runtime, hanging) == ["before it hangs"])
        runtime.ask("POST", f"/v3/runs/{hanging}/cancel")
        followed = following.result()
    assert "before it hangs" in followed.stdout, (followed.stdout, followed.stderr)
    assert "the run was cancelled" in followed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", VENVS)
def test_the_sdk_reads_the_stream_of_lines(runtime: RunningRuntime, misbehaving: str, tmp_path: Path, version: str) -> None:
    """Each version, which also tells a run without lines and an unknown run."""
    code = "import json, sys; from pipeline.cloud.logs import tail_run_logs\n"
    code += "print(json.dumps([[line[1] for line in tail_run_logs(run)] for run in sys.argv[1:]]))"
    silent, printing = (runtime.run(misbehaving, how)["id"] for how in ("threads", "lines"))
    done = logged_in(runtime, tmp_path, version)(silent, printing, "run_0", code=code)

    assert 0 == done.returncode, done.stderr
    assert [[], lines_of(runtime, printing), []] == json.loads(done.stdout.splitlines()[-1])
    assert "Log stream disconnected" in done.stdout
    assert "Run run_0 not found" in done.stdout


async def test_a_client_that_ends_a_stream_of_lines_is_answered(runtime: RunningRuntime, misbehaving: str) -> None:
    """While the run goes on: the SDK waits for that answer. One that sends what no client sends is cut off."""
    hanging = runtime.begin(misbehaving, "lines and hang", is_async=True).json["id"]
    url = f"{runtime.server.url}/v3/logs/run/{hanging}"
    patient = aiohttp.ClientWSTimeout(ws_close=SECONDS)
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        session.ws_connect(url, timeout=patient) as stream,
    ):
        assert "before it hangs" in (await stream.receive_str())
        await stream.close()
        assert aiohttp.WSCloseCode.OK == stream.close_code
        async with session.ws_connect(url) as refused:
            await refused.send_bytes(bytes(1 << 20))
            async for _ in refused:
                pass
        assert aiohttp.WSCloseCode.MESSAGE_TOO_BIG == refused.close_code
    runtime.ask("POST", f"/v3/runs/{hanging}/cancel")


def test_a_stream_of_lines_needs_a_websocket_and_a_token(runtime: RunningRuntime, misbehaving: str) -> None:
    """Anything else is refused, with the other route."""
    path = f"/v3/logs/run/{runtime.run(misbehaving, 'threads')['id']}"
    reply = runtime.ask("GET", path)
    assert (426, True) == (reply.status, "GET /v3/runs/ID/logs" in reply.json["detail"])
    assert 401 == runtime.ask("GET", path, token="wrong").status


@pytest.mark.slow
def test_a_flood_of_lines_does_no_harm(runtime: RunningRuntime, graphs: Path) -> None:
    """Its logs are bounded, and the next runs of the same process have their own lines first."""
    flooding = runtime.pipeline(graphs / "misbehave")
    run = runtime.run(flooding, "flood")
    lines = lines_of(runtime, run["id"])
    assert ("much", 1) == (lines[0], sum("bytes are left out here" in line for line in lines))
    assert sum(map(len, lines)) < 1 << 20
    assert runtime.value(flooding, "threads") is not None
    assert 200 == runtime.ask("GET", "/v3/runs?limit=1").status


def test_a_url_is_renewed_with_each_answer(runtime: RunningRuntime, returned: str) -> None:
    """Each URL opens without a token, in both versions. A value of the pipeline that looks like a file is not changed."""
    run = runtime.run(returned, "memory")
    again, v4 = file_of(run_of(runtime, run["id"])), run_of(runtime, run["id"], "v4")["outputs"][0]["file"]
    expiries = [int(urlsplit(file["url"]).path.split("/")[3]) for file in (file_of(run), again, v4)]

    assert expiries == sorted(expiries)
    for file in (file_of(run), again, v4):
        assert (file["name"], file["path"]) == (again["name"], again["path"])
        with urlopen(file["url"]) as answer:
            assert b"content" == answer.read()


def test_a_url_of_a_removed_file_is_told_as_gone(runtime: RunningRuntime, returned: str) -> None:
    """The run is still answered, and its URL answers 404."""
    run = runtime.run(returned, "handle")
    uuid = file_of(run)["path"].split("/")[3]
    assert 200 == runtime.ask("DELETE", f"/native/v1/files/file_{uuid.replace('-', '')}").status
    file = file_of(run_of(runtime, run["id"]))

    assert f"{runtime.server.url}/{file['path']}" == file["url"]
    assert 404 == runtime.ask("GET", urlsplit(file["url"]).path).status


@pytest.mark.slow
def test_what_outlives_a_restart(user: Home, graphs: Path, tmp_path: Path) -> None:
    """Results, logs and files of runs. A run that a stop has ended says so."""
    with running_runtime(user, tmp_path / "root") as runtime:
        returned, misbehaving = runtime.pipeline(graphs / "returned"), runtime.pipeline(graphs / "misbehave")
        ended, said = runtime.run(returned, "memory"), runtime.run(misbehaving, "lines")
        lines = lines_of(runtime, said["id"])
        stopped = runtime.begin(misbehaving, "hang", is_async=True).json
        eventually(lambda: run_of(runtime, stopped["id"])["state"] == 7)
    with running_runtime(user, tmp_path / "root") as runtime:
        assert said == run_of(runtime, said["id"])
        assert lines == lines_of(runtime, said["id"])
        assert "the server was stopped before the run had ended" == run_of(runtime, stopped["id"])["detail"]
        file = file_of(run_of(runtime, ended["id"]))
        # At the port that the server has now.
        assert file["url"].startswith(runtime.server.url)
        with urlopen(file["url"]) as answer:
            assert b"content" == answer.read()


@pytest.mark.slow
def test_an_output_that_has_expired(user: Home, graphs: Path, tmp_path: Path) -> None:
    """It is removed, and its URL says why."""
    with running_runtime(user, tmp_path / "root", "--run-files-seconds", "1") as runtime:
        returned = runtime.pipeline(graphs / "returned")
        run = runtime.run(returned, "memory")
        path = urlsplit(file_of(run)["url"]).path
        eventually(lambda: runtime.ask("GET", path, token="none").status == 404)
        detail = json.loads(runtime.ask("GET", path).body)["detail"]
        assert detail.endswith("was an output of a run and has expired; start the run again, and push what is needed for longer")
        assert [] == runtime.ask("GET", "/native/v1/files").json["files"]
        # The next run stores the content again.
        assert 10 == runtime.run(returned, "memory")["state"]
