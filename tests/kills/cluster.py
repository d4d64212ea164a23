"""The trial of several servers that share an object store and a database: servers, users, collectors and engines are killed.

Each server is a process as on a host of its own: it has a folder of its own for what it receives. Users send each command to any
of them, so what one server has begun, another one goes on with. All servers collect, and a collector does so beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.kills.forking import Outcome, Running
from tests.kills.harness import Actor, PlannedKill, Trial, around, never, plan_of
from tests.kills.maintenance import GRACE
from tests.kills.model import Model, check_bytes
from tests.kills.servers import TOKEN, WORK, ServerKiller
from tests.kills.transfers import User
from tests.support.ceph import Bucket, running_gateway_server
from tests.support.object_repositories import object_repository, sweep
from tests.support.postgres import running_postgres
from tests.support.soak import needed_and_found_in

SERVERS = 3
PREFIX = "kills"
WORK_STEPS = around("put object", "commit rows", "delete objects")
COLLECT_STEPS = around("commit rows", "delete objects")
ENGINE_SECONDS = 3.0
"""How long an engine lives on average, until it was killed as often as planned."""
_USERS = 2


@dataclass(frozen=True, slots=True)
class Engines:
    """Where the content and the rows are."""

    bucket: Bucket
    index_url: str

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a process that uses them."""
        return {**self.bucket.environ, "FILESTORE_STORE": self.store_url, "FILESTORE_INDEX": self.index_url}

    @property
    def store_url(self) -> str:
        """The URL of the object store."""
        return self.bucket.location(PREFIX)


def cluster_plan(random_count: int) -> list[PlannedKill]:
    """Return the plan for each of the servers."""
    return plan_of(WORK, *WORK_STEPS, random_count=random_count)


def met_no_engine(trial: Trial, outcome: Outcome) -> bool:
    """Whether a process found the database or the gateway killed. It says so in one sentence."""
    found = any(text in outcome.error for text in (" is busy: ", "the database cannot be reached"))
    if found:
        trial.note("processes that met no engine")
    return found


def user_plan(random_count: int) -> list[PlannedKill]:
    """Return the plan for each of the users."""
    return [
        planned for command in ("push", "fetch", "rm") for planned in plan_of(f"{command} by HTTP", random_count=random_count)
    ]


class ClusterServer(ServerKiller):
    """Runs one of the servers."""

    def __init__(self, trial: Trial, name: str, plan: Sequence[PlannedKill], engines: Engines) -> None:
        super().__init__(trial, name, plan, workers=1, **engines.environ)

    @property
    def url(self) -> str:
        """Where it listens, again after each kill."""
        return self.environ["FILESTORE_URL"]

    def _may_not_start(self, outcome: Outcome) -> bool:
        return super()._may_not_start(outcome) or met_no_engine(self.trial, outcome)

    def _begin(self) -> Running:
        arguments = ("--root", self.trial.folder / self.name, "--create", "--port", str(self._port), "--workers", "1")
        return self.forker.start("serve", *arguments, "--gc-grace", GRACE, environ={"FILESTORE_TOKEN": TOKEN})


class ClusterUser(User):
    """Sends each command to one of the servers. The next try of a command may go to another one."""

    def __init__(
        self, trial: Trial, model: Model, name: str, plan: Sequence[PlannedKill], servers: Sequence[ClusterServer]
    ) -> None:
        super().__init__(trial, model, name, plan, how=" by HTTP", **servers[0].environ)
        self._urls = [server.url for server in servers]

    def command(self, command: str, *arguments: str | Path, may_fail: Callable[[Outcome], bool] = never) -> Outcome:
        return super().command(command, *arguments, "--url", self.random.choice(self._urls), may_fail=may_fail)


class ClusterCollector(Actor):
    """Collects beside the servers."""

    def act(self) -> None:
        """Collect once."""
        self.command("gc", "gc", "--grace", GRACE, "--json", may_fail=partial(met_no_engine, self.trial))


class Engine(Protocol):
    """A database or a gateway that is running."""

    def kill(self) -> None:
        """Kill it with all that it does."""

    def start(self) -> None:
        """Start it again. Return once it answers."""


class EngineKiller(Actor):
    """Kills an engine and starts it again."""

    def __init__(self, trial: Trial, name: str, random_count: int, engine: Engine) -> None:
        super().__init__(trial, name, plan_of(name, random_count=random_count))
        self._engine = engine

    def act(self) -> None:
        """Kill it at a random moment."""
        if not self._todo:
            return
        self.trial.stopping.wait(self.random.uniform(0, 2 * ENGINE_SECONDS))
        self._engine.kill()
        self._engine.start()
        self.happened(self._todo[0], did=True)


def run_cluster(folder: Path, *, seed: int, random_count: int, seconds: float = 0.0) -> Trial:
    """Kill servers that share an object store and a database. `folder` is new."""
    folder.mkdir()
    repeat = f"python -m tests.kills --only cluster --seed {seed} --random {random_count} --seconds {seconds:g} FOLDER"
    trial = Trial(folder, seed=seed, seconds=seconds, repeat=repeat)
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres())
        gateway = stack.enter_context(running_gateway_server())
        engines = Engines(gateway.gateway.new_bucket(), database.postgres.new_database())
        model = Model()
        servers = [ClusterServer(trial, f"server-{number}", cluster_plan(random_count), engines) for number in range(SERVERS)]
        for server in servers:
            server.start()
        actors = [
            *servers,
            *(ClusterUser(trial, model, f"user-{number}", user_plan(random_count), servers) for number in range(_USERS)),
            ClusterCollector(trial, "collector", plan_of("gc", *COLLECT_STEPS, random_count=random_count), **engines.environ),
            EngineKiller(trial, "database", random_count, database),
            EngineKiller(trial, "gateway", random_count, gateway),
        ]
        trial.run(actors)
        if not trial.failures:
            _check_end(trial, model, engines)
    return trial


def _check_end(trial: Trial, model: Model, engines: Engines) -> None:
    """Everything acknowledged is there, nothing else is listed, and only what records need is left."""
    home, environ = trial.home, engines.environ
    listed = {each["id"] for each in home.result("ls", "--limit", "100000", environ=environ)["files"]}
    kept = model.kept
    if listed != set(kept):
        trial.fail(f"lost: {sorted(set(kept) - listed)}; listed and not acknowledged, or removed: {sorted(listed - set(kept))}")
    for file_id, content in kept.items():
        target = trial.folder / "out" / file_id
        home.result("fetch", file_id, "-o", target, environ=environ)
        check_bytes(target, content, file_id)
        target.unlink()
    home.result("gc", "--grace", "0s", environ=environ)
    checked = home.run("check", "--read-data", environ=environ)
    if checked.returncode:
        trial.fail(f"check found damage: {checked.stdout}{checked.stderr}")
    needed, found = asyncio.run(_needed_and_found(trial.folder / "end", engines))
    if needed != found:
        trial.fail(f"{len(needed - found)} frames are lost, and {len(found - needed)} were not removed")
    trial.note("files at the end", len(kept))


async def _needed_and_found(folder: Path, engines: Engines) -> tuple[set[str], set[str]]:
    """Remove what killed servers have left without a row. Return the chunks that records need, and those that are there."""
    async with object_repository(engines.bucket, engines.index_url, folder, prefix=PREFIX) as repository:
        await sweep(repository)
        needed, _ = await needed_and_found_in(repository._store, repository._index)
    keys = engines.bucket.list_keys(f"{PREFIX}/frames/")
    return {str(digest) for digest in needed}, {key.rpartition("/")[2].partition(".")[0] for key in keys}
