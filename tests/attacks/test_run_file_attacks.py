"""Files of a runtime without a token, where `public_run_files` opens the outputs of runs, and where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Home
from tests.support.runtimes import TOKEN, RunningRuntime, running_runtime


class Opened:
    """A runtime with an output of a run, and a file that only a user has pushed."""

    def __init__(self, runtime: RunningRuntime, graphs: Path, folder: Path) -> None:
        self.runtime = runtime
        returned = runtime.pipeline(graphs / "returned")
        (output,) = runtime.run(returned, "file")["result"]["outputs"]
        self.path: str = output["file"]["path"]
        self.url: str = output["file"]["url"]
        pushed = folder / "private.txt"
        pushed.write_text("private")
        environ = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
        self.private: dict[str, Any] = Home(folder).result("push", pushed, environ=environ)
        digits = self.private["id"].removeprefix("file_")
        uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        self.private_run_path = f"run_files/{digits[:2]}/{digits[2:4]}/{uuid}/private.txt"

    def status(self, path: str, *, method: str = "GET", authorization: str = "") -> int:
        """Return the status of a request without a token, or with a header that is not one of ours."""
        reply = self.runtime.ask(method, path, headers={"Authorization": authorization})
        return reply.status


@pytest.fixture(scope="module")
def opened(user: Home, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A runtime whose outputs are public."""
    folder = tmp_path_factory.mktemp("served")
    with running_runtime(user, folder / "root", "--public-run-files", "yes") as runtime:
        yield Opened(runtime, graphs, folder)


@pytest.fixture(scope="module")
def closed(user: Home, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A runtime as it is by default."""
    folder = tmp_path_factory.mktemp("served")
    with running_runtime(user, folder / "root") as runtime:
        yield Opened(runtime, graphs, folder)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["/", "//", "/storage/", "//storage/"])
@pytest.mark.parametrize("authorization", ["", "Bearer None", "Bearer wrong"])
def test_an_output_opens_by_its_path(opened: Opened, prefix: str, authorization: str) -> None:
    """Without a token, and with any; also as a part, and its head."""
    for method in ("GET", "HEAD"):
        assert 200 == opened.status(f"{prefix}{opened.path}", method=method, authorization=authorization)
    reply = opened.runtime.ask("GET", f"{prefix}{opened.path}", headers={"Authorization": authorization, "Range": "bytes=3-"})
    assert (206, b"tent") == (reply.status, reply.body)


@pytest.mark.slow
def test_by_default_an_output_needs_a_token_or_a_signature(closed: Opened) -> None:
    """Its path alone does not open it. The page's path works with a token."""
    for prefix in ("/", "/storage/"):
        assert 401 == closed.status(f"{prefix}{closed.path}")
        assert b"content" == closed.runtime.ask("GET", f"{prefix}{closed.path}").body


def test_only_outputs_of_runs_open(opened: Opened) -> None:
    """Not a file that a user has pushed, by any of its paths, and nothing that lists or changes files."""
    private = opened.private
    for path in (
        f"/{opened.private_run_path}",
        f"/storage/{opened.private_run_path}",
        f"/{private['path']}",
        f"/storage/{private['path']}",
        f"/v3/pipeline_files/{private['id']}",
        f"/v3/pipeline_files/download/{private['id']}",
        "/v3/pipeline_files",
        "/native/v1/files",
        "/v3/runs",
        "/storage/v3/runs",
    ):
        assert opened.status(path) in {401, 404}, path
    assert 200 == opened.runtime.ask("GET", f"/{opened.private_run_path}").status
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert opened.status(f"/{opened.path}", method=method) in {401, 405}


def test_a_path_that_is_nearly_an_output_does_not_open(opened: Opened) -> None:
    """The folders and the UUID must be right. The name may be another one, because only the UUID is secret."""
    prefix, first, second, uuid, name = opened.path.split("/")
    other = ("0" if uuid[-1] != "0" else "1").join((uuid[:-1], ""))
    for path in (
        f"{prefix}/{first}/{second}/{uuid}/",
        f"{prefix}/{first}/{second}/{uuid}",
        f"{prefix}/{first}/{second}/{other}/{name}",
        f"{prefix}/{first}/{second}/{uuid.upper()}x/{name}",
        f"{prefix}/{second}/{first}x/{uuid}/{name}",
        f"{prefix}/{first}/{second}/{uuid}/../{uuid}/{name}/x",
        f"{prefix}/..%2f..%2fetc%2fpasswd",
        f"{prefix}/%00",
        f"{prefix}/{first}/{second}/{uuid}%0d%0aX: y/{name}",
        f"{prefix}/",
        opened.path.replace("run_files", "pipeline_files"),
    ):
        for before in ("/", "/storage/"):
            assert opened.status(before + path.replace(" ", "%20")) in {401, 404}, path


def test_a_wrong_signature_does_not_open_a_public_output(opened: Opened) -> None:
    """A signed URL is what it says, so a changed one is refused."""
    signed = "/" + opened.url.split("/", 3)[3]
    assert 200 == opened.status(signed)
    _, prefix, namespace, expires, signature, rest = signed.split("/", 5)
    assert 403 == opened.status(f"/{prefix}/{namespace}/{expires}/{'0' * len(signature)}/{rest}")
    assert opened.status(f"/{prefix}/other/{expires}/{signature}/{rest}") == 403


@pytest.mark.slow
def test_the_id_of_an_output_does_not_follow_from_its_content(opened: Opened, closed: Opened) -> None:
    """The same content has another path on another server, and it cannot be computed."""
    assert opened.path.rpartition("/")[2] == closed.path.rpartition("/")[2]
    assert opened.path != closed.path
