"""The trial of servers and commands: who works on the repository, and what must be true at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kills.harness import PlannedKill, Trial, part_of
from tests.kills.maintenance import Collector, Keeper, collector_plan, keeper_plan
from tests.kills.model import Model, check_bytes
from tests.kills.servers import ServerKiller, server_plan
from tests.kills.transfers import User, plan_by_server, plan_in_folder
from tests.support.soak import needed_and_found


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a trial of servers and commands does."""

    seed: int
    workers: int
    """The number of worker processes of its server."""
    random_count: int = 2
    """How often each command is killed at a random moment, in addition to all steps."""
    half: int | None = None
    """0 and 1 are the two halves of all steps. None means all of them."""
    seconds: float = 0.0
    """How long it works at least."""

    @property
    def command(self) -> str:
        """The command that does the same."""
        half = "" if self.half is None else f"--half {self.half} "
        options = f"--seed {self.seed} --workers {self.workers} --random {self.random_count} {half}--seconds {self.seconds:g}"
        return f"python -m tests.kills {options} FOLDER"

    def planned(self, plan: Sequence[PlannedKill]) -> list[PlannedKill]:
        """Return the part of a plan that it does."""
        return list(plan) if self.half is None else part_of(plan, self.half, 2)


def run_servers_and_commands(folder: Path, options: Options) -> Trial:
    """Kill a server, its clients, the collector and ordinary commands on one folder, which is new."""
    folder.mkdir()
    trial = Trial(folder, seed=options.seed, seconds=options.seconds, repeat=options.command)
    model = Model()
    trial.home.create_repository(trial.root)
    count, planned = options.random_count, options.planned
    server = ServerKiller(trial, "server", planned(server_plan(options.workers, count)), workers=options.workers)
    server.start()
    actors = [
        server,
        User(trial, model, "remote", planned(plan_by_server(count)), how=" by HTTP", **server.environ),
        User(trial, model, "local", planned(plan_in_folder(count)), FILESTORE_URL=str(trial.root)),
        Collector(trial, "collector", planned(collector_plan(count))),
        Keeper(trial, "keeper", planned(keeper_plan(count))),
    ]
    trial.run(actors)
    if not trial.failures:
        _check_end(trial, model)
    return trial


def _check_end(trial: Trial, model: Model) -> None:
    """Everything acknowledged is there, nothing else is listed, and a collection leaves only what records need."""
    home, root = trial.home, trial.root
    listed = {each["id"] for each in home.result("ls", "--limit", "100000", "--url", root)["files"]}
    kept = model.kept
    if listed != set(kept):
        trial.fail(f"lost: {sorted(set(kept) - listed)}; listed and not acknowledged, or removed: {sorted(listed - set(kept))}")
    for file_id, content in kept.items():
        target = trial.folder / "out" / file_id
        home.result("fetch", file_id, "-o", target, "--url", root)
        check_bytes(target, content, file_id)
        target.unlink()
    home.result("gc", "--grace", "0s", "--root", root)
    checked = home.run("check", "--read-data", "--root", root)
    if checked.returncode:
        trial.fail(f"check found damage: {checked.stdout}{checked.stderr}")
    needed, found = asyncio.run(needed_and_found(root))
    if needed != found:
        trial.fail(f"{len(needed - found)} frames are lost, and {len(found - needed)} were not removed")
    if left := [str(path) for path in root.glob("tmp/**/*")]:
        trial.fail(f"staging is left: {left}")
    trial.note("files at the end", len(kept))
