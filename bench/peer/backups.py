"""Backup programs that cut, deduplicate and verify."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import ClassVar

from bench.peer.base import Archiver
from bench.peer.rclone import serve_by_rclone
from bench.run import Command, run


class Borg(Archiver):
    """borg with a repository in a local folder: no network, no server. Not encrypted; compressed with the default."""

    name = "borg, local"
    checks = "yes"
    programs: ClassVar = {"borg": "borgbackup"}

    def start(self) -> None:
        super().start()
        self.environment = {
            "BORG_BASE_DIR": str(self.folder / "base"),
            "BORG_REPO": str(self.store),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._places = count()
        run(["borg", "init", "-e", "none"], environment=self.environment)

    def push(self, path: Path) -> Command:
        return self._create(f"::{path.name}", path)

    def push_again(self, path: Path) -> Command:
        return self._create(f"::{path.name}-{next(self._places)}", path, "--files-cache=disabled")

    def push_known(self, path: Path) -> Command:
        return self._create(f"::{path.name}-{next(self._places)}", path)

    def fetch(self, name: str, folder: Path) -> Command:
        return Command(["borg", "extract", "--bypass-lock", f"::{name}"], self.environment, folder)

    def _create(self, archive: str, path: Path, *options: str) -> Command:
        return Command(["borg", "create", *options, archive, path.name], self.environment, path.parent)


class Restic(Archiver):
    """restic over HTTP, to `rclone serve restic`; always encrypted."""

    name = "restic + rclone serve"
    checks = "yes"
    programs: ClassVar = {"restic": "restic", "rclone": "rclone"}

    def start(self) -> None:
        super().start()
        port = serve_by_rclone(self, "restic")
        self.environment = {
            "RESTIC_REPOSITORY": f"rest:http://127.0.0.1:{port}/",
            "RESTIC_PASSWORD": "on loopback only",
            "RESTIC_CACHE_DIR": str(self.folder / "cache"),
        }
        run(["restic", "init"], environment=self.environment)

    def push(self, path: Path) -> Command:
        return self._backup(path)

    def push_again(self, path: Path) -> Command:
        return self._backup(path, "--force")

    def push_known(self, path: Path) -> Command:
        return self._backup(path)

    def fetch(self, name: str, folder: Path) -> Command:
        return Command(["restic", "restore", "latest", "--tag", name, "--target", folder], self.environment)

    def _backup(self, path: Path, *options: str) -> Command:
        return Command(["restic", "backup", "--tag", path.name, *options, path.name], self.environment, path.parent)
