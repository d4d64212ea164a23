"""Version 2.8.0's own container, which downloads what a run is given; it has no say in how."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.support.commands import Home, scripts_of
from tests.support.server import SECONDS, RunningServer, running_server

MODULE = """
from pathlib import Path

from pipeline import Pipeline, Variable, pipe
from pipeline.objects import File


@pipe
def read(file: File) -> list:
    return [str(Path(file.path).resolve()), Path(file.path).read_text()]


@pipe
def copy(file: File) -> File:
    path = Path("/tmp") / Path(file.path).parent.name / ("copy of " + Path(file.path).name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(Path(file.path).read_text() * 2)
    return File(path=str(path))


with Pipeline() as builder:
    file = Variable(File)
    builder.output(read(file), copy(file))

graph = builder.get_pipeline()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Where the files are."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a container, as its image starts one."""
    home = Home(tmp_path_factory.mktemp("home"))
    (home.folder / "my_module.py").write_text(MODULE)
    python = str(scripts_of(".venv-container") / "python")
    command = [python, "-m", "uvicorn", "pipeline.container.startup:create_app", "--factory"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [*command, "--fd", str(listener.fileno())],
            cwd=home.folder,
            env=home.environ | {"PIPELINE_PATH": "my_module:graph", "PYTHONPATH": str(home.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.wait()


def post(port: int, path: str, body: object) -> tuple[int, bytes]:
    """The status and the body of the answer to JSON."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def run(container: int, given: object) -> Any:
    """The answer of a run; a container that has only just started says so, and is asked again."""
    while True:
        connection = HTTPConnection("127.0.0.1", container, timeout=SECONDS)
        connection.request("POST", "/v4/runs", json.dumps({"inputs": [given]}), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if (answer["error"] or {}).get("type") != "pipeline_loading":
            return answer


@pytest.mark.slow
@pytest.mark.parametrize("member", ["file_url", "file_path"])
@pytest.mark.parametrize("name", ["model.bin", "my model, the second.bin", "größer 100%.bin", "a+b&c=d#e?f.bin"])
def test_it_fetches_our_signed_url(server: RunningServer, container: int, name: str, member: str) -> None:
    """This works for any name, though the client quotes URLs again and drops queries."""
    record = server.upload(name, b"content").json
    path = server.ask("POST", f"/native/v1/files/{record['id']}/sign").json["path"]
    answer = run(container, {"type": "file", "value": None, member: f"{server.url}/{path}"})

    assert answer["error"] is None, answer
    local, content = answer["outputs"][0]["value"]
    shutil.rmtree(Path(local).parent)
    assert "content" == content


def test_a_file_that_it_returns_lands_here(server: RunningServer, container: int) -> None:
    """The container posts it to the URL that it is given, and the file opens by its URL, without a token."""
    record = server.upload("my input.txt", b"content").json
    path = server.ask("POST", f"/native/v1/files/{record['id']}/sign").json["path"]
    answer = run(container, {"type": "file", "value": None, "file_url": f"{server.url}/{path}"})
    returned = answer["outputs"][1]["file"]
    permitted = server.ask("POST", "/v4/files/presigned-post", json.dumps({"name": returned["name"]}).encode()).json
    upload = {key: permitted[key] for key in ("upload_url", "upload_fields")} | {"local_file_path": returned["path"]}
    status, said = post(container, "/v4/files/upload-to-storage", {"files": [upload]})
    shutil.rmtree(Path(returned["path"]).parent)
    with urlopen(permitted["url"], timeout=SECONDS) as opened:
        content = opened.read()
    described = server.ask("GET", f"/v4/files/posts/{permitted['upload_id']}").json

    assert (201, returned["name"], b"contentcontent") == (status, described["name"], content), said
    with urlopen(described["url"], timeout=SECONDS) as opened:
        assert b"contentcontent" == opened.read()
