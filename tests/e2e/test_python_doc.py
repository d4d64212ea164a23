"""The Python blocks of docs/python.md, from the top to the end, with a real server."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import filestore
from tests.support.server import running_server

REPOSITORY = Path(__file__).parents[2]
DOC = (REPOSITORY / "docs/python.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A block, and the output that is shown under it, if any is."""

    code: str
    output: str | None


async def run_in_this_loop(code: str, names: dict[str, Any]) -> None:
    """Run a block as a notebook does: in a loop that runs, and with `await` outside of a function."""
    awaited = eval(compile(code, "docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(awaited):
        await awaited


@pytest.mark.slow
async def test_every_example_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one is a program; the others are in a block that opens a repository, and share their names."""
    monkeypatch.chdir(tmp_path)
    with running_server(tmp_path / "root") as server:
        shown = DOC.replace("http://127.0.0.1:8080", server.url).replace("THE_TOKEN", server.token)
        first, *others = [Example(code, output or None) for code, output in BLOCK.findall(shown)]
        for _ in range(2):  # a reader runs it again
            done = subprocess.run([sys.executable, "-c", first.code], capture_output=True, text=True, timeout=60, check=False)
            assert (first.output, "", 0) == (done.stdout, done.stderr, done.returncode)
        async with filestore.connect(server.url, token=server.token) as repository:
            names: dict[str, Any] = {"filestore": filestore}
            for example in others:
                names["repository"] = repository
                await run_in_this_loop(example.code, names)
                printed = capsys.readouterr().out
                assert (example.code, example.output or printed) == (example.code, printed)
    assert 14 <= len(others)


def test_every_block_is_run() -> None:
    """Output is shown only under the code that prints it. The lines of the shell are for what the test has already."""
    assert DOC.count("```text\n") == sum(bool(output) for _, output in BLOCK.findall(DOC))
    assert ["sh"] == [kind for kind in re.findall(r"^```(\w+)$", DOC, re.MULTILINE) if kind not in {"python", "text"}]
