"""Run the server of a trial, and kill it: at steps of its work, at random, one of its workers, its supervisor, or all."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from tests.kills.forking import Forker, Outcome, Running
from tests.kills.harness import Actor, PlannedKill, Stopped, Trial, plan_of, wait_until
from tests.kills.maintenance import COLLECT_STEPS, GRACE
from tests.kills.transfers import PUSH_STEPS, SEND_STEPS
from tests.support.daemons import lasting_port

TOKEN = "a-token-for-the-trials-with-kills"
START = "start of a server"
FIRST_START = "first start of a server"
WORK = "server at work"
SUPERVISOR = "supervisor"
GROUP = "all processes of a server"
_WORK_STEPS = [step for step in PUSH_STEPS if not step.endswith(("mkdir staging", "rmdir staging"))]
START_STEPS = ["before mkdir staging", "after mkdir staging"]
FIRST_START_STEPS = [
    "before mkdir new root",
    "after mkdir new root",
    "before create new new file",
    "after create new new file",
    "before begin new index",
    "before commit new index",
    "after commit new index",
    "before create new staging",
    "before sync new staging",
    "before link new format",
    "after link new format",
    "before unlink new staging",
    "before sync new root",
]
_START_SECONDS = 60.0
_STEP_SECONDS = 20.0
"""How long to wait until the work of others brings a server to a step. Then the step is left for later."""


def server_plan(workers: int, random_count: int) -> list[PlannedKill]:
    """Return the plan for a server with one worker, or several."""
    plan = plan_of(WORK, *_WORK_STEPS, *COLLECT_STEPS, *SEND_STEPS, random_count=random_count)
    plan += plan_of(START, *START_STEPS, random_count=2)
    plan += plan_of(FIRST_START, *FIRST_START_STEPS)
    if workers > 1:
        plan += plan_of(SUPERVISOR, random_count=3) + plan_of(GROUP, random_count=3)
    return plan


class ServerKiller(Actor):
    """Runs a server, kills it, and starts it again on the same port."""

    def __init__(self, trial: Trial, name: str, plan: Sequence[PlannedKill], *, workers: int, **environ: str) -> None:
        """Start no server yet. `environ` is for the server."""
        super().__init__(trial, name, plan, **environ)
        self._workers = workers
        self._port = lasting_port()
        self._server: Running | None = None

    @cached_property
    def _first_starts(self) -> Forker:
        return self.trial.forker(f"{self.name}-first")

    @property
    def environ(self) -> dict[str, str]:
        """The variables of those who use the server."""
        return {"FILESTORE_URL": f"http://127.0.0.1:{self._port}", "FILESTORE_TOKEN": TOKEN, "FILESTORE_RETRY_SECONDS": "60"}

    def start(self) -> None:
        """Start the server, again and again until it listens."""
        while not self.trial.stopping.is_set():
            running = self._begin()
            outcome = _settled(running)
            if outcome is None:
                self._server = running
                self.trial.note("starts of servers")
                return
            if not self._may_not_start(outcome):
                raise AssertionError(f"the server does not start again: {outcome}")
        raise Stopped

    def _may_not_start(self, outcome: Outcome) -> bool:
        """Whether a start may have failed. Workers of a supervisor that was killed still end what they do."""
        found = "already in use" in outcome.error
        if found:
            self.trial.note("starts that found the port in use")
        return found

    def _begin(self) -> Running:
        return self.forker.start(
            "serve",
            *("--root", self.trial.root, "--create", "--port", str(self._port), "--workers", str(self._workers)),
            *("--gc-grace", GRACE),
            environ={"FILESTORE_TOKEN": TOKEN},
        )

    def act(self) -> None:
        """Kill what the plan has next."""
        if not self._todo:
            return
        planned = self._todo[0]
        if planned.command == FIRST_START:
            self._kill_first_start(planned)
        elif planned.command == START:
            self._kill_start(planned)
        elif planned.command in {SUPERVISOR, GROUP}:
            self._kill_parent(planned)
        else:
            self._kill_worker(planned)

    def close(self) -> None:
        """Stop the server as a service manager does. It must end well."""
        server, self._server = self._server, None
        if server is not None:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
            outcome = server.wait(_START_SECONDS)
            if outcome is None or outcome.status:
                self.trial.fail(f"the server did not stop: {outcome or server.kill(whole_group=True)}")
        if "_first_starts" in vars(self):
            self._first_starts.close()
        super().close()

    def _kill_worker(self, planned: PlannedKill) -> None:
        """Kill the process that serves, or one of them. The supervisor must start another one."""
        server = self._server
        assert server is not None
        before = self._serving()
        if planned.step is None:
            self.trial.stopping.wait(self.random.uniform(0, 0.5))
            victim = self.random.choice(before)
            os.kill(victim, signal.SIGKILL)
        else:
            kill = self.kill_of(planned)
            self.forker.switch.arm(planned.step, kill.count)
            wait_until(lambda: self.forker.switch.killed != 0, _STEP_SECONDS, self.trial.stopping)
            victim = self.forker.switch.disarm()
        self.happened(planned, did=victim != 0)
        if not victim:
            return
        if self._workers == 1:
            if server.wait(_START_SECONDS) is None:
                raise AssertionError(f"process {victim} of the server was killed, and process {server.pid} has not ended")
            self.start()
        elif not wait_until(lambda: self._is_complete_without(victim), _START_SECONDS, self.trial.stopping):
            if self.trial.stopping.is_set():
                raise Stopped
            raise AssertionError(f"the supervisor has not replaced the worker {victim}: {self._serving()}\n{server.output()}")

    def _kill_parent(self, planned: PlannedKill) -> None:
        assert self._server is not None
        self.trial.stopping.wait(self.random.uniform(0, 0.5))
        self._server.kill(whole_group=planned.command == GROUP)
        self.happened(planned, did=True)
        self.start()

    def _kill_start(self, planned: PlannedKill) -> None:
        """Kill a server while it starts, after its predecessor was killed."""
        assert self._server is not None
        self._server.kill(whole_group=True)
        kill = self.kill_of(planned)
        if planned.step is not None:
            self.forker.switch.arm(planned.step, 1)
        running = self._begin()
        if planned.step is not None:
            wait_until(lambda: self.forker.switch.killed != 0, _STEP_SECONDS, self.trial.stopping)
            did = self.forker.switch.disarm() != 0
        else:
            did = running.wait(kill.delay_seconds) is None
        running.kill(whole_group=True)
        self.happened(planned, did=did)
        self.start()

    def _kill_first_start(self, planned: PlannedKill) -> None:
        """Kill the first start of a server in a folder that does not exist. The second start must complete it."""
        root = self.trial.folder / "new"
        shutil.rmtree(root, ignore_errors=True)
        assert planned.step is not None
        arguments = ["serve", "--root", str(root), "--create", "--port", "0"]
        self._first_starts.switch.arm(planned.step, 1)
        running = self._first_starts.start(*arguments)
        _settled(running)
        running.kill(whole_group=True)
        self.happened(planned, did=self._first_starts.switch.disarm() != 0)
        running = self._first_starts.start(*arguments)
        _settled(running)
        outcome = running.kill(whole_group=True)
        if "listening on " not in outcome.output:
            raise AssertionError(f"a server does not start where a first start was killed {planned.step}: {outcome}")

    def _serving(self) -> list[int]:
        """The processes that answer requests."""
        assert self._server is not None
        return [self._server.pid] if self._workers == 1 else children_of(self._server.pid)

    def _is_complete_without(self, victim: int) -> bool:
        found = self._serving()
        return victim not in found and len(found) == self._workers


def _settled(running: Running) -> Outcome | None:
    """Wait until a server listens, and return None, or until it has ended."""
    never = threading.Event()
    if not wait_until(lambda: "listening on " in running.output() or running.wait(0) is not None, _START_SECONDS, never):
        running.kill(whole_group=True)
        raise AssertionError(f"the server does not listen after {_START_SECONDS} seconds: {running.output()}")
    return running.wait(0)


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process, without those that have ended."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(child))
    return found
