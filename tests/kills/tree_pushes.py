"""Kill pushes of a directory, one in each round, and check the source, the push cache and what is left in the repository.

The directory changes a little before each round. It is pushed to a server or to its folder, with a push cache. After the
kill, the directory is unchanged; a push cache that knows the push means that the repository has all of its chunks; and a
collection leaves exactly the chunks that records need, and no staging. The next push completes, and gives the same tree.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filestore.backends import connect
from filestore.core.digest import Digest
from filestore.core.references import Reference
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from tests.kills.children import Channel, Work, command
from tests.kills.harness import Trial
from tests.kills.moments import Moment
from tests.kills.rounds import Plan, Rounds
from tests.kills.tree_model import things
from tests.support.server import TOKEN, RunningServer, eventually
from tests.support.soak import needed_and_found
from tests.support.trees import plant, standing

_PUSH = "filestore.transfer.push:"
_CACHE = "filestore.transfer.sources.push_cache:PushCache."
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


def plans(random_count: int) -> list[Plan]:
    """Return each named moment once, and both ways so many times at random."""
    named = [Plan("folder" if number % 3 == 2 else "server", moment) for number, moment in enumerate(MOMENTS)]
    return named + [Plan(way, None) for way in ("server", "folder")] * random_count


class PushKills(Rounds):
    """A directory that is pushed again and again, to a `server` or to its `folder`."""

    name = "pushes"
    work = "a push"
    attempts = 3
    calls = 60

    def __init__(self, server: RunningServer, trial: Trial) -> None:
        super().__init__(trial)
        self._server = server
        self._source = plant(trial.folder / "pushed", things(2))
        self._push_cache = trial.folder / "push-cache.sqlite"

    def round(self, plan: Plan, *, is_alone: bool) -> bool:  # noqa: ARG002  # no other process pushes
        """Kill one push and check everything. Return whether it came to its moment."""
        changed = self._source / "weights" / f"{self.random.randrange(4)}.bin"
        changed.write_bytes(self.random.randbytes(400_000))
        before = _state(self._source)
        with ExitStack() as stack:
            victim = self.start(f"victim ({plan.victim})", self._pushing(plan.victim, self.fuse(plan)), stack)
            self.kill_sometimes(victim, plan, longest=0.2)
            if victim.wait() not in {0, -9}:
                self.trial.fail(f"{victim.name} ended with {victim.status}: {victim.error()}")
            if _state(self._source) != before:
                self.trial.fail(f"the pushed directory has changed: {plan}")
            self.must_succeed(self.start("look at the push cache", self._look, stack), plan)
            collecting = command(["gc", "--grace", "0s", "--root", self._server.root], self.environ)
            self.must_succeed(self.start("collection", collecting, stack), plan)
            # The server removes what it has received of a request when its client has gone.
            eventually(lambda: not any(path.is_file() for path in self._server.root.glob("tmp/**/*")))
            self.must_succeed(self.start("look at the repository", self._compare, stack), plan)
            self.must_succeed(self.start("next push", self._pushing("server", lambda: None), stack), plan)
            self.must_succeed(self.start("fetch", self._fetch_back, stack), plan)
        if victim.was_killed:
            self.trial.note_kill("pushes", f"push of a directory ({plan.victim})", plan.step)
        return victim.was_killed

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
        target = self.trial.folder / "back"

        async def fetch_back() -> None:
            async with connect(self._server.url, token=TOKEN) as repository:
                await fetch_tree(repository, "pushed.zip", target=target)

        asyncio.run(fetch_back())
        if standing(target) != standing(self._source):
            raise AssertionError("the tree that was fetched is not the one that was pushed")
        shutil.rmtree(target)


def _state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return size, mode and mtime of everything in a directory."""
    states = {str(path): path.lstat() for path in [root, *root.rglob("*")]}
    return {path: (state.st_size, state.st_mode, state.st_mtime_ns) for path, state in states.items()}
