"""The documentation's run examples, against a real server, with curl and the real SDK's classes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore import Directory, File
from filestore.backends import connect
from filestore.cache import Cache
from filestore.download.download import DownloadLimits
from filestore.runtime import Adapter
from tests.support.commands import Home, Server
from tests.support.nginx import running_nginx

REPOSITORY = Path(__file__).parents[2]
CONTENT = b"what is in my file\n"
RUN_PATH = re.compile(r"run_files/([0-9a-f]{2})/([0-9a-f]{2})/\1\2[0-9a-f]{4}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[^/]+")


@pytest.fixture
def server(home: Home, tmp_path: Path) -> Iterator[Server]:
    """A server at its first start."""
    with home.server(root=tmp_path / "srv") as server:
        yield server


def upload(server: Server, path: Path) -> dict[str, Any]:
    """`curl` as the documentation has it."""
    token = f"Authorization: Bearer {server.token}"
    command = ["curl", "-sS", "--fail", "-X", "POST", f"{server.url}/v3/pipeline_files", "-H", token, "-F", f"pfile=@{path}"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return answer


async def taken(adapter: Adapter, input_data: object, declared: list[object] | None = None, **options: Any) -> list[Any]:
    """The arguments of a run, whose files nothing removes afterwards."""
    async with adapter.inputs(input_data, declared, **options) as arguments:
        return arguments


def downloaded(url: str) -> tuple[bytes, str]:
    """Return the head and the bytes that `curl` gets without a token."""
    done = subprocess.run(["curl", "-sS", "--fail", "-D", "/dev/stderr", url], capture_output=True, check=True)
    return done.stdout, done.stderr.decode().lower()


@pytest.mark.slow
@pytest.mark.parametrize("version", [3, 4])
async def test_a_file_is_uploaded_and_used_in_a_run(server: Server, tmp_path: Path, version: int) -> None:
    """The run gets `file_name` and `file_path` of the upload, the pipe a path, and the result has a URL."""
    (tmp_path / "my_file.txt").write_bytes(CONTENT)
    uploaded = upload(server, tmp_path / "my_file.txt")
    file = {"type": "file", "value": None, "file_name": uploaded["file_name"], "file_path": uploaded["file_path"]}
    run = {"async_run": False, "input_data" if version == 3 else "inputs": [file if version == 3 else file | {"file_url": None}]}
    async with connect(server.url, token=server.token) as repository:
        adapter = Adapter(Cache(tmp_path / "cache", repository), repository)
        (path,) = await taken(adapter, run["input_data" if version == 3 else "inputs"], [File])
        assert isinstance(path, Path)
        assert ("my_file.txt", CONTENT) == (path.name, path.read_bytes())

        images = [tmp_path / f"image-{number}.jpg" for number in range(2)]
        for image in images:
            image.write_bytes(image.name.encode() * 1000)
        one: Any
        many: Any
        one, many = await adapter.outputs([File(images[0]), [File(image) for image in images]])
    assert {"type", "value", "file"} == one.keys() == many.keys()
    assert ("file", None, "array", None) == (one["type"], one["value"], many["type"], many["file"])
    for image, told in zip([images[0], *images], [one, *many["value"]], strict=True):
        assert (image.name, image.stat().st_size) == (told["file"]["name"], told["file"]["size"])
        assert RUN_PATH.fullmatch(told["file"]["path"])
        content, head = downloaded(told["file"]["url"])
        assert image.read_bytes() == content
        assert f"content-length: {len(content)}\r\n" in head
        assert image.name == told["file"]["url"].rpartition("/")[2]


@pytest.mark.slow
async def test_a_directory_is_uploaded_as_a_zip(server: Server, home: Home, tmp_path: Path) -> None:
    """To the same route; a pipe that declares a Directory gets the folder, one that declares a File the zip."""
    (tmp_path / "my_dir").mkdir()
    (tmp_path / "my_dir/my_file.txt").write_bytes(CONTENT)
    subprocess.run(
        ["python3", "-m", "zipfile", "-c", tmp_path / "my_dir.zip", "my_file.txt"], cwd=tmp_path / "my_dir", check=True
    )
    uploaded = upload(server, tmp_path / "my_dir.zip")
    file = {"type": "file", "value": None, "file_name": uploaded["file_name"], "file_path": uploaded["file_path"]}
    async with connect(server.url, token=server.token) as repository:
        adapter = Adapter(Cache(tmp_path / "cache", repository), repository)
        folder, zip_file = await taken(adapter, [file, file], [Directory, File])
    assert isinstance(folder, Path)
    assert isinstance(zip_file, Path)
    assert CONTENT == (folder / "my_file.txt").read_bytes()
    assert (tmp_path / "my_dir.zip").read_bytes() == zip_file.read_bytes()


@pytest.mark.slow
async def test_a_url_as_the_path_of_a_file(server: Server, tmp_path: Path) -> None:
    """Which the serving end downloads; a later run asks its origin whether it has changed."""
    with running_nginx(tmp_path / "nginx") as nginx:
        url = nginx.put("my_file.txt", CONTENT)
        run = [{"type": "file", "value": None, "file_name": "my_file.txt", "file_path": url}]
        async with connect(server.url, token=server.token) as repository:
            cache = Cache(tmp_path / "cache", repository, downloads=DownloadLimits(private_allowed=True))
            adapter = Adapter(cache, repository)
            first, second = [await taken(adapter, run, [File]) for _ in range(2)]
        assert ["200", "304"] == [line.split()[2] for line in nginx.asked(2)]
    assert first == second
    (path,) = first
    assert isinstance(path, Path)
    assert ("my_file.txt", CONTENT) == (path.name, path.read_bytes())


@pytest.mark.slow
async def test_an_output_is_the_input_of_another_run(server: Server, tmp_path: Path) -> None:
    """By its URL, as the SDK passes it on: nothing is downloaded from our own server as a stranger's file."""
    (tmp_path / "mask.png").write_bytes(CONTENT)
    async with connect(server.url, token=server.token) as repository:
        adapter = Adapter(Cache(tmp_path / "cache", repository), repository)
        told: Any = (await adapter.outputs([tmp_path / "mask.png"]))[0]["file"]
        for named in ({"file_path": told["url"]}, {"file_url": told["url"]}, {"file_path": told["path"]}):
            (path,) = await taken(adapter, [{"type": "file", "value": None, **named}], [File])
            assert isinstance(path, Path)
            assert ("mask.png", CONTENT) == (path.name, path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("environment", [".venv-sdk1-first", ".venv-sdk2-first"])
def test_the_real_sdk_s_values(server: Server, tmp_path: Path, environment: str) -> None:
    """Its own schemas make the run and read the answer; its own classes are declared, given to the pipe, and returned."""
    python = REPOSITORY / environment / "bin/python"
    if not python.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{environment} is not there: bash tests/run.sh makes it")
    (tmp_path / "my_file.txt").write_bytes(CONTENT)
    path = upload(server, tmp_path / "my_file.txt")["file_path"]
    done = subprocess.run(
        [python, "-m", "tests.support.sdk_run", server.url, server.token, tmp_path / "cache", path],
        cwd=REPOSITORY,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PIPELINE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    one, many, folder, handle = json.loads(done.stdout)
    assert b"image-0.jpg" + CONTENT == downloaded(one["file"]["url"])[0]
    assert [f"image-{number}.jpg" for number in range(3)] == [each["file"]["name"] for each in many["value"]]
    assert ("results.zip", b"PK") == (folder["file"]["name"], downloaded(folder["file"]["url"])[0][:2])
    assert many["value"][1]["file"]["path"] == handle["file"]["path"]
