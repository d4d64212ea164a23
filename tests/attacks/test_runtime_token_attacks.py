"""Somebody has the token of a runtime, or says in a header what the runtime is called."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from filestore.core.digest import token_digest
from tests.support.changed_tokens import answered
from tests.support.commands import Home
from tests.support.runtimes import TOKEN, RunningRuntime, running_runtime
from tests.support.server import SECONDS, eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def runtime(user: Home, tmp_path: Path) -> Iterator[RunningRuntime]:
    """A runtime that counts no guesses."""
    with running_runtime(user, tmp_path / "root", "--guesses-limit", "100000", complains=None) as runtime:
        yield runtime


def test_the_token_of_a_runtime_is_removed_while_it_streams(user: Home, runtime: RunningRuntime, graphs: Path) -> None:
    """The stream of its run is cut. The URLs of outputs that it asked for are refused, and so is the token."""
    run = runtime.run(runtime.pipeline(graphs / "returned"), "file")
    output = urlsplit(run["result"]["outputs"][0]["file"]["url"]).path
    assert 200 == runtime.ask("GET", output, token="").status
    pipeline = runtime.pipeline(graphs / "generated")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        port = listener.getsockname()[1]
        asked = {"pipeline_id_or_pointer": pipeline, "input_data": [{"type": "string", "value": f"endless {port}"}]}
        body = json.dumps(asked).encode()
        where = urlsplit(runtime.server.url)
        with socket.create_connection((str(where.hostname), where.port or 0), timeout=SECONDS) as client:
            head = ["POST /v3/runs/stream HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(body)}"]
            client.sendall("\r\n".join([*head, "", ""]).encode() + body)
            assert client.recv(12) == b"HTTP/1.1 200"
            user.result("token", "rm", str(token_digest(TOKEN))[:16], "--root", runtime.server.root)
            with suppress(ConnectionError):
                while client.recv(1 << 16):
                    pass
    eventually(lambda: answered(lambda: runtime.ask("GET", "/v3/runs")) == 401)
    assert 403 == runtime.ask("GET", output, token="").status


def test_each_client_is_told_its_own_name_of_the_runtime(runtime: RunningRuntime, graphs: Path) -> None:
    """The client that ran a pipeline first does not choose the URLs of the outputs that others read."""
    pipeline = runtime.pipeline(graphs / "returned")
    asked = {"pipeline_id_or_pointer": pipeline, "input_data": [{"type": "string", "value": "file"}]}
    ids = []
    for host in ("evil.example", "good.example"):
        answer = runtime.ask(
            "POST", "/v3/runs", json.dumps(asked).encode(), headers={"Host": host, "X-Forwarded-Host": "x.example"}
        )
        assert url_of(answer.json).startswith(f"http://{host}/signed/")
        ids.append(answer.json["id"])
    for host, run_id in zip(("good.example", "evil.example"), ids, strict=True):
        assert url_of(runtime.ask("GET", f"/v3/runs/{run_id}", headers={"Host": host}).json).startswith(f"http://{host}/signed/")


def url_of(run: dict[str, dict[str, list[dict[str, dict[str, str]]]]]) -> str:
    """The URL of the only output of a run."""
    return run["result"]["outputs"][0]["file"]["url"]
