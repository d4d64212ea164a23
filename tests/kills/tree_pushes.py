"""Kill pushes of a directory, one in each round, and check the source, the push cache and what is left in the repository.

The directory changes a little before each round. It is pushed to a server or to its folder, with a push cache. After the
kill, the directory is unchanged; a push cache that knows the push means that the repository has all of its chunks; and a
collection leaves exactly the chunks that records need, and no staging. The next push completes, and gives the same tree.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect
from filestore.core.digest import Digest
from filestore.core.references import Reference
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from tests.kills.children import Channel, Child, Work, command
from tests.kills.harness import Trial
from tests.kills.moments import Moment, arm, arm_calls
from tests.kills.tree_model import things
from tests.support.server import TOKEN, RunningServer, eventually
from tests.support.soak import needed_and_found
from tests.support.trees import plant, standing

_PUSH = "filestore.transfer.push:"
_CACHE = "filestore.transfer.sources.push_cache:PushCache."
_ATTEMPTS = 3
MOMENTS = (
    Moment("before the directory is walked", f"{_PUSH}walk"),
    Moment("after the directory is walked", f"{_PUSH}walk", is_after=True),
    Moment("after a window is hashed", f"{_PUSH}_hash", is_after=True),
    Moment("before chunks are sent", f"{_PUSH}_Sender._send_chunks"),
    Moment("after chunks are sent", f"{_PUSH}_Sender._send_chunks", is_after=True),
    Moment("before the commit", f"{_PUSH}_commit"),
    Moment("after the commit", f"{_PUSH}_commit", is_after=True),
    Moment("before the push cache is written", f"{_CACHE}record"),
    Moment("after the push cache is written", f"{_CACHE}record", is_after=True),
)


class Plan(NamedTuple):
    """Which push is killed in one round, and when."""

    way: str
    """`server` or `folder`."""
    moment: Moment | None
    """None means at random."""

    @property
    def step(self) -> str | None:
        """The name of the moment in the figures."""
        return None if self.moment is None else self.moment.name


def plans(random_count: int) -> list[Plan]:
    """Return each named moment once, and both ways so many times at random."""
    named = [Plan("folder" if number % 3 == 2 else "server", moment) for number, moment in enumerate(MOMENTS)]
    return named + [Plan(way, None) for way in ("server", "folder")] * random_count


class PushKills:
    """A directory that is pushed again and again, and one round after the other."""

    def __init__(self, server: RunningServer, trial: Trial) -> None:
        self._server = server
        self._trial = trial
        self._random = trial.random("pushes")
        self._source = plant(trial.folder / "pushed", things(2))
        self._push_cache = trial.folder / "push-cache.sqlite"
        self._started = 0

    def kill_each(self, plans: list[Plan]) -> None:
        """Do the rounds of all plans, in an order by chance, until a rule is broken."""
        for plan in self._random.sample(plans, len(plans)):
            if not any(self.round(plan) for _ in range(_ATTEMPTS)) and plan.moment is not None:
                self._trial.fail(f"a push ({plan.way}) did not come to the moment `{plan.step}` in {_ATTEMPTS} rounds")
            if self._trial.failures:
                return

    def round(self, plan: Plan) -> bool:
        """Kill one push and check everything. Return whether it came to its moment."""
        changed = self._source / "weights" / f"{self._random.randrange(4)}.bin"
        changed.write_bytes(self._random.randbytes(400_000))
        before = _state(self._source)
        with ExitStack() as stack:
            victim = self._start(f"victim ({plan.way})", self._pushing(plan.way, self._fuse(plan)), stack)
            if plan.moment is None and self._random.random() < 0.5:
                victim.wait(self._random.uniform(0, 0.2))
                victim.kill()
            if victim.wait() not in {0, -9}:
                self._trial.fail(f"{victim.name} ended with {victim.status}: {victim.error()}")
            if _state(self._source) != before:
                self._trial.fail(f"the pushed directory has changed: {plan}")
            self._done(self._start("look at the push cache", self._look, stack), plan)
            collecting = command(["gc", "--grace", "0s", "--root", self._server.root], self._environ)
            self._done(self._start("collection", collecting, stack), plan)
            # The server removes what it has received of a request when its client has gone.
            eventually(lambda: not any(path.is_file() for path in self._server.root.glob("tmp/**/*")))
            self._done(self._start("look at the repository", self._compare, stack), plan)
            self._done(self._start("next push", self._pushing("server", lambda: None), stack), plan)
            self._done(self._start("fetch", self._fetch_back, stack), plan)
        if victim.was_killed:
            self._trial.note_kill("pushes", f"push of a directory ({plan.way})", plan.step)
        return victim.was_killed

    @property
    def _environ(self) -> dict[str, str]:
        return {"HOME": str(self._trial.folder), "PATH": os.environ["PATH"]}

    def _fuse(self, plan: Plan) -> Callable[[], None]:
        calls = self._random.randrange(1, 60)
        moment = plan.moment
        return (lambda: arm_calls(calls)) if moment is None else (lambda: arm(moment, 1))

    def _pushing(self, way: str, prepare: Callable[[], None]) -> Work:
        location, token = (self._server.url, TOKEN) if way == "server" else (str(self._server.root), None)

        async def push_it() -> None:
            async with connect(location, token=token) as repository:
                with PushCache(self._push_cache) as push_cache:
                    await push(repository, self._source, push_cache=push_cache, symlinks="keep")

        def run(_: Channel) -> None:
            prepare()
            asyncio.run(push_it())

        return run

    def _look(self, _: Channel) -> None:
        """What a push cache says to be stored is stored."""

        async def look() -> list[Digest]:
            async with connect(self._server.url, token=TOKEN) as repository:
                with PushCache(self._push_cache) as push_cache:
                    known = push_cache.find(await repository.identity(), self._source)
                    if known is None:
                        return []
                    await repository.record(Reference(digest=known.manifest.digest))
                    return await repository.missing([chunk.digest for chunk in known.manifest.chunks])

        missing = asyncio.run(look())
        if missing:
            raise AssertionError(f"the push cache says that {len(missing)} chunks are stored, and they are not")

    def _compare(self, _: Channel) -> None:
        """Records need exactly the chunks that are there."""
        needed, found = asyncio.run(needed_and_found(self._server.root))
        if needed != found:
            raise AssertionError(f"{len(needed - found)} chunks are lost, and {len(found - needed)} are left")

    def _fetch_back(self, _: Channel) -> None:
        """The newest version is the directory as it is."""
        target = self._trial.folder / "back"

        async def fetch_back() -> None:
            async with connect(self._server.url, token=TOKEN) as repository:
                await fetch_tree(repository, "pushed.zip", target=target)

        asyncio.run(fetch_back())
        if standing(target) != standing(self._source):
            raise AssertionError("the tree that was fetched is not the one that was pushed")
        shutil.rmtree(target)

    def _start(self, name: str, work: Work, stack: ExitStack) -> Child:
        self._started += 1
        child = Child(name, work, self._trial.folder / f"push-{self._started % 50}.err")
        stack.callback(child.close)
        return child

    def _done(self, child: Child, plan: Plan) -> None:
        if child.wait() != 0:
            self._trial.fail(f"{child.name} after {plan.way}, {plan.step} ended with {child.status}: {child.error()}")


def _state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return size, mode and mtime of everything in a directory."""
    states = {str(path): path.lstat() for path in [root, *root.rglob("*")]}
    return {path: (state.st_size, state.st_mode, state.st_mtime_ns) for path, state in states.items()}
