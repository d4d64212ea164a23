"""Clients that are Python packages run in an environment that is made when it is first needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from bench.peer.base import Archiver
from bench.peer.ours import Served
from bench.run import Command

_CLIENTS = Path(__file__).parent


def python_of(tools: Path, package: str) -> Path:
    """Return the Python of the environment below `tools` that has `package`."""
    return tools / package / "bin" / "python"


def install(tools: Path, package: str) -> str | None:
    """Make the environment of `package` if it is missing. Return None, or how to install the package if that fails."""
    folder = tools / package
    mark = folder / "ready"
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        command: list[str | Path] = [python_of(tools, package), "-m", "pip", "install", "--quiet", "--retries", "0", package]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            return f"pip install {package} fails"
        mark.touch()
    return None


class Xet(Archiver):
    """Hugging Face's Xet client, which includes the server: `local://`, a folder, no network."""

    name = "hf_xet, local"
    checks = "half"
    serves_many = False  # each process that opens its database locks it
    package: ClassVar[str] = "hf_xet==1.8.0"

    @classmethod
    def prepare(cls, tools: Path) -> str | None:
        return install(tools, cls.package)

    def start(self) -> None:
        super().start()
        self._python = python_of(self.tools, self.package)
        self._environment = {"HF_HOME": str(self.folder / "home"), "HF_XET_SHARD_CACHE_SIZE_LIMIT": "0"}

    def push(self, path: Path) -> Command:
        return self._command("push", path, self.folder / f"{path.name}.json")

    def fetch(self, name: str, folder: Path) -> Command:
        return self._command("fetch", self.folder / f"{name}.json", folder)

    def _command(self, *arguments: str | Path) -> Command:
        return Command([self._python, _CLIENTS / "xet_client.py", f"local://{self.store}", *arguments], self._environment)


class Sdk(Served):
    """`requests` as the Pipeline SDK uses it, with filestore's server: a multipart form, and `iter_content`."""

    name = "requests multipart + filestore"
    checks = "half"
    package: ClassVar[str] = "requests"

    @classmethod
    def prepare(cls, tools: Path) -> str | None:
        return install(tools, cls.package)

    def start(self) -> None:
        super().start()
        self._python = python_of(self.tools, self.package)

    def push(self, path: Path) -> Command:
        return self._client("push", path, self.folder / f"{path.name}.json")

    def fetch(self, name: str, folder: Path) -> Command:
        path = str(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))["path"]).lstrip("/")
        return self._client("fetch", path, folder / name)

    def _client(self, *arguments: str | Path) -> Command:
        return Command([self._python, _CLIENTS / "requests_client.py", self.url, *arguments], self.environment)
