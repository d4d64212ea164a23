"""Record docs/tour.md: run the commands of its `console` blocks, from the top, and write what they print below them.

Usage: `python -m tests.tour`. The page itself says what to run, so a change of it is an edit of a command, and a recording.
`tests/e2e/test_tour.py` records too, and fails if the page differs.

The recording begins with an empty home and an empty folder. What differs from one recording to the next is not compared:
ids, commits, dates and times, progress, and all numbers of a block in which a command is interrupted. The page keeps what it has
of these, so that it changes only with what the commands print. The port, the token and the folder are always the same on it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.support.commands import REPOSITORY, SCRIPTS, Home, Server

PAGE = REPOSITORY / "docs/tour.md"
MODEL = "docs/tour_model.py"
URL = "http://127.0.0.1:8080"
TOKEN = "hf_THE_TOKEN"
FOLDER = "~/filestore/tour"
"""The folder in which the commands of the page run, as the page shows it."""
INTERRUPT = "^C"
"""A line below a command that is interrupted when it has shown its progress twice."""
_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_PROGRESS = re.compile(r"(?:push|fetch|look at) \S+: ")
_CHANGING = re.compile(r"file_[0-9a-f]{32}|\b[0-9a-f]{10}\b|\b[0-9a-f]{16}\b|\d{4}-\d\d-\d\d \d\d:\d\d|(?<=\ntime) +\d.*")
_CUT = re.compile(r"^(?:(?:push|fetch) \S+: .*|.*\.filestore-partial)$", re.MULTILINE)
"""In a block with an interruption: the line of progress, which may say more or less, and what the transfer has left."""
_NUMBER = re.compile(r" *\b\d+(?:\.\d+)?(?: %| B| kB| MB| bytes)?(?=\W)")


def commands(block: str) -> Iterator[tuple[str, bool]]:
    """Return each command of a block, and whether it is interrupted."""
    lines = block.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            yield line.removeprefix("$ "), lines[number + 1 : number + 2] == [INTERRUPT]


def compared(block: str) -> str:
    """Return a block without what differs from one recording to the next."""
    fixed = _CHANGING.sub("...", block)
    return _NUMBER.sub(" N", _CUT.sub("...", fixed)) if f"\n{INTERRUPT}\n" in block else fixed


class Recorder:
    """Runs commands in `folder`, beside the program that makes the model, until the end of the `with` block."""

    def __init__(self, folder: Path) -> None:
        self._tour = folder / "tour"
        self._tour.mkdir()
        (folder / "docs").mkdir()
        shutil.copy(REPOSITORY / MODEL, folder / MODEL)
        (folder / "home").mkdir()
        self._home = Home(folder / "home")
        self._home.environ["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
        self._server: Server | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def record(self, block: str) -> str:
        """Run the commands of a block, and return it with what they print now."""
        shown = ""
        for command, is_interrupted in commands(block):
            printed = self._printed(command, is_interrupted=is_interrupted)
            shown += f"$ {command}\n" + (f"{INTERRUPT}\n" if is_interrupted else "") + printed
        return shown

    def _printed(self, command: str, *, is_interrupted: bool) -> str:
        first, *arguments = shlex.split(command)
        if first == "export":
            self._home.environ |= dict(self._real(argument).split("=", 1) for argument in arguments)
            return ""
        if (first, *arguments[:1]) == ("filestore", "serve"):
            assert ["--root", "store", "--create"] == arguments[1:]
            self._server = self._stack.enter_context(self._home.server(root=self._tour / "store"))
            return self._public(self._server.said)
        return self._public(self._run(command, is_interrupted=is_interrupted))

    def _run(self, command: str, *, is_interrupted: bool) -> str:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self._tour,
            env=self._home.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        printed, progress = "", []
        with process:
            for line in process.stdout:
                if _PROGRESS.match(line) is None:
                    printed += line
                    continue
                progress.append(line)
                if is_interrupted and len(progress) == 2:
                    process.send_signal(signal.SIGINT)
        expected = 128 + signal.SIGINT if is_interrupted else 0
        assert expected == process.returncode, f"{command}\n{printed}"
        return (progress[-1] if is_interrupted else "") + printed

    def _real(self, text: str) -> str:
        assert self._server is not None
        return text.replace(URL, self._server.url).replace(TOKEN, self._server.token)

    def _public(self, text: str) -> str:
        if self._server is not None:
            text = text.replace(self._server.url, URL).replace(self._server.token, TOKEN)
        return text.replace(str(self._tour), FOLDER)


def recorded(page: str, folder: Path) -> str:
    """Return the page with what its commands print now, where that is not what it has already."""
    with Recorder(folder) as recorder:

        def block(match: re.Match[str]) -> str:
            new = recorder.record(match[0])
            return match[0] if compared(new) == compared(match[0]) else new

        return _BLOCK.sub(block, page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(recorded(PAGE.read_text(), Path(folder)))
