"""Run a runtime as a user does, and send it requests as the Pipeline SDK does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.runtime.run_files import OutputRepository
from tests.support.commands import REPOSITORY, Home, Server, scripts_of
from tests.support.server import SECONDS, Reply

TOKEN = "a-token-for-a-runtime"
VENV = ".venv-runtime"
"""The environment of what the runtime's extra installs."""
VENVS = {"1.0.12": ".venv-runtime-1.0.12", "1.0.15": VENV, "1.0.26": ".venv-runtime-1.0.26"}
"""The environments with filestore and each version of the Pipeline SDK that a runtime runs pipelines with."""
_BOUNDARY = "boundary-of-tests"


class RunningRuntime(NamedTuple):
    """A runtime that accepts connections."""

    server: Server

    def ask(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, token: str = TOKEN
    ) -> Reply:
        """Return the answer to one request."""
        connection = HTTPConnection(urlsplit(self.server.url).netloc, timeout=SECONDS)
        try:
            connection.request(method, path, body or None, {"Authorization": f"Bearer {token}"} | dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def upload(self, graph: bytes, **fields: str | None) -> Reply:
        """Upload a pipeline, as `upload_pipeline` does. Fields that are None are left out."""
        sent = {"name": "a pipeline", "environment_id_or_name": "default"} | fields
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in sent.items() if value is not None]
        parts.append(b'name="graph"; filename="upload"\r\n\r\n' + graph)
        body = b"".join(b"--%s\r\nContent-Disposition: form-data; %s\r\n" % (_BOUNDARY.encode(), part) for part in parts)
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        return self.ask("POST", "/v3/pipelines", body + b"--%s--\r\n" % _BOUNDARY.encode(), headers=headers)

    def pipeline(self, graph: Path, **fields: str | None) -> str:
        """Return the id of an uploaded pipeline."""
        reply = self.upload(graph.read_bytes(), **fields)
        assert reply.status == 200, reply.body
        return str(reply.json["id"])

    def begin(self, pipeline: str, *inputs: object, is_async: bool = False) -> Reply:
        """Ask for a run. An input that is not an object becomes a text."""
        input_data = [given if isinstance(given, dict) else {"type": "string", "value": given} for given in inputs]
        asked = {"pipeline_id_or_pointer": pipeline, "async_run": is_async, "input_data": input_data}
        return self.ask("POST", "/v3/runs", json.dumps(asked).encode())

    def run(self, pipeline: str, *inputs: object) -> Any:
        """Return the description of a run after it has ended."""
        reply = self.begin(pipeline, *inputs)
        assert reply.status == 200, reply.body
        return reply.json

    def value(self, pipeline: str, *inputs: object) -> Any:
        """Return the value of the only output of a run that completed."""
        run = self.run(pipeline, *inputs)
        assert run["state"] == 10, run
        (output,) = run["result"]["outputs"]
        return output["value"]

    def failure(self, pipeline: str, *inputs: object) -> str:
        """Return why a run failed. A failed run has no result, and `detail` gives the same reason."""
        run = self.run(pipeline, *inputs)
        assert (12, None) == (run["state"], run["result"])
        assert run["detail"] == run["error"]["exception"]
        return str(run["detail"])


@contextmanager
def running_runtime(
    home: Home,
    root: Path,
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    complains: bool | None = False,
    is_killed: bool = False,
    venv: str = VENV,
) -> Iterator[RunningRuntime]:
    """Serve `root` by `filestore runtime serve` of an environment until the end of the block. See `Home.server`."""
    command = (scripts_of(venv) / "filestore", "runtime", "serve")
    given = {"FILESTORE_TOKEN": TOKEN} | dict(environ or {})
    with home.server(*arguments, root=root, environ=given, complains=complains, is_killed=is_killed, command=command) as server:
        yield RunningRuntime(server)


def with_sdk(home: Home, *arguments: str | Path, environ: Mapping[str, str] | None = None, venv: str = VENV) -> str:
    """Return the output of a Python program in an environment with the Pipeline SDK. It must succeed."""
    done = home.run(*arguments, program=scripts_of(venv) / "python", environ=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_graphs(home: Home, folder: Path, *, venv: str = VENV) -> Path:
    """Pickle the pipelines of `tests/support/graphs.py` into `folder`."""
    folder.mkdir()
    with_sdk(home, REPOSITORY / "tests/support/graphs.py", folder, venv=venv)
    return folder


STATIC_FILES = [["now", "for the run", "weights.txt", "tree/inner/a.txt", "site/labels.txt", 1], 1]
"""What `run_static_files` returns: what the first of two equal runs has read, and how often its files were read."""


def run_static_files(home: Home, runtime: RunningRuntime, folder: Path, *, venv: str = VENV) -> Any:
    """Upload a pipeline with static files and run it twice with a file, by the SDK of an environment.

    The static files are a file and a directory that are stored already, and a URL.
    """
    for name in ("weights.txt", "tree/inner/a.txt", "site/labels.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "given.txt").write_text("for the run")
    environ = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
    ids = [home.result("push", folder / name, environ=environ)["id"] for name in ("weights.txt", "tree")]
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    with running_site(folder / "site") as url:
        program = REPOSITORY / "tests/support/static_files.py"
        said = with_sdk(home, program, *ids, f"{url}/labels.txt", folder / "given.txt", environ=environ, venv=venv)
    return json.loads(said.splitlines()[-1])


def python_without_filestore(folder: Path, *, venv: str) -> Path:
    """Make a Python with the packages of an environment, the Pipeline SDK among them, and without filestore."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (source,) = scripts_of(venv).parent.glob("lib/python3*/site-packages")
    (target,) = folder.glob("lib/python3*/site-packages")
    for package in source.iterdir():
        if "filestore" not in package.name:
            (target / package.name).symlink_to(package)
    return folder / "bin/python"


def output_repository(repository: Repository) -> OutputRepository:
    """Return the repository of a runtime, with the store and the index of a local one."""
    assert isinstance(repository, LocalRepository)
    return OutputRepository(repository._store, repository._index, location=repository.location, signed_seconds=60)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state != "" and not state.startswith("Z")


@contextmanager
def running_site(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as a third-party site; yield its URL."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.kill()
