"""The trial of servers and commands: who works on the repository, and what must be true at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.kills.harness import Trial
from tests.kills.maintenance import Collector, Keeper, collector_plan, keeper_plan
from tests.kills.model import Model, check_bytes
from tests.kills.servers import ServerKiller
from tests.kills.transfers import User, plan_by_server, plan_in_folder
from tests.support.soak import needed_and_found


def run_servers_and_commands(folder: Path, *, seed: int, workers: int, random_count: int, seconds: float = 0.0) -> Trial:
    """Kill servers with so many workers, clients, the collector and ordinary commands on one folder.

    `folder` is new or empty. Each command is killed at all of its steps, and so many times at random.
    """
    folder.mkdir(exist_ok=True)
    options = f"--seed {seed} --workers {workers} --random {random_count} --seconds {seconds:g}"
    trial = Trial(folder, seed=seed, seconds=seconds, repeat=f"python -m tests.kills {options} FOLDER")
    model = Model()
    trial.home.create_repository(trial.root)
    server = ServerKiller(trial, "server", workers=workers, random_count=random_count)
    server.start()
    in_folder = {"FILESTORE_URL": str(trial.root)}
    actors = [
        server,
        User(trial, model, "remote", plan_by_server(random_count), how=" by HTTP", **server.environ),
        User(trial, model, "local", plan_in_folder(random_count), **in_folder),
        Collector(trial, "collector", collector_plan(random_count)),
        Keeper(trial, "keeper", keeper_plan(random_count)),
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
