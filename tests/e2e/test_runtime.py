"""A runtime, the unmodified SDK, and real pipelines. Numbered: what the SDK does badly in runs, as in the contract with it."""

from __future__ import annotations

import json
import socket
import zipfile
from asyncio import StreamWriter, gather, to_thread
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support.commands import REPOSITORY, Home, scripts_of
from tests.support.origins import Asked, answers, running_origin, whole
from tests.support.runtimes import (
    STATIC_FILES,
    TOKEN,
    RunningRuntime,
    run_static_files,
    running_runtime,
    running_site,
    with_sdk,
)
from tests.support.server import SECONDS, eventually


@pytest.fixture(scope="module")
def runtime(user: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A runtime that keeps two pipelines loaded, each in one process."""
    root = tmp_path_factory.mktemp("served") / "root"
    environ = {"FILESTORE_URL_PRIVATE_ALLOWED": "yes"}
    arguments = ("--loaded-pipelines", "2", "--processes-per-pipeline", "1")
    with running_runtime(user, root, *arguments, environ=environ, complains=None) as runtime:
        yield runtime


def stored(runtime: RunningRuntime, path: Path) -> dict[str, object]:
    """A file as an input of a run, pushed by our own command."""
    environ = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
    record = Home(path.parent).result("push", path, environ=environ)
    return {"type": "file", "value": None, "file_name": record["name"], "file_path": "/" + record["path"]}


@pytest.fixture
def tree(runtime: RunningRuntime, tmp_path: Path) -> dict[str, object]:
    """A stored directory, as an input of a run."""
    folder = tmp_path / "tree"
    (folder / "empty").mkdir(parents=True)
    (folder / "run.sh").touch(mode=0o755)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "x").write_text(name)
    return stored(runtime, folder)


@pytest.fixture
def file(runtime: RunningRuntime, tmp_path: Path) -> dict[str, object]:
    """A stored file, as an input of a run."""
    path = tmp_path / "my file.txt"
    path.write_text("content")
    return stored(runtime, path)


@pytest.mark.slow
def test_an_upload_is_answered_as_the_sdk_has_it(runtime: RunningRuntime, graphs: Path) -> None:
    """The status is 200, and `PipelineGet` can be made of the answer, and its stored path is there."""
    fields = {"name": "owner/name:one", "environment_id_or_name": "numpy", "input_variables": '{"run_io_type": "string"}'}
    reply = runtime.upload((graphs / "returned").read_bytes(), **fields)
    answer = reply.json
    content = runtime.ask("GET", "/" + answer["path"])
    pointers = runtime.ask("GET", "/v3/pointers?pipeline_name=a")

    assert (200, [{"run_io_type": "string"}], []) == (reply.status, answer["input_variables"], answer["output_variables"])
    assert ("owner/name:one", "numpy", answer["created_at"]) == (answer["name"], answer["environment_id"], answer["updated_at"])
    assert answer["warning"].startswith("the environment 'numpy' is not known here; this runtime has one environment: default; ")
    assert (graphs / "returned").read_bytes() == content.body
    assert (200, {"skip": 0, "limit": 1000, "total": 0, "data": []}) == (pointers.status, pointers.json)


@pytest.mark.slow
def test_a_name_means_its_newest_pipeline(runtime: RunningRuntime, graphs: Path) -> None:
    """And an id the one that it was given to."""
    older = runtime.upload((graphs / "returned").read_bytes(), name="twice").json["id"]
    newer = runtime.upload((graphs / "misbehave").read_bytes(), name="twice").json["id"]

    assert newer == runtime.run("twice", "pid")["pipeline_id"]
    assert older == runtime.run(older, "file")["pipeline_id"]


@pytest.mark.slow
def test_6_a_directory_goes_in_as_a_tree(
    runtime: RunningRuntime, graphs: Path, tree: dict[str, object], file: dict[str, object]
) -> None:
    """Which the SDK refuses: with its paths, empty folders and executable bits, by the declared type; a file is the file."""
    entered = runtime.pipeline(graphs / "entered")

    assert [["a", "a/x", "b", "b/x", "empty", "run.sh"], True, "content"] == runtime.value(entered, tree, file)
    # 1.0.15 sends files as "pkl".
    assert "content" == runtime.value(entered, tree, file | {"type": "pkl"})[2]


@pytest.mark.slow
def test_files_go_in_as_what_they_are_declared(
    runtime: RunningRuntime, graphs: Path, file: dict[str, object], tmp_path: Path
) -> None:
    """A FileURL has its URL and its path, an open file is readable, and a dictionary may have files."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a b.txt").write_text("behind a URL")
    with running_site(tmp_path / "site") as url:
        given = {"type": "file", "value": None, "file_name": "a", "file_path": f"{url}/a%20b.txt"}
        opened = runtime.value(runtime.pipeline(graphs / "opened"), given, file)
    schema = {"type": "dictionary", "value": {"title": "a title", "image": file}}

    assert [given["file_path"], "behind a URL", "content", "rb"] == opened
    assert "a title: content" == runtime.value(runtime.pipeline(graphs / "described"), schema)


@pytest.mark.slow
def test_files_stay_cached_while_they_are_used(
    user: Home, runtime: RunningRuntime, graphs: Path, tree: dict[str, object], file: dict[str, object]
) -> None:
    """Those of a loaded pipeline, until it is ended; those of a run, until that has ended."""
    entered = runtime.upload((graphs / "entered").read_bytes()).json
    runtime.value(entered["id"], tree, file)

    used = " ".join(path.name for path in (user.folder / ".cache/filestore/leases").glob("*/*"))
    assert [True, False, False] == [
        str(path).split("/")[-2] in used for path in (entered["path"], tree["file_path"], file["file_path"])
    ]


def test_6_a_directory_comes_out_as_a_zip(runtime: RunningRuntime, graphs: Path) -> None:
    """Which hangs the SDK's runtime for ever: entries keep their folders and executable bits."""
    (output,) = runtime.run(runtime.pipeline(graphs / "returned"), "directory")["result"]["outputs"]

    assert ("file", None, "tree.zip") == (output["type"], output["value"], output["file"]["name"])
    with urlopen(output["file"]["url"]) as answer:
        archive = zipfile.ZipFile(BytesIO(answer.read()))
    assert ["a.txt", "inner/a.txt", "run.sh"] == sorted(archive.namelist())
    assert 0o755 == archive.getinfo("run.sh").external_attr >> 16 & 0o777


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "name", "content"),
    [
        ("file", "file.txt", b"content"),
        ("handle", "handle.txt", b"content"),
        ("written", "written.txt", b"CONtent"),
        ("memory", None, b"content"),
    ],
)
def test_what_a_pipeline_returns_is_stored_whole(
    runtime: RunningRuntime, graphs: Path, how: str, name: str | None, content: bytes
) -> None:
    """It may be a file, an open handle, one in the middle of a written file, or a file in memory."""
    run = runtime.run(runtime.pipeline(graphs / "returned"), how)
    (output,) = run["result"]["outputs"]
    file = output["file"]

    assert (run["id"], "file", None) == (run["result"]["run_id"], output["type"], output["value"])
    assert name in (None, file["name"])
    assert len(content) == file["size"]
    assert file["path"].startswith("run_files/")
    with urlopen(file["url"]) as answer:  # without a token
        assert content == answer.read()
    assert content == runtime.ask("GET", "/" + file["path"].replace(" ", "%20")).body


@pytest.mark.slow
def test_equal_outputs_are_one_stored_file(runtime: RunningRuntime, graphs: Path) -> None:
    """Content without a name gets a name that follows from it, so the same content has the same path in every run."""
    returned = runtime.pipeline(graphs / "returned")
    (several,) = runtime.run(returned, "memory twice")["result"]["outputs"]
    (single,) = runtime.run(returned, "memory")["result"]["outputs"]
    first, second, other = [value["file"] for value in several["value"]]

    assert ("output-ed7002b439e9ac84", "output-d9298a10d1b07358") == (first["name"], other["name"])
    assert first["path"] == second["path"] == single["file"]["path"] != other["path"]


def test_6_a_returned_handle_is_only_read(runtime: RunningRuntime, graphs: Path) -> None:
    """The runtime of the SDK truncates the file of the handle."""
    pipeline = runtime.pipeline(graphs / "returned")
    outputs = [runtime.run(pipeline, "kept")["result"]["outputs"][0] for _ in range(2)]

    assert [("kept.txt", 12)] * 2 == [(output["file"]["name"], output["file"]["size"]) for output in outputs]
    assert outputs[0]["file"]["path"] == outputs[1]["file"]["path"]


@pytest.mark.slow
async def test_7_a_url_is_downloaded_once(runtime: RunningRuntime, graphs: Path, tree: dict[str, object]) -> None:
    """The SDK does so for every run, into one path that concurrent runs overwrite; here a run asks whether it has changed."""
    entered = runtime.pipeline(graphs / "entered")
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n'
    async with running_origin(answers(whole(b"first", 'ETag: "1"'), unchanged)) as origin:
        given = {"type": "file", "value": None, "file_name": "x", "file_path": f"{origin.url}/a/x.txt"}
        runs = [(await to_thread(runtime.value, entered, tree, given))[2] for _ in range(3)]
        conditions = [asked.headers.get("if-none-match") for asked in origin.asked]

    assert ["first"] * 3 == runs
    assert [None, '"1"', '"1"'] == conditions


@pytest.mark.slow
def test_10_a_zip_that_would_fill_the_disk_is_not_a_tree(
    runtime: RunningRuntime, graphs: Path, file: dict[str, object], tmp_path: Path
) -> None:
    """The SDK unpacks every zip file."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", bytes(16 << 20))
    failure = runtime.failure(runtime.pipeline(graphs / "entered"), stored(runtime, tmp_path / "bomb.zip"), file)

    assert "raise the setting zip_ratio" in failure


@pytest.mark.slow
async def test_7_files_of_one_name_do_not_meet(runtime: RunningRuntime, graphs: Path, tree: dict[str, object]) -> None:
    """Two runs at the same time, each with a URL that ends as the other one's does."""

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(whole(asked.path.encode()))
        await writer.drain()

    pipelines = [runtime.pipeline(graphs / "entered") for _ in range(2)]
    async with running_origin(answer) as origin:
        given = [{"type": "file", "value": None, "file_path": f"{origin.url}/{place}/x.txt"} for place in range(2)]
        runs = [to_thread(runtime.value, *run) for run in zip(pipelines, [tree] * 2, given, strict=True)]
        read = [value[2] for value in await gather(*runs)]

    assert ["/0/x.txt", "/1/x.txt"] == read


@pytest.mark.slow
def test_8_static_files_by_id_and_url(user: Home, runtime: RunningRuntime, tmp_path: Path) -> None:
    """A File and a Directory that are stored already, and a FileURL: each is a local path before anything starts."""
    assert STATIC_FILES == run_static_files(user, runtime, tmp_path)


@pytest.mark.slow
def test_a_static_url_of_our_own_storage(user: Home, runtime: RunningRuntime, tmp_path: Path) -> None:
    """It is the stored file itself, and not downloaded: under another name of this machine, and long after it has expired."""
    for name in ("weights.txt", "tree/inner/a.txt", "labels.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    environ = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
    records = [user.result("push", tmp_path / name, environ=environ) for name in ("weights.txt", "tree", "labels.txt")]
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    url = f"{runtime.server.url.replace('127.0.0.1', 'localhost')}/signed/default/1/{'0' * 64}/{records[2]['path']}"
    program = REPOSITORY / "tests/support/static_files.py"
    (tmp_path / "given.txt").write_text("for the run")
    said = with_sdk(user, program, records[0]["id"], records[1]["id"], url, tmp_path / "given.txt", environ=environ)

    assert [["now", "for the run", "weights.txt", "tree/inner/a.txt", "labels.txt", 1], 1] == json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_runs_of_one_pipeline_wait_for_each_other(runtime: RunningRuntime, graphs: Path) -> None:
    """Each run is accepted at once, and they are done one after the other in one process."""
    pipeline = runtime.pipeline(graphs / "misbehave")
    begun = [runtime.begin(pipeline, "pid", is_async=True).json for _ in range(5)]

    assert {16} == {run["state"] for run in begun} - {6, 7}
    assert [None] * 5 == [run["result"] for run in begun]
    eventually(lambda: runtime.ask("GET", f"/v3/runs/{begun[-1]['id']}").json["state"] == 10)
    ended = [runtime.ask("GET", f"/v3/runs/{run['id']}").json for run in begun]
    assert [10] * 5 == [run["state"] for run in ended]
    assert 1 == len({run["result"]["outputs"][0]["value"] for run in ended})


@pytest.mark.slow
def test_runs_of_one_pipeline_overlap(user: Home, tmp_path: Path) -> None:
    """Two of three are done at the same time, in two processes that read their static file in one place of the cache."""
    (tmp_path / "weights").write_text("weights")
    root = tmp_path / "root"
    with (
        socket.create_server(("127.0.0.1", 0)) as meeting,
        running_runtime(user, root, "--processes-per-pipeline", "2") as runtime,
    ):
        meeting.settimeout(SECONDS)
        environ = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
        file_id = user.result("push", tmp_path / "weights", environ=environ)["id"]
        with_sdk(user, REPOSITORY / "tests/support/meeting.py", tmp_path, file_id)
        pipeline = runtime.pipeline(tmp_path / "meet")
        port = {"type": "integer", "value": meeting.getsockname()[1]}
        begun = [runtime.begin(pipeline, port, is_async=True).json["id"] for _ in range(3)]
        # Neither connection is closed before there are two.
        for connection in [meeting.accept()[0] for _ in range(2)]:
            connection.close()
        meeting.accept()[0].close()
        eventually(lambda: {10} == {runtime.ask("GET", f"/v3/runs/{run}").json["state"] for run in begun})
        values = [runtime.ask("GET", f"/v3/runs/{run}").json["result"]["outputs"][0]["value"] for run in begun]

    assert 2 == len({process for process, _ in values})
    assert 1 == len({path for _, path in values})


@pytest.mark.slow
def test_pipelines_that_are_loaded_are_bounded(runtime: RunningRuntime, graphs: Path) -> None:
    """One more ends the one that was not used for longest."""
    first, second, third = (runtime.pipeline(graphs / "misbehave") for _ in range(3))
    processes = [runtime.value(pipeline, "pid") for pipeline in (first, second, first, third, first, second)]

    assert processes[0] == processes[2] == processes[4]
    assert 4 == len(set(processes))


@pytest.mark.slow
def test_a_pipeline_may_use_all_cores(runtime: RunningRuntime, graphs: Path) -> None:
    """The limits on threads of our own processes do not hold for pipelines, which may use numpy."""
    assert runtime.value(runtime.pipeline(graphs / "misbehave"), "threads") is False


def test_10_only_its_own_token_is_admitted(user: Home, runtime: RunningRuntime) -> None:
    """The tokens of the folder run nothing. Files are served next to the pipelines."""
    made = user.result("token", "new", "--root", runtime.server.root)["token"]

    assert 200 == runtime.ask("GET", "/native/v1/repository").status
    for method, path in [
        ("POST", "/v3/runs"),
        ("POST", "/v3/pipelines"),
        ("GET", "/v3/runs/a"),
        ("GET", "/native/v1/repository"),
    ]:
        assert 401 == runtime.ask(method, path, token=made).status


@pytest.mark.slow
def test_it_starts_with_a_token_only(user: Home, tmp_path: Path) -> None:
    """None is made, and one that the folder knows is not enough."""
    user.result("token", "new", "--root", tmp_path / "root", "--create")
    done = user.run("runtime", "serve", "--root", tmp_path / "root", program=scripts_of(".venv-runtime") / "filestore")

    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("Error: everyone who has the token of a runtime can run code on it, so it does not make one; ")


@pytest.mark.slow
def test_it_needs_the_sdk(home: Home, tmp_path: Path) -> None:
    """Where that is not installed, one sentence says how to get it."""
    said = home.failure("runtime", "serve", "--root", tmp_path / "root", environ={"FILESTORE_TOKEN": TOKEN})

    assert said == (
        "pipeline-ai is not installed, and a runtime needs it; `pip install '.[runtime]'` in filestore's folder installs it"
    )


@pytest.mark.slow
def test_the_sdk_says_what_went_wrong(user: Home, runtime: RunningRuntime, graphs: Path) -> None:
    """A run that failed has the pipeline's own exception and traceback; an unknown pipeline is the SDK's own error."""
    pipeline = runtime.pipeline(graphs / "misbehave")
    program = """
import json, sys
from pipeline.cloud.pipelines import run_pipeline
run = run_pipeline(sys.argv[1], "raise")
try:
    run_pipeline("unknown")
except Exception as error:
    print(json.dumps([run.state.name, run.error.exception, run.error.traceback, run.result, error.args[0]]))
"""
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    state, exception, traceback, result, unknown = json.loads(
        with_sdk(user, "-c", program, pipeline, environ=environ).splitlines()[-1]
    )
    assert ("failed", "ValueError: what a pity", None) == (state, exception, result)
    assert "in raised\n" in traceback
    assert unknown == "Pipeline not found"


@pytest.mark.slow
def test_version_2_of_the_sdk_runs_pipelines(user: Home, runtime: RunningRuntime, graphs: Path) -> None:
    """By its own words: one that completes, one that fails, one that is asked for later, and an unknown one."""
    runtime.upload((graphs / "misbehave").read_bytes(), name="for version 2")
    runtime.upload((graphs / "returned").read_bytes(), name="returns files")
    program = """
import json, time
from pipeline.cloud.pipelines import run_pipeline
from pipeline.cloud.runs import get_run
returned = run_pipeline("returns files", "file")
failed = run_pipeline("for version 2", "raise")
begun = run_pipeline("for version 2", "pid", async_run=True)
while get_run(begun.id).state in ("queued", "routing", "running"):
    time.sleep(0.1)
try:
    run_pipeline("unknown")
except Exception as error:
    refused = str(error)
url = returned.outputs_formatted()[0].url.geturl()
ended = get_run(begun.id)
print(json.dumps([url, failed.state, failed.error.type, failed.error.message, ended.state, refused]))
"""
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    done = user.run("-c", program, program=scripts_of(".venv-container") / "python", environ=environ)
    assert 0 == done.returncode, done.stderr
    url, *told, refused = json.loads(done.stdout.splitlines()[-1])

    with urlopen(url) as answer:
        assert b"content" == answer.read()
    assert ["failed", "pipeline_error", "ValueError: what a pity", "completed"] == told
    assert "no pipeline is known as 'unknown'" in refused
