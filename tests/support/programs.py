"""Run the command line of an earlier commit, with the libraries of this environment.

`tests/golden/programs/` has the code of a commit for each schema version of the index. An archive is made once, and then
not again, because it is a witness of what users run:

    git archive COMMIT filestore cli/filestore_cli | xz -9e > tests/golden/programs/COMMIT.tar.xz
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.commands import REPOSITORY, Home, Server

ARCHIVES = REPOSITORY / "tests/golden/programs"
_START = """
import importlib.util, sys

name = "start" if importlib.util.find_spec("filestore_cli.start") else "main"
sys.argv[0] = "filestore"
importlib.import_module(f"filestore_cli.{name}").main()
"""


class Program:
    """The command `filestore` of one commit."""

    def __init__(self, commit: str, folder: Path) -> None:
        """Unpack the archive of the commit into the new folder `folder`."""
        self.commit = commit
        with tarfile.open(ARCHIVES / f"{commit}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        start = folder / "start.py"
        start.write_text(_START)
        # Processes that the command starts must run the same code.
        self.environ = {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "cli")]), "PYTHONDONTWRITEBYTECODE": "1"}
        self.command: tuple[str | Path, ...] = (sys.executable, start)

    def run(
        self, home: Home, *arguments: str | Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of a user to its end."""
        first, *rest = self.command
        return home.run(*rest, *arguments, program=first, environ=self.environ | dict(environ or {}))

    def local_server(self, home: Home) -> AbstractContextManager[Server]:
        """Serve the default folder of a user, as `Home.local_server` does."""
        return home.typed_server([*self.command, "serve", "--port", "0"], environ=self.environ)
