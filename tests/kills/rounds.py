"""Rounds of kills: in each, one process is killed by a plan, and what must hold afterwards is checked.

The base of the trials with caches and directories. The processes of a round are forked by the trial itself.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from tests.kills.children import Channel, Child, Work, command, preload
from tests.kills.harness import Trial
from tests.kills.moments import Moment, arm, arm_calls


class Plan(NamedTuple):
    """What is killed in one round, and when."""

    victim: str
    """The kind of process, in the words of its trial."""
    moment: Moment | None
    """None means at random."""

    @property
    def step(self) -> str | None:
        """The name of the moment in the figures."""
        return None if self.moment is None else self.moment.name


def plans_of(named: Mapping[str, Iterable[Moment]], random_count: int, *only_at_random: str) -> list[Plan]:
    """Return each named moment once, and each kind of process so many times at random."""
    found = [Plan(victim, moment) for victim, moments in named.items() for moment in moments]
    return found + [Plan(victim, None) for victim in (*named, *only_at_random)] * random_count


class Rounds(ABC):
    """One world, and one round after the other in it."""

    name: ClassVar[str]
    """Of the trial; it also decides the random numbers."""
    work: ClassVar[str]
    """What a victim does, in messages: "a fetch"."""
    attempts: ClassVar[int] = 5
    """How many rounds a process has to come to its moment. What it does depends on what others do."""
    shared_attempts: ClassVar[int] = 3
    """In the first rounds, others may do what it was to do. In the later ones, nobody wants the same."""
    calls: ClassVar[int]
    """A random kill comes before a call of the operating system with a number below this."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.random = trial.random(self.name)
        self.environ = {"HOME": str(trial.folder), "PATH": os.environ["PATH"]}
        """The environment of commands."""
        self._started = 0

    @abstractmethod
    def round(self, plan: Plan, *, is_alone: bool) -> bool:
        """Kill one process and check everything. Return whether it came to its moment.

        With `is_alone`, no other process wants what it wants before it has ended.
        """

    def kill_each(self, plans: Sequence[Plan]) -> None:
        """Do the rounds of all plans, in an order by chance, until a rule is broken."""
        for plan in self.random.sample(plans, len(plans)):
            attempts = range(self.attempts)
            if not any(self.round(plan, is_alone=n >= self.shared_attempts) for n in attempts) and plan.moment is not None:
                place = f"the moment `{plan.step}` in {self.attempts} rounds"
                self.trial.fail(f"{self.work} ({plan.victim}) did not come to {place}")
            if self.trial.failures:
                return

    def start(self, name: str, work: Work, stack: ExitStack) -> Child:
        """Fork a process that does this work, and that the stack ends."""
        self._started += 1
        child = Child(name, work, self.trial.folder / f"{self.name}-{self._started % 50}.err")
        stack.callback(child.close)
        return child

    def kill_sometimes(self, victim: Child, plan: Plan, *, longest: float) -> None:
        """Kill a victim of a kill at random in half of the cases after at most `longest` seconds, before its fuse does."""
        if plan.moment is None and self.random.random() < 0.5:
            victim.wait(self.random.uniform(0, longest))
            victim.kill()

    def end_victim(self, victim: Child) -> None:
        """Wait for its end. It is killed, succeeds, or fails with an error of ours."""
        victim.wait()
        if not victim.was_killed and victim.status not in {0, 1}:
            self.trial.fail(f"{victim.name} ended with {victim.status}: {victim.error()}")

    def must_succeed(self, child: Child, plan: Plan | None = None) -> None:
        """Wait for the end of a process that nobody kills."""
        if child.wait() != 0:
            after = "" if plan is None else f" after {plan.victim}, {plan.step}"
            self.trial.fail(f"{child.name}{after} ended with {child.status}: {child.error()}")

    def fuse(self, plan: Plan, *, count: int = 1) -> Callable[[], None]:
        """Return what a victim calls first, so that it is killed at its moment when it comes there for the `count`-th time."""
        if plan.moment is None:
            return partial(arm_calls, self.random.randrange(1, self.calls))
        return partial(arm, plan.moment, count)

    def killed_command(self, fuse: Callable[[], None], *arguments: str | Path) -> Work:
        """Return the work of a command that is killed."""
        run = command(arguments, self.environ)

        def run_killed(channel: Channel) -> None:
            fuse()
            run(channel)

        return run_killed


def start_trial(folder: Path, kind: str, *, seed: int, random_count: int, seconds: float) -> Trial:
    """Return a trial in a folder that is new or empty, after all is imported that its children need."""
    folder.mkdir(exist_ok=True)
    options = f"--only {kind} --seed {seed} --random {random_count} --seconds {seconds:g}"
    trial = Trial(folder, seed=seed, seconds=seconds, repeat=f"python -m tests.kills {options} FOLDER")
    preload()
    return trial


def run_passes(trial: Trial, *passes: tuple[Rounds, Sequence[Plan]]) -> None:
    """Do all rounds once, and then again until the time is over or a rule is broken."""
    is_first = True
    while not trial.failures and (is_first or not trial.is_over):
        for rounds, plans in passes:
            rounds.kill_each(plans)
        is_first = False
