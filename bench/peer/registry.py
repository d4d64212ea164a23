"""A container registry stores blobs by their SHA-256, checked at both ends."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import ClassVar

from bench.peer.base import Peer, shell
from bench.run import Command, Service, free_port

_CONFIGURATION = """\
    version: 0.1
    log: {{level: error, accesslog: {{disabled: true}}}}
    storage: {{filesystem: {{rootdirectory: {store}}}}}
    http: {{addr: "127.0.0.1:{port}"}}
"""

_PUSH = """
    sum=$(sha256sum < "$1" | cut -d " " -f 1)
    echo "$sum" > "$3"
    curl -sSf -I -o /dev/null "$2/sha256:$sum" 2> /dev/null && exit
    place=$(curl -sSf -i -X POST "$2/uploads/" | tr -d '\\r' | sed -n 's/^Location: //Ip')
    curl -sSf -H "Content-Type: application/octet-stream" -T "$1" "$place&digest=sha256:$sum"
"""
_FETCH = """
    sum=$(cat "$3")
    curl -sSf -o "$2" "$1/sha256:$sum"
    test "$sum" = "$(sha256sum < "$2" | cut -d " " -f 1)"
"""


class Registry(Peer):
    """Debian's `docker-registry`, with curl and sha256sum as its client."""

    name = "docker-registry + sha256"
    checks = "yes"
    programs: ClassVar = {"docker-registry": "docker-registry", "curl": "curl", "sha256sum": "coreutils"}

    def start(self) -> None:
        super().start()
        port = free_port()
        self._blobs = f"http://127.0.0.1:{port}/v2/model/blobs"
        path = self.folder / "registry.yml"
        path.write_text(textwrap.dedent(_CONFIGURATION).format(store=self.store, port=port), encoding="utf-8")
        command = Command(["docker-registry", "serve", path])
        self.services.append(Service(command, log=self.folder / "registry.log", port=port))

    def push(self, path: Path) -> Command:
        return shell(_PUSH, path, self._blobs, self.folder / f"{path.name}.sha256")

    def fetch(self, name: str, folder: Path) -> Command:
        return shell(_FETCH, self._blobs, folder / name, self.folder / f"{name}.sha256")
