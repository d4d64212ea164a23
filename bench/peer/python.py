"""Clients that are Python packages, in an environment of their own that is made when it is first needed."""

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
    """The Python of the environment below `tools` that has `package`."""
    return tools / package / "bin" / "python"


def install(tools: Path, package: str) -> str | None:
    """Make the environment of `package` where it is not there; None, or how to install the package where that fails."""
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
    """Hugging Face's Xet client with the server inside: `local://`, a folder, no network."""

    name = "hf_xet, local"
    checks = "half"
    serves_many = False  # its database is locked by whoever opens it
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
    """`requests` with a multipart form, as the Pipeline SDK uploads, and `iter_content`, as it downloads; our server."""

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
