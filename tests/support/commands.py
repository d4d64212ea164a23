"""Run commands and servers as a user does: as real processes, with a home folder of their own."""

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
from tests.support.fork_server import Program, run_program

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
_REPORT = re.compile(r"\S+ \S+ \d+ INFO ")
"""The beginning of a line in the log of a server that only tells what it did."""
TRANSFERS = frozenset({"copy", "create", "diff", "fetch", "push", "sync", "warm"})
"""Commands that show their progress on standard error if they take longer than a second."""
_SECONDS = 100
"""How long a command, or the stop of a server, may take on a machine that does much else."""
_PROGRESS = re.compile(r"^(?:push|fetch|copy|sync|look at|hash|check) [^\n]*: [^\n]*\n", re.MULTILINE)
AS_ANY_USER: tuple[str, ...] = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""Makes permissions apply to a command that root runs, as they do to any other user."""


def scripts_of(environment: str) -> Path:
    """Return the folder of scripts of a virtual environment that `tests/run.sh` makes. CI always has it."""
    folder = REPOSITORY / environment / "bin"
    if not folder.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{environment} is not there: bash tests/run.sh makes it")
    assert folder.exists()
    return folder


def notes(done: subprocess.CompletedProcess[str]) -> str:
    """Return the standard error of a command without the lines of progress, which it has on a busy machine."""
    return _PROGRESS.sub("", done.stderr)


def start_module(module: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a module of these tests as a process, with both outputs as pipes."""
    return Program(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=env,
    )


class Server(NamedTuple):
    """A server process that accepts connections."""

    url: str
    root: Path
    said: str
    """All output until that moment."""
    process: subprocess.Popen[str]

    @property
    def token(self) -> str:
        """The token that its first start printed."""
        found = re.search(r"export FILESTORE_TOKEN=(\S+)", self.said)
        assert found is not None
        return found[1]

    @property
    def environ(self) -> dict[str, str]:
        """The variables that its output said to export."""
        return {"FILESTORE_URL": self.url, "FILESTORE_TOKEN": self.token}


class Home:
    """A user's home folder. Commands see nothing else of the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        # By this, processes that tests start are measured too, where tests/coverage.sh runs.
        self.environ |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

    @property
    def data(self) -> Path:
        """The local folder that commands use by default."""
        return self.folder / ".local/share/filestore"

    def create_repository(self, folder: Path | None = None) -> None:
        """Make a folder a repository, by default the local one, as `--create` and the first start of a server do."""
        # Run it in a thread, because the test may have a running event loop.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, create_repository(folder or self.data)).result()

    @property
    def config_file(self) -> Path:
        """The path of the configuration file, in a folder that exists."""
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
        variables = self.environ | dict(environ or {})
        return run_program([program, *arguments], env=variables, cwd=cwd or self.folder, timeout=_SECONDS)

    def result(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None, warns: bool = False
    ) -> Any:
        """Return the object that a command prints with --json. The command must succeed and print nothing else.

        With `warns`, it prints one warning.
        """
        # After a `--` it would be an argument.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        done = self.run(*arguments[:end], "--json", *arguments[end:], environ=environ, cwd=cwd)
        assert 0 == done.returncode, done.stderr
        assert done.stderr.startswith("Warning: ") if warns else done.stderr == "", done.stderr
        assert done.stderr.count("\n") == warns, done.stderr
        return json.loads(done.stdout)

    def failure(self, *arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Return the sentence in which a command explains its failure. It must be the only output.

        A transfer runs quietly, because on a busy machine it would show its progress before it fails.
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
        """Serve `root` by `command` on a free port until the end of the block. `root` is made if it is absent.

        The server must then stop on a signal, unless the block has killed it. It must have written nothing to standard
        error, except what it reports at the level INFO; or something if it `complains`, or either if that is None.
        """
        served: list[str | Path] = [*command, "--root", root, "--create", "--port", "0", *arguments]
        with self._serving(served, root=root, environ=environ, complains=complains, is_killed=is_killed) as server:
            yield server

    @contextmanager
    def local_server(self) -> Iterator[Server]:
        """Serve the default folder, as `server` does."""
        served: list[str | Path] = [SCRIPTS / "filestore", "serve", "--port", "0"]
        with self._serving(served, root=self.data, environ=None, complains=False, is_killed=False) as server:
            yield server

    @contextmanager
    def typed_server(self, command: Sequence[str | Path], *, environ: Mapping[str, str]) -> Iterator[Server]:
        """Serve the default folder by a whole command, as `server` does."""
        with self._serving(command, root=self.data, environ=environ, complains=False, is_killed=False) as server:
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
        process = Program(
            command,
            env=self.environ | dict(environ or {}),
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
            _, errors = process.communicate(timeout=_SECONDS)
            complaints = [line for line in errors.splitlines() if _REPORT.match(line) is None]
            assert (process.returncode, bool(complaints)) == (0, bool(complaints) if complains is None else complains), errors
        finally:
            process.kill()
            process.communicate()
