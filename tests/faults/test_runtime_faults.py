from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.disks import small_disk
from tests.support.generator import octets
from tests.support.runtimes import RunningRuntime, is_running, running_runtime
from tests.support.server import eventually


@pytest.fixture(scope="module")
def runtime(user: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A runtime that all tests of this module share, in any state."""
    root = tmp_path_factory.mktemp("served") / "root"
    with running_runtime(user, root, "--run-memory-limit", "512MiB", complains=None) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def misbehaving(runtime: RunningRuntime, graphs: Path) -> str:
    """A pipeline that does what its input asks for."""
    return runtime.pipeline(graphs / "misbehave")


@pytest.fixture(scope="module")
def entered(runtime: RunningRuntime, graphs: Path) -> str:
    """A pipeline that takes two files."""
    return runtime.pipeline(graphs / "entered")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("exit", "SystemExit: bye"),
        ("raise", "ValueError: what a pity"),
        ("object", "Tried to return a non-supported type from a pipeline: a object: "),
        ("nan", "Tried to return a non-supported type from a pipeline: a float: "),
        ("deep", "RecursionError: "),
        ("large", "the size in bytes of a run's values is "),
    ],
)
def test_a_run_that_fails_leaves_its_pipeline_loaded(runtime: RunningRuntime, misbehaving: str, how: str, detail: str) -> None:
    """The run has state 12 and a reason. The process is the same before and after."""
    process = runtime.value(misbehaving, "pid")

    assert runtime.failure(misbehaving, how).startswith(detail)
    assert process == runtime.value(misbehaving, "pid")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("end", "the process of the pipeline ended with status 3 in the middle of the run; the next run is given a new one"),
        ("crash", "the process of the pipeline was ended by the signal SIGSEGV in the middle of the run; "),
        ("eat", "MemoryError"),
        ("garble", "the process of the pipeline sent an invalid answer in the middle of the run; "),
    ],
)
def test_a_run_that_ruins_its_process_is_followed_by_one_in_a_new_process(
    runtime: RunningRuntime, misbehaving: str, how: str, detail: str
) -> None:
    """The run has state 12 and a reason. Nothing is left of the old process."""
    process = runtime.value(misbehaving, "pid")

    assert runtime.failure(misbehaving, how).startswith(detail)
    assert process != runtime.value(misbehaving, "pid")
    assert not is_running(process)


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("absent", "the pipeline returned a File, but nothing-is-here.bin is not a file; only a Directory may be a folder"),
        (
            "absent folder",
            "the pipeline returned a Directory, but nothing-is-here.zip is not a file; only a Directory may be a folder",
        ),
        ("pipe", "the pipeline returned a File, but pipe is not a file; only a Directory may be a folder"),
        ("half", "the pipeline returned a File, but nothing-is-here.bin is not a file; only a Directory may be a folder"),
    ],
)
def test_what_cannot_be_stored_fails_the_run(runtime: RunningRuntime, misbehaving: str, how: str, detail: str) -> None:
    """A missing file, a missing folder, a pipe, one missing file of two: nothing is stored, and the run ends at once."""
    before = runtime.ask("GET", "/native/v1/files").json

    assert detail == runtime.failure(misbehaving, how)
    assert before == runtime.ask("GET", "/native/v1/files").json


def test_what_user_code_prints_is_not_an_answer(runtime: RunningRuntime, misbehaving: str) -> None:
    """The text may look like an answer."""
    assert runtime.value(misbehaving, "print") == "printed"


def test_user_code_is_not_handed_our_secrets(runtime: RunningRuntime, misbehaving: str) -> None:
    """The runtime's token is not in the environment of its pipelines."""
    assert runtime.value(misbehaving, "secrets") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "detail"),
    [
        ("garbage", "UnpicklingError: "),
        ("empty", "EOFError: "),
        ("no-graph", "TypeError: the upload is not a pipeline but a int"),
        ("ends-when-loaded", "the process of the pipeline ended with status 7 in the middle of the loading of the pipeline; "),
        ("unknown-file", "nothing is stored under 'file_00000000000000000000000000000000'"),
        ("local-file", "'/etc/hostname' names no file: "),
    ],
)
def test_a_graph_that_cannot_be_loaded_fails_its_runs(runtime: RunningRuntime, graphs: Path, graph: str, detail: str) -> None:
    """The upload succeeds, because the graph is not read before a run. The run fails with the reason."""
    pipeline = runtime.pipeline(graphs / graph)

    assert runtime.failure(pipeline).startswith(detail)


@pytest.mark.slow
def test_what_takes_too_long_is_ended(user: Home, graphs: Path, tmp_path: Path) -> None:
    """A run or a graph takes too long. The next run has a new process, and no child of the old one is left."""
    with running_runtime(user, tmp_path / "root", "--run-seconds", "15") as runtime, ThreadPoolExecutor() as pool:
        misbehaving = runtime.pipeline(graphs / "misbehave")
        never = runtime.pipeline(graphs / "never-loads")
        child = runtime.value(misbehaving, "children")
        process = runtime.value(misbehaving, "pid")
        loading = pool.submit(runtime.failure, never)

        assert is_running(child)
        assert runtime.failure(misbehaving, "hang").startswith("the run took longer than 15 seconds and was ended; ")
        assert loading.result().startswith("the loading of the pipeline took longer than 15 seconds and was ended; ")
        assert (False, False) == (is_running(process), is_running(child))
        assert process != runtime.value(misbehaving, "pid")


@pytest.mark.slow
def test_what_a_killed_runtime_leaves(user: Home, graphs: Path, tmp_path: Path) -> None:
    """No process is left, not even a hanging one. The next runtime has its pipelines and runs, and no partial files."""
    root = tmp_path / "root"
    with running_runtime(user, root, is_killed=True) as runtime:
        misbehaving = runtime.pipeline(graphs / "misbehave")
        process = runtime.value(misbehaving, "pid")
        ended = runtime.run(misbehaving, "lines")
        run = runtime.begin(misbehaving, "hang", is_async=True).json
        eventually(lambda: runtime.ask("GET", f"/v3/runs/{run['id']}").json["state"] == 7)
        os.kill(runtime.server.process.pid, signal.SIGKILL)
        eventually(lambda: not is_running(process))
    assert list((root / "runtime/default/work").iterdir()) != []

    with running_runtime(user, root) as runtime:
        told = runtime.ask("GET", f"/v3/runs/{run['id']}").json
        detail = "the server ended in the middle of the run, and no result was stored; start the run again"
        assert (12, detail, {"exception": detail, "traceback": None}) == (told["state"], told["detail"], told["error"])
        assert ended == runtime.ask("GET", f"/v3/runs/{ended['id']}").json
        assert "by print" == runtime.ask("GET", f"/v3/runs/{ended['id']}/logs").json["lines"][0]["text"]
        assert not (root / "runtime/default/work").exists()
        assert runtime.value(misbehaving, "pid") != process


@pytest.mark.slow
def test_a_stop_ends_what_still_runs(user: Home, graphs: Path, tmp_path: Path) -> None:
    """A run without a waiting client does not keep the runtime from stopping."""
    with running_runtime(user, tmp_path / "root") as runtime:
        misbehaving = runtime.pipeline(graphs / "misbehave")
        process = runtime.value(misbehaving, "pid")
        run = runtime.begin(misbehaving, "hang", is_async=True).json
        eventually(lambda: runtime.ask("GET", f"/v3/runs/{run['id']}").json["state"] == 7)
    assert not is_running(process)


@pytest.mark.slow
def test_a_full_disk_fails_what_needs_space(user: Home, graphs: Path, tmp_path: Path) -> None:
    """An upload fails, and a run with too large a result. Runs that need no space continue."""
    with small_disk(tmp_path / "disk", "size=24m"), running_runtime(user, tmp_path / "disk/root", complains=True) as runtime:
        misbehaving = runtime.pipeline(graphs / "misbehave")
        refused = runtime.upload(octets(1, 32 << 20))
        failure = runtime.failure(misbehaving, "large file")

        assert (507, "min-free-reached") == (refused.status, refused.slug)
        assert failure.endswith("its disk is full")
        assert isinstance(runtime.value(misbehaving, "pid"), int)
        assert [] == runtime.ask("GET", "/native/v1/files").json["files"]
        assert [misbehaving] == [pipeline["id"] for pipeline in runtime.ask("GET", "/v3/pipelines").json["data"]]


@pytest.mark.slow
def test_a_folder_has_one_runtime(user: Home, runtime: RunningRuntime) -> None:
    """A second runtime says so and does not start."""
    with pytest.raises(AssertionError, match="another runtime runs its pipelines"), running_runtime(user, runtime.server.root):
        pass


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"name": None}, "the form has 0 parts name, one is expected"),
        ({"environment_id_or_name": None}, "the form has 0 parts environment_id_or_name, one is expected"),
        ({"name": ""}, "a pipeline's name is one line of printable text"),
        ({"name": "a\nb"}, "a pipeline's name is one line of printable text"),
        ({"name": "model:v1"}, "'model:v1' ends like a pointer; "),
        ({"environment_id_or_name": "a\nb"}, "environment_id_or_name is not one line of printable text"),
        ({"gpu_memory_min": "9" * 5000}, "gpu_memory_min is not a whole number"),
        ({"input_variables": "{"}, "input_variables is not a JSON object"),
        ({"output_variables": "[]"}, "output_variables is not a JSON object"),
        ({"_metadata": "none"}, "_metadata is not a JSON object"),
        ({"_metadata": json.dumps({"python_version": "3.8.1"})}, "the pipeline was made by Python 3.8.1"),
    ],
)
def test_an_upload_that_cannot_be_right_is_refused(runtime: RunningRuntime, fields: dict[str, str | None], detail: str) -> None:
    """The answer is 400 with the reason. Nothing is stored, and the pipeline does not exist."""
    before = runtime.ask("GET", "/native/v1/files").json
    reply = runtime.upload(b"graph", **({"name": "refused"} | fields))

    assert (400, "invalid-input") == (reply.status, reply.slug)
    assert reply.json["detail"].startswith(detail)
    assert runtime.begin("refused").status == 404
    assert before == runtime.ask("GET", "/native/v1/files").json


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"input_data": []}',
        b'{"pipeline_id_or_pointer": 1, "input_data": []}',
        b'{"pipeline_id_or_pointer": "a"}',
        b'{"pipeline_id_or_pointer": "a", "input_data": {}}',
        b"[" * 100_000,
    ],
)
def test_a_request_of_a_run_that_cannot_be_right_is_refused(runtime: RunningRuntime, body: bytes) -> None:
    """The answer is 400 with the reason."""
    reply = runtime.ask("POST", "/v3/runs", body)

    assert (400, "invalid-input") == (reply.status, reply.slug)


@pytest.mark.parametrize("value", ["false", "true", 0, 1, []])
def test_async_run_is_a_boolean(runtime: RunningRuntime, value: object) -> None:
    """Any other value is refused, because "false" in quotes would count as true."""
    body = json.dumps({"pipeline_id_or_pointer": "none", "input_data": [], "async_run": value}).encode()
    reply = runtime.ask("POST", "/v3/runs", body)

    assert (400, "invalid-input") == (reply.status, reply.slug)
    assert reply.json["detail"].endswith("; true or false is expected, without quotes")


def test_an_error_in_json_says_where_it_is(runtime: RunningRuntime) -> None:
    """The example of the SDK's page has a comma after its last member, which JSON does not allow."""
    body = b'{\n  "pipeline_id_or_pointer": "a",\n  "async_run": false,\n  "input_data": [],\n}'
    detail = runtime.ask("POST", "/v3/runs", body).json["detail"]

    assert detail.startswith("the run's request is not a JSON object: at line 5, column 1, JSON breaks: ")


@pytest.mark.parametrize("reference", ["none", "pipeline_" + "0" * 32, "../../etc", "a/b:c", "", "\ud800"])
def test_an_unknown_pipeline(runtime: RunningRuntime, reference: str) -> None:
    """The answer is 404 and says what to do."""
    reply = runtime.begin(reference)

    assert (404, "unknown-pipeline") == (reply.status, reply.slug)


@pytest.mark.parametrize("path", ["/etc/passwd", "pipeline_files/../../etc/passwd", "file:///etc/passwd", "x"])
def test_10_an_input_names_no_file_of_this_machine(runtime: RunningRuntime, entered: str, path: str) -> None:
    """An input cannot be a URL of such a file either."""
    given = {"type": "file", "value": None, "file_name": "a", "file_path": path}

    assert runtime.failure(entered, given, given).startswith("input_data[0] of the run cannot be used: ")
