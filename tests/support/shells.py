"""A shell in a terminal, in which a user types and presses keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_STARTS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "said() { printf '[%s]' \"$@\"; echo; }", "source {}"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "said() { printf '[%s]' \"$@\"; echo; }",
        "autoload -U compinit && compinit -u -d $HOME/.zcompdump && source {}",
    ),
    "fish": (
        ["fish", "--no-config", "--interactive"],
        "function said; for word in $argv; printf '[%s]' $word; end; echo; end",
        "source {}",
    ),
}
_TAB, _BEGINNING = "\t", "\x01"
_SECONDS = 100


class Shell:
    """An interactive shell with the completion of a script."""

    def __init__(self, name: str, script: Path, *, environ: Mapping[str, str], cwd: Path) -> None:
        command, function, source = _STARTS[name]
        if shutil.which(name) is None and os.environ.get("CI") != "true":
            pytest.skip(f"{name} is not installed: bash tests/run.sh does it")
        self._terminal, other = pty.openpty()
        # A long line would be broken.
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=cwd,
            env={**environ, "TERM": "xterm", "INPUTRC": "/dev/null"},
        )
        os.close(other)
        self._type(f"{function}\n{source.format(script)}\nsaid started\n")
        self._read_until(r"\[started\]")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def complete(self, line: str) -> list[str]:
        """Type a line, press TAB, and return the words that the line then has."""
        self._type(f"{line}{_TAB}{_BEGINNING}said \n")
        found = self._read_until(r"\[filestore\]((?:\[[^\]\n]*\])*)\r?\n")
        return re.findall(r"\[([^\]]*)\]", found)

    def _type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _read_until(self, pattern: str) -> str:
        said = ""
        while True:
            if not select.select([self._terminal], [], [], _SECONDS)[0]:
                raise AssertionError(f"the shell said only {said!r}")
            said += os.read(self._terminal, 65536).decode(errors="replace")
            if found := re.search(pattern, said):
                return found[1] if found.groups() else ""
