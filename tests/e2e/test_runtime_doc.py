"""The Python blocks of docs/runtime.md, with a real server."""

from __future__ import annotations

import re
from asyncio import gather
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from filestore import Cache, File, connect
from filestore.runtime import Adapter
from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor

DOC = (Path(__file__).parents[2] / "docs/runtime.md").read_text()
TENSORS = [tensor(f"layer.{number}", 64, 512, seed=number) for number in range(12)]


@pytest.fixture
def documented() -> dict[str, Any]:
    """Return what the blocks of the page define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL):
        exec(block, names)  # the documentation is ours
    return names


@pytest.mark.slow
async def test_a_run_as_it_is_documented(
    documented: dict[str, Any], home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start, a run, and its answer."""
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model/weights").write_bytes(octets(1, 100_000))
    (tmp_path / "my_file.txt").write_text("text")
    with home.server(root=tmp_path / "srv") as server:
        file, folder = [home.result("push", tmp_path / name, environ=server.environ) for name in ("my_file.txt", "my_model")]
        request = {
            "input_data": [
                {"type": "file", "value": None, "file_path": file["path"]},
                {"type": "array", "value": [{"type": "file", "value": None, "file_path": folder["path"]}]},
                {"type": "integer", "value": 3},
            ]
        }

        def pipeline(path: Path, folders: list[Path], times: int) -> Path:
            made = tmp_path / "made.bin"
            made.write_bytes((path.read_bytes() + (folders[0] / "weights").read_bytes()) * times)
            return made

        static = [File(id=file["id"])]
        answer = await documented["main"](server.url, server.token, tmp_path / "cache", static, request, pipeline)
    assert ("made.bin", 3 * 100_004) == (answer["outputs"][0]["file"]["name"], answer["outputs"][0]["file"]["size"])
    assert "bytes_received=" in capsys.readouterr().out


async def test_errors_are_caught_as_it_is_documented(documented: dict[str, Any], home: Home, tmp_path: Path) -> None:
    """A mistake of the request, a file that is not there, and a run that succeeds; many runs at the same time."""
    async with connect(tmp_path / "repository", create=True) as repository, Cache(tmp_path / "cache", repository) as cache:
        adapter = Adapter(cache, repository, url="http://models.example")

        async def answer(given: object) -> dict[str, Any]:
            found: dict[str, Any] = await documented["answer"](adapter, [given], lambda value: value)
            return found

        missing = {"type": "file", "file_path": "run_files/31/7e/317e304d-e816-4036-86b2-7ad82b208b70/a"}
        answers = await gather(
            *(answer(given) for given in [{"type": "integer", "value": "a"}, missing, {"type": "string", "value": "b"}])
        )

    assert [400, 500, None] == [each.get("status") for each in answers]
    assert "b" == answers[2]["outputs"][0]["value"]


@pytest.mark.parametrize("name", re.findall(r"^\| `(filestore\.[\w.]+)` \|", DOC, re.MULTILINE))
def test_names_of_the_page_exist(name: str) -> None:
    """Each can be imported from where the page says."""
    module, _, member = name.rpartition(".")

    assert hasattr(import_module(module), member)


@pytest.mark.slow
async def test_tensors_as_they_are_documented(documented: dict[str, Any], home: Home, tmp_path: Path) -> None:
    """Each with its bytes."""
    (tmp_path / "model.safetensors").write_bytes(safetensors_file(TENSORS, metadata={"format": "pt"}))
    with home.server(root=tmp_path / "srv") as server:
        pushed = home.result("push", tmp_path / "model.safetensors", environ=server.environ)
        async with connect(server.url, token=server.token) as repository, Cache(tmp_path / "cache", repository) as cache:
            read = {name: content async for name, content in documented["tensors"](cache, File(id=pushed["id"]))}
    assert {each.name: each.data for each in TENSORS} == read
