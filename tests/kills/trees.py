"""Kill fetches of a directory, one in each round, and check the target, the resume and what is left.

A fetch goes to a new name, into an empty folder, over an older tree, or takes chunks from a seed; it is a call in Python
or the command. After the kill, the target is not there, or is the whole old tree or the whole new one. Another process
that fetches to the same target at the same time reaches its end. The next fetch completes: it receives no chunk that was
whole on the disk at the kill, and leaves nothing beside the target.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from filestore.backends import connect
from filestore.core.digest import Digest
from filestore.repository.protocol import Moved
from filestore.transfer.fetch_tree import fetch_record_tree
from filestore.transfer.tree_seed import TreeSeed
from tests.kills.children import Channel, Child, Work
from tests.kills.harness import Trial
from tests.kills.moments import Moment
from tests.kills.rounds import Plan, Rounds, plans_of, run_passes, start_trial
from tests.kills.tree_model import chunks_on_disk, store_trees
from tests.kills.tree_pushes import PushKills
from tests.kills.tree_pushes import plans as push_plans
from tests.support.server import TOKEN, RunningServer, running_server
from tests.support.trees import plant, standing
from tests.support.watched import WatchedRepository

_FETCH = "filestore.transfer.fetch_tree:"
_RECEIVE = "filestore.transfer.receiver:"
_STAGE = "filestore.transfer.sinks.tree:TreeStaging."
_TARGET = "filestore.transfer.target:"

EVERY_WAY = (
    Moment("before the target is looked at", f"{_TARGET}Target.look"),
    Moment("after the directory of the zip is read", f"{_FETCH}read_structure", is_after=True),
    Moment("after the staging folder is made", f"{_STAGE}prepare", is_after=True),
    Moment("after local data is reused", f"{_RECEIVE}Receiver.reuse", is_after=True),
    Moment("after a batch is received", "filestore.transfer.receive_batch:BatchReceiver.get", is_after=True),
    Moment("after a chunk is written", f"{_RECEIVE}_SinkWriter.take", is_after=True),
    Moment("before a link is made", f"{_STAGE}_make_link"),
    Moment("after everything is staged", f"{_STAGE}finish", is_after=True),
    Moment("after the staged tree is synced", f"{_TARGET}sync_tree", is_after=True),
    Moment("after the tree is published", f"{_TARGET}Target.publish", is_after=True),
)
INSIDE = (
    Moment("after the publication in the folder is decided", f"{_TARGET}Target._complete"),
    Moment("before a staged name is moved out", f"{_TARGET}Target._move_out"),
    Moment("in the middle of the names that are moved out", f"{_TARGET}_is_moved", is_after=True),
    Moment("after all names are moved out", f"{_TARGET}Target._move_out", is_after=True),
)
FORCE = (
    Moment("after the old tree is read", f"{_FETCH}_older", is_after=True),
    Moment("before the old tree is moved aside", f"{_TARGET}Target._take_aside"),
    Moment("after the old tree is moved aside", f"{_TARGET}Target._take_aside", is_after=True),
    Moment("after the new tree has appeared", f"{_TARGET}Target._drop"),
    Moment("in the middle of the removal of the old tree", "os:rmdir"),
    Moment("after the old tree is removed", f"{_TARGET}Target._drop", is_after=True),
)
SEEDED = (
    Moment("after a chunk of a seed is copied", f"{_RECEIVE}_copied", is_after=True),
)  # fmt: skip


_OVER_OLDER = frozenset({"force", "command"})
"""The ways in which an older tree is at the target."""


def plans(random_count: int) -> list[Plan]:
    """Return each named moment once, and each way so many times at random.

    The ways are `new`, `inside`, `force`, `seeded`, and `command`, which replaces an older tree.
    """
    return plans_of({"new": EVERY_WAY, "inside": INSIDE, "force": FORCE, "seeded": SEEDED}, random_count, "command")


class _Recorder(WatchedRepository):
    """A repository that notes which chunks were received."""

    def __init__(self, inner: WatchedRepository) -> None:
        super().__init__(inner)
        self.received: list[Digest] = []

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        frames = await super().get(digests, buffer, moved=moved)
        self.received += digests
        return frames


class TreeKills(Rounds):
    """A server with two versions of a directory."""

    name = "trees"
    work = "a fetch"
    calls = 80

    def __init__(self, server: RunningServer, trial: Trial) -> None:
        super().__init__(trial)
        self._old, self._new = asyncio.run(store_trees(trial.folder, server.url))
        self._server = server
        self.environ |= {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": TOKEN}

    def round(self, plan: Plan, *, is_alone: bool) -> bool:
        """Kill one fetch and check everything. Return whether it came to its moment."""
        place = self.trial.folder / "place"
        target = place / "model"
        place.mkdir()
        if plan.victim in _OVER_OLDER:
            plant(target, self._old.things)
        elif plan.victim == "inside":
            target.mkdir()
        with ExitStack() as stack:
            victim = self._kill_one(plan, target, stack, is_alone=is_alone)
            self._check_target(plan, target)
            held = chunks_on_disk(place, self._new)
            following = self.start("next fetch", self._fetching(plan.victim, target, force=target.exists()), stack)
            received = set(following.lines())
            if following.status:
                self.trial.fail(f"the next fetch after a kill {plan.step} ({plan.victim}) failed: {following.error()}")
            if again := held & received:
                self.trial.fail(f"{len(again)} of {len(held)} chunks on the disk were received again: {plan}")
            if standing(target) != self._new.things:
                self.trial.fail(f"the next fetch made another tree: {plan}")
            if left := [path.name for path in place.iterdir() if path != target]:
                self.trial.fail(f"the next fetch leaves {left}: {plan}")
        if victim.was_killed:
            self.trial.note_kill("trees", f"fetch ({plan.victim})", plan.step)
            self.trial.note("chunks kept by kills", len(held))
        shutil.rmtree(place)
        return victim.was_killed

    def _kill_one(self, plan: Plan, target: Path, stack: ExitStack, *, is_alone: bool) -> Child:
        """Start a fetch and, by chance, another one to the same target. Wait until the first was killed and both have ended."""
        victim = self.start(f"victim ({plan.victim})", self._victim(plan, target), stack)
        self.kill_sometimes(victim, plan, longest=0.2)
        is_alone = is_alone or self.random.random() < 0.7
        other = None if is_alone else self.start("other", self._fetching(plan.victim, target), stack)
        self.end_victim(victim)
        if other is not None and other.wait() != 0 and not self._is_published(plan, target):
            self.trial.fail(f"another fetch to the same target ended with {other.status}: {other.error()}")
        return victim

    def _check_target(self, plan: Plan, target: Path) -> None:
        """The target is not there, or is a whole tree. Names in a folder that stays appear one by one, each whole."""
        if not target.exists():
            return
        found = {name: thing for name, thing in standing(target).items() if ".filestore-" not in name}
        if plan.victim == "inside":
            tops = {name.partition("/")[0] for name in found}
            is_right = found == {name: thing for name, thing in self._new.things.items() if name.partition("/")[0] in tops}
        else:
            allowed = [self._new.things, self._old.things] if plan.victim in _OVER_OLDER else [self._new.things]
            is_right = found in allowed
        if not is_right:
            self.trial.fail(f"a part of a tree is at the target after a kill: {plan}: {sorted(found)}")

    def _is_published(self, plan: Plan, target: Path) -> bool:
        """Whether a fetch without `force` finds the tree there and is right to refuse it."""
        return plan.victim not in _OVER_OLDER and target.exists() and standing(target) == self._new.things

    def _victim(self, plan: Plan, target: Path) -> Work:
        count = 2 if plan.moment is not None and "in the middle" in plan.moment.name else 1
        fuse = self.fuse(plan, count=count)
        if plan.victim != "command":
            return self._fetching(plan.victim, target, prepare=fuse)
        return self.killed_command(fuse, "fetch", self._new.record.id, "-o", target, "--force")

    def _fetching(self, way: str, target: Path, *, force: bool = False, prepare: Callable[[], None] = lambda: None) -> Work:
        """Return the work of a process that fetches the new tree. It says the digest of each chunk that it receives."""
        old = self._old

        async def fetch(channel: Channel) -> None:
            async with connect(self._server.url, token=TOKEN) as repository:
                recorder = _Recorder(WatchedRepository(repository))
                seeds = [TreeSeed(old.path, old.manifest, old.tail)] if way == "seeded" else []
                await fetch_record_tree(recorder, self._new.record, target=target, force=force or way in _OVER_OLDER, seeds=seeds)
                for digest in recorder.received:
                    channel.say(str(digest))

        def run(channel: Channel) -> None:
            prepare()
            asyncio.run(fetch(channel))

        return run


def run_trees(folder: Path, *, seed: int, random_count: int, seconds: float = 0.0) -> Trial:
    """Kill fetches and pushes of a directory at each named moment, and each way so many times at random.

    `folder` is new or empty. After one pass, further passes follow until the time is over.
    """
    trial = start_trial(folder, "trees", seed=seed, random_count=random_count, seconds=seconds)
    with running_server(trial.folder / "repository") as server:
        fetches = (TreeKills(server, trial), plans(random_count))
        run_passes(trial, fetches, (PushKills(server, trial), push_plans(random_count)))
    return trial
