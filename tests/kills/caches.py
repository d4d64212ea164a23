"""Kill processes that share a cache, one in each round, and check after each kill what they promise to each other.

In each round, one process is killed: at a named moment, or at random. Meanwhile another process holds a lease, one or
two more use the cache, and often one of them waits for the same download. After the kill, the processes that are left
must reach their end with right bytes; the size limit must hold at the moment of the kill and at the end of the round; and
the next process that wants the same must get it whole, and must leave nothing in staging.

What others do decides whether the victim comes to its moment: one of them may download what it wants. After a few rounds in
which it did not, the cache is brought to a state in which it must, and nobody else uses the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.kills.cache_checks import broken_rules, entry_folders, leftovers, let_time_pass, over_limit, staged_labels
from tests.kills.cache_processes import keeping, using
from tests.kills.cache_world import Item, World, make_world
from tests.kills.children import Work, command, frozen
from tests.kills.harness import Trial
from tests.kills.moments import Moment
from tests.kills.rounds import Plan, Rounds, plans_of, run_passes, start_trial
from tests.support.nginx import running_nginx

_STORE = "filestore.cache.entry_store:EntryStore."
_LEASES = "filestore.cache.leases:"
_EVICT = "filestore.cache.inventory:"
_URLS = "filestore.cache.urls:Urls."
_DISCARD = "filestore.cache.quota:discard"

EVERY_FETCH = (
    Moment("before the record is asked for", "filestore.cache.cache:Cache._fill"),
    Moment("before a lease is written", f"{_LEASES}Leases._write"),
    Moment("after a lease is written", f"{_LEASES}Leases._write", is_after=True),
    Moment("before space is reserved", f"{_LEASES}LeaseSet.reserve"),
    Moment("after space is reserved", f"{_LEASES}LeaseSet.reserve", is_after=True),
    Moment("before an eviction", _DISCARD),
    Moment("after an entry is moved aside for its eviction", f"{_EVICT}move_aside", is_after=True),
    Moment("in the middle of the removal of an evicted entry", "os:rmdir"),
    Moment("after an eviction", _DISCARD, is_after=True),
    Moment("after the staging folder is made", f"{_STORE}new_staging_folder", is_after=True),
    Moment("before a batch is received", "filestore.transfer.receive_batch:BatchReceiver.get"),
    Moment("after a batch is received", "filestore.transfer.receive_batch:BatchReceiver.get", is_after=True),
    Moment("after a chunk is written", "filestore.transfer.receiver:_SinkWriter.take", is_after=True),
    Moment("before the content is published", f"{_STORE}publish"),
    Moment("after the content is moved out of its staging folder", f"{_STORE}clear"),
    Moment("after the staging folder is removed", f"{_STORE}clear", is_after=True),
    Moment("after the content is sealed", "filestore.cache.entry_store:encode_entry"),
    Moment("before the entry appears", f"{_STORE}_appear"),
    Moment("after the entry has appeared", f"{_STORE}_appear", is_after=True),
    Moment("after the content is published", f"{_STORE}publish", is_after=True),
    Moment("before the record is kept", f"{_STORE}remember"),
    Moment("before the lease is handed over", f"{_LEASES}LeaseSet.hand_over"),
    Moment("after the lease is handed over", f"{_LEASES}LeaseSet.hand_over", is_after=True),
    Moment("before a lease is ended", f"{_LEASES}Leases.unpin"),
    Moment("after a lease is ended", f"{_LEASES}Leases.unpin", is_after=True),
    Moment("before the leases of a process are removed", f"{_LEASES}Leases.close"),
)
HITS = (
    Moment("before a hit is leased", f"{_LEASES}Leases._write"),
    Moment("after a hit is found", f"{_STORE}_look", is_after=True),
)
OPENS = (
    Moment("before a range is read of a file that is being fetched", "filestore.cache.streaming:StreamingFile.read"),
    Moment(
        "after a range is read of a file that is being fetched", "filestore.cache.streaming:StreamingFile.read", is_after=True
    ),
    Moment("after a file that was read is whole", "filestore.cache.streaming:StreamingFile.complete", is_after=True),
)
TREES = (
    Moment("before a tree is published in its staging folder", "filestore.transfer.target:Target.publish"),
    Moment("after a tree is published in its staging folder", "filestore.transfer.target:Target.publish", is_after=True),
    Moment("before a tree is sealed", "filestore.cache.entries:TreeEntry.seal"),
    Moment("after a tree is sealed", "filestore.cache.entries:TreeEntry.seal", is_after=True),
)
URLS = (
    Moment("before the origin of a URL is asked", f"{_URLS}_ask"),
    Moment("after the staging folder of a URL is made", f"{_URLS}_stage", is_after=True),
    Moment("after a URL is downloaded", f"{_URLS}_keep"),
    Moment("after the content of a URL is hashed", f"{_URLS}_publish"),
    Moment("after the content of a URL is published", f"{_URLS}_publish", is_after=True),
    Moment("before it is kept what a URL gave", f"{_URLS}_remember"),
    Moment("after it is kept what a URL gave", f"{_URLS}_remember", is_after=True),
)
VERIFIES = (
    Moment("before an entry is verified", "filestore.cache.verify:_damaged"),
    Moment("after an entry is verified", "filestore.cache.verify:_damaged", is_after=True),
    Moment("before a damaged entry is removed", "filestore.cache.verify:remove_damaged"),
    Moment("after a damaged entry is moved aside", f"{_EVICT}take_away", is_after=True),
    Moment("after a damaged entry is removed", "filestore.cache.verify:remove_damaged", is_after=True),
)
REMOVALS = (
    Moment("before an entry is moved aside by a command", f"{_EVICT}move_aside"),
    Moment("after an entry is moved aside by a command", f"{_EVICT}move_aside", is_after=True),
    Moment("in the middle of the removal of an entry by a command", "os:rmdir"),
)


_COMMANDS = frozenset({"verify", "prune", "rm"})
_HITS = frozenset({"hit", "rm", "verify"})
"""The victims that are to find what they want in the cache."""


def plans(random_count: int) -> list[Plan]:
    """Return each named moment once, and each kind of process so many times at random."""
    named = {
        "fetch": EVERY_FETCH,
        "hit": HITS,
        "open": OPENS,
        "tree": TREES,
        "url": URLS,
        "verify": VERIFIES,
        "prune": REMOVALS,
        "rm": REMOVALS,
    }
    return plans_of(named, random_count, "ls", "warm")


class CacheKills(Rounds):
    """A cache that is never made new."""

    name = "cache"
    work = "a process"
    calls = 120

    def __init__(self, world: World, trial: Trial) -> None:
        super().__init__(trial)
        self._world = world
        self.environ |= {
            "FILESTORE_CACHE": str(world.cache),
            "FILESTORE_ROOT": str(world.root),
            "FILESTORE_CACHE_SIZE_LIMIT": str(world.size_limit),
        }

    def fill(self) -> None:
        """Use everything once, so that the cache is full."""
        with ExitStack() as stack:
            self.must_succeed(self.start("first user", using(self._world, sorted(self._world.items), "lease"), stack))

    def kill_each(self, plans: Sequence[Plan]) -> None:
        """Do the rounds of all plans, and then remove what all killed processes have left."""
        super().kill_each(plans)
        if not self.trial.failures:
            self.prune()

    def round(self, plan: Plan, *, is_alone: bool) -> bool:
        """Kill one process and check everything. Return whether it came to its moment."""
        with ExitStack() as stack:
            kept = self._some(self._is_file_or_tree)
            keeper = self.start("keeper", keeping(self._world, kept.name), stack)
            keeper.line()
            wanted = self._prepared(plan, kept, stack) if is_alone else self._wanted(plan, but=kept)
            if plan.victim == "verify":
                self._damage(wanted)
            victim = self.start(f"victim ({plan.victim})", self._victim(plan, wanted), stack)
            others = [] if is_alone else [self.start(*other, stack) for other in self._others(plan, wanted)]
            self.kill_sometimes(victim, plan, longest=0.15)
            self.end_victim(victim)
            with frozen([keeper, *others]):
                self._note(over_limit(self._world), plan)
            for other in others:
                self.must_succeed(other)
            if keeper.ask("look") != "is right":
                self.trial.fail(f"{kept.name}: wrong bytes after {plan.victim}, {plan.step}")
            self.must_succeed(self.start("next user", using(self._world, [wanted.name], "lease"), stack))
            self._note(broken_rules(self._world, is_keeping=True), plan)
            self._note(self._left_of(wanted), plan)
            if keeper.ask("end") != "is right":
                self.trial.fail(f"{kept.name}: wrong bytes at the end of a round, {plan.victim}, {plan.step}")
            self.must_succeed(keeper)
            self._note(broken_rules(self._world, is_keeping=False), plan)
            if victim.was_killed:
                self.trial.note_kill("cache", plan.victim, plan.step)
        return victim.was_killed

    def prune(self) -> None:
        """Remove what all killed processes have left, by the command for it. Nothing may stay."""
        let_time_pass(self._world)
        with ExitStack() as stack:
            self.must_succeed(self.start("prune", command(["cache", "prune"], self.environ), stack))
        left = leftovers(self._world)
        if left:
            self.trial.fail(f"`filestore cache prune` leaves {left}")

    def _others(self, plan: Plan, wanted: Item) -> Iterator[tuple[str, Work]]:
        if plan.victim in _COMMANDS:
            return  # they would use or evict the entry that the command is to find
        if self.random.random() < 0.6:
            yield "waiter", using(self._world, [wanted.name], "lease")
        if self.random.random() < 0.6:
            names = [self._some(lambda _: True).name for _ in range(2)]
            yield "other user", using(self._world, names, "lease")

    def _victim(self, plan: Plan, wanted: Item) -> Work:
        fuse = self.fuse(plan)
        commands = {
            "verify": ["verify"],
            "prune": ["prune", "--cache-size-limit", str(self._world.size_limit // 3)],
            "rm": ["rm", wanted.name],
            "ls": ["ls"],
            "warm": ["warm", wanted.name],
        }
        if plan.victim in commands:
            return self.killed_command(fuse, "cache", *commands[plan.victim])
        if plan.victim == "open":
            return using(self._world, [wanted.name], "open", prepare=fuse)
        way = self.random.choice(["resolve", "lease"])
        return using(self._world, [wanted.name], way, prepare=fuse)

    def _wanted(self, plan: Plan, *, but: Item) -> Item:
        """Return an item on which the victim comes to its moment, if there is one."""
        names = {name for names in entry_folders(self._world).values() for name in names}
        is_hit = plan.victim in _HITS
        return self._some(lambda item: self._is_of(plan, item) and item != but and (item.name in names) == is_hit)

    def _prepared(self, plan: Plan, kept: Item, stack: ExitStack) -> Item:
        """Return an item that is in the cache if the victim is to find it there. Otherwise others fill the cache."""
        wanted = self._some(lambda item: self._is_of(plan, item) and item.content != kept.content)
        others = [item for item in self._world.items.values() if item.content != wanted.content]
        # Directories are a little larger. Of the smaller ones, as many stay as there is room for.
        others.sort(key=lambda item: not item.is_tree)
        names = [wanted.name] if plan.victim in _HITS else [item.name for item in others]
        self.must_succeed(self.start("user before", using(self._world, names, "lease"), stack))
        return wanted

    def _is_of(self, plan: Plan, item: Item) -> bool:
        """Return whether an item is of the kind that a victim wants."""
        if plan.victim in {"open", "warm"}:
            return item.name.startswith("file")
        if plan.victim == "url":
            return item.name.startswith("url")
        return item.is_tree if plan.victim == "tree" else self._is_file_or_tree(item)

    def _damage(self, item: Item) -> None:
        """Change a byte of an entry that nobody uses, as a program does that writes to it by mistake."""
        for folder, names in entry_folders(self._world).items():
            if item.name in names:
                path = folder / "content" / item.name
                path = path if path.is_file() else path / "weights.bin"
                path.chmod(0o644)
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)

    def _left_of(self, wanted: Item) -> Iterator[str]:
        labels = staged_labels(self._world)
        digests = {folder.name for folder, names in entry_folders(self._world).items() if wanted.name in names}
        for label in labels:
            if label.partition("-tree")[0] in digests:
                yield f"the next use of {wanted.name} leaves staged data"

    def _is_file_or_tree(self, item: Item) -> bool:
        return not item.name.startswith("url")

    def _some(self, fits: Callable[[Item], bool]) -> Item:
        found = [item for item in self._world.items.values() if fits(item)]
        return self.random.choice(found or [item for item in self._world.items.values() if self._is_file_or_tree(item)])

    def _note(self, broken: Iterator[str], plan: Plan) -> None:
        for rule in broken:
            self.trial.fail(f"{plan.victim}, {plan.step}: {rule}")


def run_caches(folder: Path, *, seed: int, random_count: int, seconds: float = 0.0) -> Trial:
    """Kill processes that share a cache at each named moment, and each kind of process so many times at random.

    `folder` is new or empty. After one pass, further passes follow until the time is over.
    """
    trial = start_trial(folder, "cache", seed=seed, random_count=random_count, seconds=seconds)
    with running_nginx(trial.folder / "origin") as origin:
        kills = CacheKills(make_world(trial.folder, origin, seed=seed), trial)
        kills.fill()
        run_passes(trial, (kills, plans(random_count)))
    return trial
