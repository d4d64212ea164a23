"""Run the unmodified Pipeline SDK in environments that `tests/run.sh` makes. filestore is installed there too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support.commands import Home, Server, scripts_of

VERSIONS = ["sdk1", "sdk2"]


class Sdk:
    """A version of the SDK, and a user of it with a server's URL, slash included, and a token."""

    def __init__(self, version: str, home: Home, server: Server) -> None:
        self.version = version
        self.scripts = scripts_of(f".venv-{version}-last")
        self.home = home
        self.server = server

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables of the SDK and of filestore."""
        path = f"{self.scripts}:{os.environ['PATH']}"
        return {
            "PATH": path,
            "PIPELINE_API_URL": f"{self.server.url}/",
            "PIPELINE_API_TOKEN": self.server.token,
            **self.server.environ,
        }

    def pipeline(self, *arguments: str | Path, environ: dict[str, str] | None = None) -> str:
        """Return all output of a command of the SDK. It must succeed."""
        done = self.home.run(*arguments, program=self.scripts / "pipeline", environ=self.environ | (environ or {}))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def refusal(self, *arguments: str | Path, environ: dict[str, str] | None = None) -> str:
        """Return all output of a command of the SDK. It must fail."""
        done = self.home.run(*arguments, program=self.scripts / "pipeline", environ=self.environ | (environ or {}))
        assert done.returncode != 0
        return done.stdout + done.stderr

    def python(self, program: str, *arguments: str | Path) -> Any:
        """Run a program in the environment of the SDK; return the JSON that it prints last."""
        done = self.home.run("-c", program, *arguments, program=self.scripts / "python", environ=self.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])
