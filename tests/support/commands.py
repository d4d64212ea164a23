"""Commands and servers as a user runs them: real processes, in a home of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filestore.backends import create_repository

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
TRANSFERS = frozenset({"push", "fetch", "warm", "create"})
"""Commands that tell on the standard error how far they are, where they take longer than a second."""
AS_ANY_USER: tuple[str, ...] = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""What makes permissions count in a command, as they do for any user but root."""


def scripts_of(environment: str) -> Path:
    """The console scripts of a virtual environment that `tests/run.sh` makes; there is no CI without it."""
    folder = REPOSITORY / environment / "bin"
    if not folder.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{environment} is not there: bash tests/run.sh makes it")
    assert folder.exists()
    return folder


def start_module(module: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A module of these tests as a process of its own, both of whose outputs are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Server(NamedTuple):
    """A server process that accepts connections."""

    url: str
    root: Path
    said: str
    """All that it printed until then."""
    process: subprocess.Popen[str]

    @property
    def token(self) -> str:
        """The token that its first start printed."""
        found = re.search(r"export FILESTORE_TOKEN=(\S+)", self.said)
        assert found is not None
        return found[1]

    @property
    def environ(self) -> dict[str, str]:
        """What it said to export."""
        return {"FILESTORE_URL": self.url, "FILESTORE_TOKEN": self.token}


class Home:
    """A user's home folder, and nothing else of the environment that tests run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        # By this, processes that tests start are measured too, where tests/coverage.sh runs.
        self.environ |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

    @property
    def data(self) -> Path:
        """The local folder that commands work on where nobody names another."""
        return self.folder / ".local/share/filestore"

    def create_repository(self, folder: Path | None = None) -> None:
        """Make a folder, by default the local one, a repository, as `--create` and the first start of a server do."""
        # In a thread, which has no event loop yet; that of a test may run already.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, create_repository(folder or self.data)).result()

    @property
    def config_file(self) -> Path:
        """The configuration file, whose folder is there."""
        path = self.folder / ".config/filestore/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(
        self,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        program: str | Path = SCRIPTS / "filestore",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [program, *arguments],
            env=self.environ | dict(environ or {}),
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )

    def result(self, *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Any:
        """The object that a command prints with --json; it must succeed, and print nothing else."""
        # Behind a `--`, it would be an argument.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        done = self.run(*arguments[:end], "--json", *arguments[end:], environ=environ, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    def failure(self, *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """The sentence in which a command explains why it failed, which must be all that it prints.

        A transfer is told to be quiet: on a busy machine it tells how far it is before it fails.
        """
        end = arguments.index("--") if "--" in arguments else len(arguments)
        is_transfer = arguments[0] in TRANSFERS or arguments[:2] == ("cache", "warm")
        quiet = ("--quiet",) if is_transfer and "--quiet" not in arguments else ()
        done = self.run(*arguments[:end], *quiet, *arguments[end:], environ=environ, cwd=cwd)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("Error: ").rstrip("\n")

    @contextmanager
    def server(
        self,
        *arguments: str | Path,
        root: Path,
        environ: Mapping[str, str] | None = None,
        complains: bool | None = False,
        is_killed: bool = False,
        command: Sequence[str | Path] = (SCRIPTS / "filestore", "serve"),
    ) -> Iterator[Server]:
        """Serve `root`, which is made where absent, by `command` on a free port until the end of the block.

        Then the server must stop when it is told to; one that the block kills need not. On standard error it must have said
        nothing, or something where it `complains`; None: either.
        """
        served: list[str | Path] = [*command, "--root", root, "--create", "--port", "0", *arguments]
        with self._serving(served, root=root, environ=environ, complains=complains, is_killed=is_killed) as server:
            yield server

    @contextmanager
    def local_server(self) -> Iterator[Server]:
        """Serve the local folder, which nobody names, as `server` does."""
        served: list[str | Path] = [SCRIPTS / "filestore", "serve", "--port", "0"]
        with self._serving(served, root=self.data, environ=None, complains=False, is_killed=False) as server:
            yield server

    @contextmanager
    def _serving(
        self,
        command: Sequence[str | Path],
        *,
        root: Path,
        environ: Mapping[str, str] | None,
        complains: bool | None,
        is_killed: bool,
    ) -> Iterator[Server]:
        process = subprocess.Popen(
            command,
            env=self.environ | dict(environ or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("listening on "):
                    break
            else:
                raise AssertionError(process.communicate()[1])
            yield Server(said[-1].removeprefix("listening on ").strip(), root, "".join(said), process)
            if is_killed:
                return
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            assert (process.returncode, bool(errors)) == (0, bool(errors) if complains is None else complains), errors
        finally:
            process.kill()
            process.communicate()
