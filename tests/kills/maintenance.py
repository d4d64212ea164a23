"""Collect, check, repair, back up, measure and list a folder that is in use, and kill these commands."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

from filestore.core.digest import chunk_digest
from filestore.core.paths import chunk_key
from filestore.format.codec import HEADER_SIZE, Codec, Encoder
from tests.kills.harness import Actor, PlannedKill, around, plan_of
from tests.kills.model import Content, check_bytes

GRACE = "1s"
_FIRST_NUMBER = 1_000_000
"""The contents of files that are damaged have numbers from here on, which no user has."""
COLLECT_STEPS = around("begin index", "commit index", "unlink chunks", "unlink manifests", "rmdir chunks", "rmdir manifests")
REPAIR_STEPS = around("begin index", "commit index", "mkdir damaged", "rename damaged", "rename chunks")
BACKUP_STEPS = around(
    "rename backup filestore-backup",
    "create backup backups",
    "begin backup backups",
    "commit backup backups",
    "create backup staging",
    "write backup staging",
    "sync backup staging",
    "rename backup chunks",
    "sync backup chunks",
    "rename backup manifests",
    "sync backup manifests",
    "sync backup backups",
    "rename backup backups",
)
READERS: dict[str, tuple[str, ...]] = {
    "token ls": ("token", "ls"),
    "ls on the folder": ("ls", "--limit", "1000"),
    "check": ("check",),
    "check --read-data": ("check", "--read-data", "1/3"),
    "du": ("du",),
}
"""Commands that change nothing. They are killed at random moments."""


def collector_plan(random_count: int) -> list[PlannedKill]:
    """Return the plan of the collector."""
    return plan_of("gc", *COLLECT_STEPS, random_count=random_count)


def keeper_plan(random_count: int) -> list[PlannedKill]:
    """Return the plan of the one who checks, repairs and backs up."""
    plan = plan_of("check --repair", *REPAIR_STEPS, random_count=random_count)
    plan += plan_of("backup", *BACKUP_STEPS, random_count=random_count)
    for reader in READERS:
        plan += plan_of(reader, random_count=random_count)
    return plan


class Collector(Actor):
    """Runs `gc` with a grace period of a second again and again."""

    def act(self) -> None:
        """Collect once."""
        self.command("gc", "gc", "--grace", GRACE, "--root", self.trial.root, "--json")


class Keeper(Actor):
    """Checks, repairs, backs up, measures and lists the folder."""

    _number = 0

    def act(self) -> None:
        """Do what the plan has next."""
        wanted = self.next_command() or self.random.choice(sorted(READERS))
        if wanted == "check --repair":
            self._repair()
        elif wanted == "backup":
            self._back_up()
        else:
            self._read(wanted)

    def _read(self, which: str) -> None:
        outcome = self.command(which, *READERS[which], *self._where(which), "--json")
        if not outcome.was_killed and which.startswith("check") and outcome.result["damage_count"]:
            raise AssertionError(f"damage was found: {outcome.output}")

    def _where(self, which: str) -> tuple[str, Path]:
        return ("--root" if which.startswith(("token", "check")) else "--url"), self.trial.root

    def _repair(self) -> None:
        """Repair after a disk has damaged the frame of a file, and frames that nobody needs have no rows."""
        self._number += 1
        content = Content(self.trial.seed, (), number=_FIRST_NUMBER + self._number)
        path, target = self.trial.folder / "good-copy", self.trial.folder / "out" / "repaired"
        path.write_bytes(content.data)
        url = ("--url", self.trial.root)
        file_id = self.command("push of a file that is damaged", "push", path, *url, "--json").result["id"]
        os.truncate(self.trial.root / chunk_key("default", chunk_digest(content.data)), 100)
        for is_intact in (True, False):
            plant_frame(self.trial.root, self.random, is_intact=is_intact)
        repair = ("check", "--repair", "--from", path, "--root", self.trial.root, "--json")
        while self.command("check --repair", *repair).was_killed:
            pass
        self.command("fetch of a file that was repaired", "fetch", file_id, "-o", target, "--force", *url)
        check_bytes(target, content, file_id)
        self.command("rm of a file that was repaired", "rm", file_id, *url)
        shutil.rmtree(self.trial.root / "damaged", ignore_errors=True)

    def _back_up(self) -> None:
        """Back up, sometimes into a new folder."""
        target = self.trial.folder / "backup"
        if self.random.random() < 0.3:
            shutil.rmtree(target, ignore_errors=True)
        while True:
            outcome = self.command("backup", "backup", target, "--full", "--keep", "2", "--root", self.trial.root, "--json")
            if not outcome.was_killed:
                break
        if left := [path.name for path in (target / "backups").iterdir() if path.name.startswith(".")]:
            raise AssertionError(f"a backup after a kill left {left} in {target}")


def plant_frame(root: Path, chance: random.Random, *, is_intact: bool) -> None:
    """Add a frame without a row, as a lost part of an index leaves, or something else under the name of a frame."""
    content = chance.randbytes(2000)
    path = root / chunk_key("default", chunk_digest(content))
    out = bytearray(len(content) + HEADER_SIZE)
    size = Encoder(codec=Codec.RAW).encode(memoryview(content), memoryview(out))
    staging = root.parent / "planted"
    staging.write_bytes(out[:size] if is_intact else content)
    while staging.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A collection may remove the folder while it is empty.
        with suppress(FileNotFoundError):
            staging.rename(path)
