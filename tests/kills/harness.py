"""Kill processes of a repository by a seeded plan, and keep what was done: the base of all trials with real kills.

A `Trial` has a folder, a seed and some actors. An actor is a thread of its own with a `Forker`, and works on the
repository side by side with the others. Each has a plan of kills; the trial is over when every actor has done its plan,
or later if it has a time. The seed decides the plans, and what each actor does in which order. It does not decide how the
processes meet, so the same seed finds a fault again only after some runs.
"""

from __future__ import annotations

import json
import os
import random
import resource
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.kills.forking import Forker, Kill, Outcome
from tests.support.commands import Home

_LAST_SHOWN = 30
"""How many of the last kills a failure names."""
_ATTEMPTS = 40
"""How often a command is run until it comes to a step. What it does depends on what others do."""
_REST_SECONDS = 1.0
"""How long an actor rests after each thing that it does, when its own plan is done."""
_USUAL_SECONDS = 0.4
"""How long a command takes, before one of its kind has run."""


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """What is to be killed, and at which step; at a random moment if the step is None."""

    command: str
    step: str | None = None


def plan_of(command: str, *steps: str, random_count: int = 0) -> list[PlannedKill]:
    """Return the plan to kill a command once at each step, and so many times at a random moment."""
    return [*(PlannedKill(command, step) for step in steps), *[PlannedKill(command)] * random_count]


def around(*calls: str) -> list[str]:
    """Return the steps before and after each call, such as `rename chunks`."""
    return [f"{moment} {call}" for call in calls for moment in ("before", "after")]


def never(_: Outcome) -> bool:
    """Allow no failure."""
    return False


class Stopped(Exception):
    """The trial has failed, so that actors end in the middle of what they do."""


class Trial:
    """One run: the folder, what was killed, and what went wrong. Its methods may be called by all actors at once."""

    def __init__(self, folder: Path, *, seed: int, seconds: float = 0.0, repeat: str = "") -> None:
        """Use `folder`, which exists. `repeat` is the command that a failure names."""
        self.folder = folder.absolute()
        self.home = Home(self.folder)
        self.root = self.folder / "root"
        self.seed = seed
        self.kills: Counter[tuple[str, str]] = Counter()
        """How often each command was killed at each step."""
        self.counts: Counter[str] = Counter()
        """What else was done."""
        self.failures: list[str] = []
        self.stopping = threading.Event()
        """Set when a rule was broken: all actors then end soon."""
        self._seconds = seconds
        self._repeat = repeat
        self._started = time.monotonic()
        self._processor_started = _processor_seconds()
        self._last: deque[str] = deque(maxlen=_LAST_SHOWN)
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def random(self, name: str) -> random.Random:
        """Return the random numbers of one actor."""
        return random.Random(f"{self.seed} {name}")

    def forker(self, name: str, **environ: str) -> Forker:
        """Start a process that forks commands."""
        return Forker(self.folder, name, self.home.environ | environ)

    def note_kill(self, who: str, command: str, step: str | None) -> None:
        """Count a kill that has happened."""
        with self._lock:
            self.kills[command, step or "at random"] += 1
            self._last.append(f"{time.monotonic() - self._started:8.2f} {who}: {command}, {step or 'at random'}")

    def note(self, what: str, count: int = 1) -> None:
        """Count something else."""
        with self._lock:
            self.counts[what] += count

    def fail(self, what: str) -> None:
        """Note that a rule was broken, and stop all actors."""
        with self._lock:
            self.failures.append(what)
        self.stopping.set()

    def run(self, actors: Sequence[Actor]) -> None:
        """Let all actors work at once until every plan is done and the time is over. Then end them, the first one last."""
        self._busy = {actor.name for actor in actors}
        threads = [threading.Thread(target=self._act, args=[actor], name=actor.name) for actor in actors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for actor in reversed(actors):
            actor.close()

    def _act(self, actor: Actor) -> None:
        try:
            while not self.is_over:
                actor.act()
                if actor.is_done:
                    self._end_of_plan(actor)
                if actor.name not in self._busy and not self._seconds:
                    # It goes on for the others, who need its work and also the processor.
                    self.stopping.wait(_REST_SECONDS)
        except Stopped:
            pass
        except Exception:  # noqa: BLE001  # whatever it is, the trial has failed, and says why
            self.fail(f"{actor.name}: {traceback.format_exc()}")

    def _end_of_plan(self, actor: Actor) -> None:
        with self._lock:
            self._busy.discard(actor.name)
        actor.plan_again()

    @property
    def is_over(self) -> bool:
        """Whether actors are to end."""
        if self.stopping.is_set():
            return True
        with self._lock:
            return not self._busy and time.monotonic() - self._started >= self._seconds

    @property
    def report(self) -> dict[str, Any]:
        """What was done, for JSON."""
        by_command: Counter[str] = Counter()
        for (command, _), count in self.kills.items():
            by_command[command] += count
        return {
            "seed": self.seed,
            "seconds": round(time.monotonic() - self._started, 1),
            "processor_seconds": round(_processor_seconds() - self._processor_started, 1),
            "kills": self.kills.total(),
            "kills_by_command": dict(sorted(by_command.items())),
            "steps": len([step for _, step in self.kills if step != "at random"]),
            **dict(sorted(self.counts.items())),
            "failures": self.failures,
        }

    @property
    def story(self) -> str:
        """What a person needs to look for the fault of a trial that has failed."""
        kills = "\n".join(self._last)
        failures = "\n".join(self.failures)
        return f"{failures}\nseed {self.seed}, folder {self.folder}\nrepeat: {self._repeat}\nthe last kills:\n{kills}"


class Actor(ABC):
    """Works on the repository in a thread of its own, and has its commands killed by a plan."""

    def __init__(self, trial: Trial, name: str, plan: Sequence[PlannedKill], **environ: str) -> None:
        self.trial = trial
        self.name = name
        self.random = trial.random(name)
        self._environ = environ
        self._plan = list(plan)
        self._todo: list[PlannedKill] = []
        self._attempts: Counter[PlannedKill] = Counter()
        self._seconds: dict[str, float] = {}
        self.killed_at: str | None = None
        """The step at which the last command that was killed at a step was killed."""
        self.plan_again()

    @cached_property
    def forker(self) -> Forker:
        """The process that forks its commands. An actor that has none needs no such process."""
        return self.trial.forker(self.name, **self._environ)

    @abstractmethod
    def act(self) -> None:
        """Do one thing."""

    @property
    def is_done(self) -> bool:
        """Whether all kills of the plan have happened."""
        return not self._todo

    def plan_again(self) -> None:
        """Begin the plan again, in another order."""
        self._todo = self.random.sample(self._plan, len(self._plan))

    def close(self) -> None:
        """End what was started."""
        if "forker" in vars(self):
            self.forker.close()

    def next_command(self) -> str:
        """Return which command the plan has next."""
        return self._todo[0].command if self._todo else ""

    def planned(self, command: str) -> PlannedKill | None:
        """Return the next kill of the plan if it is one of this command."""
        return self._todo[0] if self._todo and self._todo[0].command == command else None

    def kill_of(self, planned: PlannedKill) -> Kill:
        """Return the moment of a planned kill. Steps come several times, so it need not be the first one."""
        if planned.step is not None:
            tried = self._attempts[planned]
            return Kill(planned.step, 1 if tried else self.random.choice((1, 1, 2, 3)))
        usual = self._seconds.get(planned.command, _USUAL_SECONDS)
        return Kill(delay_seconds=self.random.uniform(0.0, usual))

    def happened(self, planned: PlannedKill, *, did: bool) -> None:
        """Note whether a planned kill has happened. Otherwise it is tried again later, but not for ever."""
        self._todo.remove(planned)
        if did:
            self.killed_at = planned.step
            self.trial.note_kill(self.name, planned.command, planned.step)
            self._attempts.pop(planned, None)
            return
        self._attempts[planned] += 1
        if planned.step is not None and self._attempts[planned] >= _ATTEMPTS:
            self.trial.fail(f"{planned.command} did not come to the step `{planned.step}` in {_ATTEMPTS} attempts")
        self._todo.insert(self.random.randint(0, len(self._todo)), planned)

    def command(self, command: str, *arguments: str | Path, may_fail: Callable[[Outcome], bool] = never) -> Outcome:
        """Run a command, which is killed if the plan has a kill of it next. Otherwise it must succeed, or be allowed to fail."""
        if self.trial.stopping.is_set():
            raise Stopped
        planned = self.planned(command)
        outcome = self.forker.run(*arguments, kill=None if planned is None else self.kill_of(planned))
        if planned is not None:
            self.happened(planned, did=outcome.was_killed)
        if not outcome.was_killed:
            self.trial.note(command)
            self._seconds[command] = 0.8 * self._seconds.get(command, outcome.seconds) + 0.2 * outcome.seconds
            if outcome.status and not may_fail(outcome):
                said = f"status {outcome.status}\n{outcome.output}{outcome.error}"
                raise AssertionError(f"`filestore {' '.join(map(str, arguments))}` failed after kills: {said}")
        return outcome


def part_of(plan: Sequence[PlannedKill], part: int, count: int) -> list[PlannedKill]:
    """Return a part of the steps of a plan, and all of its kills at random moments. `part` is less than `count`."""
    return [planned for place, planned in enumerate(plan) if planned.step is None or place % count == part]


def _processor_seconds() -> float:
    """The processor time of this process, and of all its processes that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


def report_line(trial: Trial) -> str:
    """Return what was done as one line of JSON, without what is long."""
    return json.dumps(trial.report)


def wait_until(reached: Callable[[], bool], seconds: float, stopping: threading.Event) -> bool:
    """Ask until the condition is true, and return whether it became true within the time."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end or stopping.is_set():
            return reached()
        # Others need the processor for it to come true.
        stopping.wait(0.02)
    return True


def new_seed() -> int:
    """Return a seed for a trial that was given none."""
    return int.from_bytes(os.urandom(3), "big")
