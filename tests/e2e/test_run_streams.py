"""Generators as outputs of a run, collected and streamed, with unmodified SDKs as clients."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.support.commands import Home, scripts_of
from tests.support.runtimes import TOKEN, RunningRuntime, running_runtime, with_sdk
from tests.support.server import SECONDS, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runtime(user: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A runtime that waits ten seconds for a client that takes nothing.

    On a busy machine, any client may take nothing for one second.
    """
    root = tmp_path_factory.mktemp("served") / "root"
    with running_runtime(user, root, "--stall-seconds", "10", complains=None) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def generated(runtime: RunningRuntime, graphs: Path) -> str:
    """A pipeline whose output is a generator."""
    reply = runtime.upload((graphs / "generated").read_bytes(), name="generated")
    return str(reply.json["id"])


def request(pipeline: str, *inputs: str, version: int = 3) -> bytes:
    """Return the body that asks for a run."""
    members = ("pipeline_id_or_pointer", "input_data") if version == 3 else ("pipeline", "inputs")
    return json.dumps(
        dict(zip(members, (pipeline, [{"type": "string", "value": given} for given in inputs]), strict=True))
    ).encode()


def lines(runtime: RunningRuntime, pipeline: str, *inputs: str, version: int = 3) -> list[Any]:
    """Return the lines of a streamed run."""
    reply = runtime.ask("POST", f"/v{version}/runs/stream", request(pipeline, *inputs, version=version))
    assert (200, "application/x-ndjson") == (reply.status, reply.headers["Content-Type"]), reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


@pytest.fixture
def beginning() -> Iterator[socket.socket]:
    """Where an endless generator connects to when it begins. It closes the connection at its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        yield listener


def test_a_generator_becomes_an_array(runtime: RunningRuntime, generated: str) -> None:
    """So does every other iterator. It works in the folder of its run, and the values may be many."""
    assert ["one", 2, None, {"three": [3]}] == runtime.value(generated, "plain")
    assert list(range(100_000)) == runtime.value(generated, "many")
    assert ["0", "1", "2"] == runtime.value(generated, "map")
    assert [] == runtime.value(generated, "empty")
    assert runtime.value(generated, "cwd")[1] is True


def test_the_files_of_a_generator_are_stored_before_it_goes_on(runtime: RunningRuntime, generated: str) -> None:
    """It writes each in the place of the one before."""
    collected = [each["file"]["url"] for each in runtime.value(generated, "files")]
    streamed = [each["file"]["url"] for each in lines(runtime, generated, "files")]

    for urls in (collected, streamed):
        assert [b"image 0", b"image 1", b"image 2"] == [urlopen(url).read() for url in urls]


@pytest.mark.parametrize(
    ("how", "detail"),
    [("raise", "ValueError: what a pity"), ("object", "Tried to return a non-supported type from a pipeline: a object: ")],
)
def test_a_generator_that_fails_fails_its_run(runtime: RunningRuntime, generated: str, how: str, detail: str) -> None:
    """Streamed, the failure is the last line. The values before it have been sent."""
    *values, error = lines(runtime, generated, how)
    *results, failed = lines(runtime, generated, how, version=4)
    expected = ["the first"] if how == "raise" else []

    assert runtime.failure(generated, how).startswith(detail)
    assert expected == [each["value"] for each in values]
    assert expected == [each["outputs"][0]["value"] for each in results]
    assert error["exception"].startswith(detail)
    assert ("failed", error["exception"]) == (failed["state"], failed["error"]["message"])


def test_several_generators_take_turns(runtime: RunningRuntime, graphs: Path) -> None:
    """An output that is not a generator is one line, and in version 4 a part of each line."""
    pipeline = runtime.pipeline(graphs / "generated-twice")

    assert [[0, 1, 2], "x", ["a", "b"]] == [each["value"] for each in runtime.run(pipeline, "x")["result"]["outputs"]]
    assert [0, "x", "a", 1, "b", 2] == [each["value"] for each in lines(runtime, pipeline, "x")]
    results = lines(runtime, pipeline, "x", version=4)
    assert [[0, "x", "a"], [1, "x", "b"], [2, "x", None]] == [[each["value"] for each in result["outputs"]] for result in results]


def test_a_run_without_a_generator_can_be_streamed(runtime: RunningRuntime, graphs: Path) -> None:
    """Its outputs are the lines, and its result is kept as always."""
    pipeline = runtime.pipeline(graphs / "returned")
    reply = runtime.ask("POST", "/v3/runs/stream", request(pipeline, "file"))
    kept = runtime.ask("GET", f"/v3/runs/{reply.headers['X-Run-Id']}").json

    assert ["file.txt"] == [json.loads(line)["file"]["name"] for line in reply.body.splitlines()]
    assert (10, "file.txt") == (kept["state"], kept["result"]["outputs"][0]["file"]["name"])


def test_version_1_of_the_sdk_streams(user: Home, runtime: RunningRuntime, generated: str) -> None:
    """It raises the pipeline's own error in the middle, and an error for an unknown pipeline."""
    program = """
import json, sys
from pipeline.cloud.pipelines import PipelineRunError, stream_pipeline
told = [[output.value for output in stream_pipeline(sys.argv[1], "plain")]]
for name, how in ((sys.argv[1], "raise"), ("unknown", "")):
    told.append([])
    try:
        for output in stream_pipeline(name, how):
            told[-1].append(output.value)
    except PipelineRunError as error:
        told[-1].append(error.exception)
print(json.dumps(told))
"""
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    plain, raised, unknown = json.loads(with_sdk(user, "-c", program, generated, environ=environ).splitlines()[-1])

    assert ["one", 2, None, {"three": [3]}] == plain
    assert ["the first", "ValueError: what a pity"] == raised
    assert unknown[0].startswith("no pipeline is known as 'unknown'; ")


def test_version_2_of_the_sdk_streams(user: Home, runtime: RunningRuntime, generated: str) -> None:
    """Each result has the newest values; the last one has the error."""
    program = """
import json, sys
from pipeline.cloud.pipelines import stream_pipeline
plain = [result.outputs_formatted() for result in stream_pipeline(sys.argv[1], "plain")]
raised = [result.error and result.error.message for result in stream_pipeline(sys.argv[1], "raise")]
print(json.dumps([plain, raised]))
"""
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    done = user.run("-c", program, generated, program=scripts_of(".venv-container") / "python", environ=environ)
    assert 0 == done.returncode, done.stderr

    assert [[["one"], [2], [None], [{"three": [3]}]], [None, "ValueError: what a pity"]] == json.loads(
        done.stdout.splitlines()[-1]
    )


@pytest.mark.parametrize("client", ["goes away", "reads nothing"])
def test_a_client_that_reads_no_more_ends_the_run(
    runtime: RunningRuntime, generated: str, beginning: socket.socket, client: str
) -> None:
    """The generator is closed, and its process does the next run."""
    process = runtime.value(generated, "process")
    connection = HTTPConnection(urlsplit(runtime.server.url).netloc, timeout=SECONDS)
    body = request(generated, f"endless {beginning.getsockname()[1]}")
    connection.request("POST", "/v3/runs/stream", body, {"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    assert "x" * (1 << 16) == json.loads(answer.readline())["value"]
    generator = beginning.accept()[0]
    generator.settimeout(SECONDS)
    if client == "goes away":
        answer.close()
        connection.close()

    assert b"" == generator.recv(1)
    run = answer.headers["X-Run-Id"]
    eventually(lambda: runtime.ask("GET", f"/v3/runs/{run}").json["state"] == 12)
    expected = "the client that was reading the outputs is gone, so the run was ended"
    assert expected == runtime.ask("GET", f"/v3/runs/{run}").json["detail"]
    assert process == runtime.value(generated, "process")
    answer.close()
    connection.close()
    generator.close()


def test_an_endless_generator_is_not_collected(runtime: RunningRuntime, generated: str, beginning: socket.socket) -> None:
    """The run fails at the limit of its answer and says what to do. The generator is closed; its process is used again."""
    process = runtime.value(generated, "process")
    failure = runtime.failure(generated, f"endless {beginning.getsockname()[1]}")
    with beginning.accept()[0] as generator:
        assert b"" == generator.recv(1)

    assert "more than the limit of 16777216; a run of the route /v3/runs/stream sends the values" in failure
    assert process == runtime.value(generated, "process")


def test_an_asynchronous_generator_is_refused(runtime: RunningRuntime, generated: str) -> None:
    """The SDK does not run asynchronous code either."""
    expected = "Tried to return a non-supported type from a pipeline: a async_generator: "
    assert runtime.failure(generated, "async").startswith(expected)
