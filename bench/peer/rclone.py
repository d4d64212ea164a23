"""rclone over WebDAV, which checks no digests."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.peer.base import Peer
from bench.run import Command, Service, free_port


def serve_by_rclone(peer: Peer, protocol: str) -> int:
    """Start rclone as a server of a peer's store; return the port."""
    port = free_port()
    command: list[str | Path] = ["rclone", "serve", protocol, "--config", "/dev/null", "--addr", f"127.0.0.1:{port}", peer.store]
    peer.services.append(Service(Command(command), log=peer.folder / "rclone.log", port=port))
    return port


class Rclone(Peer):
    """`rclone copy` to and from `rclone serve webdav`. It recognises stored files by size and time."""

    name = "rclone over WebDAV"
    programs: ClassVar = {"rclone": "rclone"}

    def start(self) -> None:
        super().start()
        port = serve_by_rclone(self, "webdav")
        self._remote = f":webdav,url='http://127.0.0.1:{port}',vendor=other:"

    def forget(self, name: str) -> None:
        (self.store / name).unlink(missing_ok=True)

    def push(self, path: Path) -> Command:
        return self._copy("copyto", str(path), self._remote + path.name)

    def push_again(self, _path: Path) -> Command | None:
        """Return None, because it never reads a file that it takes for stored."""
        return None

    def push_known(self, path: Path) -> Command:
        return self.push(path)

    def fetch(self, name: str, folder: Path) -> Command:
        return self._copy("copyto", self._remote + name, str(folder / name))

    def push_tree(self, tree: Path) -> Command:
        return self._copy("copy", str(tree), self._remote + tree.name)

    def fetch_tree(self, name: str, folder: Path) -> Command:
        return self._copy("copy", self._remote + name, str(folder / name))

    def _copy(self, verb: str, source: str, target: str) -> Command:
        return Command(["rclone", verb, "--config", "/dev/null", "--log-level", "ERROR", source, target])
