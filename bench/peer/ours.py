"""filestore with its own clients, and other clients with its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from bench.peer.base import Peer, shell
from bench.run import FILESTORE, TOKEN, Command, Service, start_server

_HEADER = f"Authorization: Bearer {TOKEN}"


class Served(Peer):
    """The filestore server."""

    workers: ClassVar[int] = 1
    codec: ClassVar[str] = "auto"

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        server = start_server(self.store, workers=self.workers)
        self.url = server.url
        self.services: list[Service] = [server.service]
        self.environment = {
            **server.environment,
            "FILESTORE_CODEC": self.codec,
            "FILESTORE_PUSH_CACHE": str(self.folder / "journal.sqlite"),
        }


class Filestore(Served):
    """push and fetch, with the default codec."""

    name = "filestore"
    checks = "yes"

    def push(self, path: Path) -> Command:
        return self._command("push", path)

    def push_again(self, path: Path) -> Command:
        return self._command("push", "--rehash", path)

    def push_known(self, path: Path) -> Command:
        return self._command("push", path)

    def fetch(self, name: str, folder: Path) -> Command:
        return self._command("fetch", name, "-o", folder / name)

    def push_tree(self, tree: Path) -> Command:
        return self._command("push", tree)

    def fetch_tree(self, name: str, folder: Path) -> Command:
        return self._command("fetch", f"{name}.zip", "-o", folder / name)

    def _command(self, *arguments: str | Path) -> Command:
        return Command([*FILESTORE, *arguments, "--json"], self.environment)


class FilestoreRaw(Filestore):
    """push and fetch without encoding."""

    name = "filestore --codec raw"
    codec = "raw"


class CurlFilestore(Served):
    """curl with the filestore server: the form, and the plain GET."""

    name = "curl + filestore"
    checks = "half"
    programs: ClassVar = {"curl": "curl", "zip": "zip", "unzip": "unzip"}

    def push(self, path: Path) -> Command:
        # The answer has the path at which the file can be read.
        script = 'curl -sSf -H "$3" -F "pfile=@$1" "$2" > "$4"'
        return shell(script, path, f"{self.url}/v3/pipeline_files", _HEADER, self._answer(path.name))

    def fetch(self, name: str, folder: Path) -> Command:
        path = self._path_of(name)
        return Command(["curl", "-sSf", "-H", _HEADER, "-o", folder / name, f"{self.url}/{path}"])

    def push_tree(self, tree: Path) -> Command:
        script = """
            cd "$1" && zip -q -r -0 "$2" "$3"
            curl -sSf -H "$5" -F "pfile=@$2" "$4" > "$6"
        """
        archive = self.folder / f"{tree.name}.zip"
        url = f"{self.url}/v3/pipeline_files"
        return shell(script, tree.parent, archive, tree.name, url, _HEADER, self._answer(f"{tree.name}.zip"))

    def fetch_tree(self, name: str, folder: Path) -> Command:
        script = 'curl -sSf -H "$3" -o "$2/tree.zip" "$1" && unzip -q "$2/tree.zip" -d "$2"'
        return shell(script, f"{self.url}/{self._path_of(f'{name}.zip')}", folder, _HEADER)

    def _answer(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _path_of(self, name: str) -> str:
        return str(json.loads(self._answer(name).read_text(encoding="utf-8"))["path"]).lstrip("/")
