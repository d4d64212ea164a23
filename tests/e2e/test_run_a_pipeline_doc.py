"""The page for someone who knows nothing of filestore, from a checkout to a run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, Home, scripts_of
from tests.support.runtimes import VENV

DOC = (REPOSITORY / "docs/run-a-pipeline.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"[Ss]ave\s+this\s+as\s+`([\w.]+)`")
PRELUDE = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail "$@"; }\n'
NEXT = "---- the next block of the page ----"
INSTALL, START = [text for language, text in BLOCK.findall(DOC) if language == "sh"]


def saved_programs(folder: Path) -> list[str]:
    """Save each program of the page under the name that the sentence before it gives. Return the names."""
    names = []
    end = 0
    for block in BLOCK.finditer(DOC):
        if block[1] == "python":
            names.append(SAVED.findall(DOC[end : block.start()])[-1])
            (folder / names[-1]).write_text(block[2])
        end = block.end()
    return names


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_every_line_does_what_it_says(home: Home) -> None:
    """Typed in the order of the page, into the runtime that it starts; each output has the lines that the page shows."""
    names = saved_programs(home.folder)
    path = f"{scripts_of(VENV)}:{home.environ['PATH']}"
    command = ["bash", "-c", f"cd; {START.replace('filestore runtime serve', 'exec filestore runtime serve --port 0')}"]
    with home.typed_server(command, environ={"PATH": path}) as server:
        typed, shown = PRELUDE, []
        for language, text in BLOCK.findall(DOC):
            if language == "bash":
                typed += f"{text}echo '{NEXT}'\n"
                shown.append("")
            elif language == "text":
                shown[-1] = text
        done = subprocess.run(
            ["bash", "-c", typed.replace("http://127.0.0.1:8080", server.url)],
            env=home.environ | {"PATH": path},
            cwd=home.folder,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert 0 == done.returncode, done.stdout + done.stderr
    outputs = done.stdout.split(f"{NEXT}\n")[:-1]
    assert [lines.splitlines() for lines in shown] == [
        [line for line in output.splitlines() if line in lines.splitlines()] for lines, output in zip(shown, outputs, strict=True)
    ]
    assert all(f"python {name}\n" in typed for name in names)


def test_what_is_installed_is_what_the_tests_have() -> None:
    """The environment of the tests' runtime is made by the line of the page."""
    made = (REPOSITORY / "tests/run.sh").read_text()
    *_, line = INSTALL.splitlines()

    assert f'/bin/pip" install --quiet --editable {line.removeprefix("pip install ")}\n' in made
