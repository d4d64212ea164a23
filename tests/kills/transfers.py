"""Push, fetch and remove files through a server or in the folder, and kill these commands at each of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.kills.forking import Outcome
from tests.kills.harness import Actor, PlannedKill, Trial, around, plan_of
from tests.kills.model import Model, check_bytes, content_of

_MOST_KEPT = 5
"""How many files each user keeps, so that the content that is needed at the same time has a limit."""

PUSH_STEPS = around(
    "mkdir staging",
    "create staging",
    "write staging",
    "sync staging",
    "begin index",
    "mkdir chunks",
    "rename chunks",
    "sync chunks",
    "commit index",
    "mkdir manifests",
    "rename manifests",
    "sync manifests",
    "create last-commit",
    "write last-commit",
    "rmdir staging",
)
"""The steps of a push into a folder; in a server, those of put and commit."""
REMOVE_STEPS = around("begin index", "commit index")
FETCH_STEPS = around("create out", "write out", "sync out", "rename out")
SEND_STEPS = around("send")


def plan_in_folder(random_count: int) -> list[PlannedKill]:
    """Return the plan of a user who works directly on the folder."""
    return [
        *plan_of("push", *PUSH_STEPS, random_count=random_count),
        *plan_of("fetch", *FETCH_STEPS, random_count=random_count),
        *plan_of("rm", *REMOVE_STEPS, random_count=random_count),
    ]


def plan_by_server(random_count: int) -> list[PlannedKill]:
    """Return the plan of a user who works through a server."""
    return [
        *plan_of("push by HTTP", *SEND_STEPS, random_count=random_count),
        *plan_of("fetch by HTTP", *SEND_STEPS, *FETCH_STEPS, random_count=random_count),
        *plan_of("rm by HTTP", *SEND_STEPS, random_count=random_count),
    ]


class User(Actor):
    """Pushes, fetches and removes files of its own."""

    def __init__(
        self, trial: Trial, model: Model, name: str, plan: Sequence[PlannedKill], *, how: str = "", **environ: str
    ) -> None:
        """Take where it works from `environ`. `how` is added to the names of commands."""
        super().__init__(trial, name, plan, **environ)
        self._model = model
        self._how = how
        self._mine: list[str] = []
        self._folder = trial.folder / f"files-{name}"
        self._folder.mkdir()
        self._out = trial.folder / "out" / name
        self._out.mkdir(parents=True)
        self._number = 0

    def act(self) -> None:
        """Do what the plan has next, and now and then something else."""
        wanted = self.next_command().removesuffix(self._how) or self.random.choice(("push", "fetch", "rm"))
        if not self._mine or (wanted == "fetch" and self.random.random() < 0.1):
            wanted = "push"
        if wanted == "push":
            self._push()
        elif wanted == "fetch":
            self._fetch(self.random.choice(self._mine))
        if wanted == "rm" or len(self._mine) > _MOST_KEPT:
            self._remove(self._mine[0])

    def _push(self) -> None:
        self._number += 1
        # Some content is new, and some is all shared. A push may have nothing to send.
        content = content_of(self.random, self.trial.seed, number=self._number if self.random.random() < 0.8 else 0)
        path = self._folder / f"{self.name}-{self.random.randrange(3)}.bin"
        path.write_bytes(content.data)
        file_id = self._until_done("push", path, "--json")["id"]
        self._model.acknowledge(file_id, content)
        if file_id not in self._mine:
            self._mine.append(file_id)

    def _until_done(self, command: str, *arguments: str | Path) -> dict[str, Any]:
        """Run a command again after each kill, until it has ended well. Return the object that it prints."""
        self.killed_at = None
        while True:
            outcome = self.command(f"{command}{self._how}", command, *arguments, may_fail=self._met_no_server)
            if outcome.status == 0:
                return dict(outcome.result)

    def _was_cut(self, outcome: Outcome) -> bool:
        """Whether a second removal may have failed: the first one may have been done just before its process was killed."""
        return self._met_no_server(outcome) or "nothing is stored under" in outcome.error

    def _met_no_server(self, outcome: Outcome) -> bool:
        """Whether a command found the server killed before the first answer. Later it tries again by itself."""
        found = bool(self._how) and any(text in outcome.error for text in (" cannot be reached", " cut the connection"))
        if found:
            self.trial.note("commands that met no server")
            self.trial.stopping.wait(0.1)
        return found

    def _fetch(self, file_id: str) -> None:
        target = self._out / "fetched"
        target.unlink(missing_ok=True)
        fetched = self._until_done("fetch", file_id, "-o", target, "--json")
        if self.killed_at in {"after sync out", "before rename out"} and not fetched["bytes_reused"]:
            raise AssertionError(f"a fetch of {file_id} used nothing of one that was killed {self.killed_at}")
        check_bytes(target, self._model.kept[file_id], file_id)
        left = sorted(path.name for path in self._out.iterdir())
        if left != ["fetched"]:
            raise AssertionError(f"a fetch after a kill left {left} in {self._out}")

    def _remove(self, file_id: str) -> None:
        self._model.remove(file_id)
        self._mine.remove(file_id)
        outcome = self.command(f"rm{self._how}", "rm", file_id, "--json", may_fail=self._met_no_server)
        while outcome.status and file_id in self.listed():
            outcome = self.command(f"rm{self._how}", "rm", file_id, "--json", may_fail=self._was_cut)
        listed = self.listed()
        if file_id in listed:
            raise AssertionError(f"{file_id} is listed after its removal")
        if lost := set(self._mine) - listed:
            raise AssertionError(f"acknowledged files are not listed: {lost}")

    def listed(self) -> set[str]:
        """Return the ids of all stored files."""
        while True:
            outcome = self.command("ls", "ls", "--limit", "1000", "--json", may_fail=self._met_no_server)
            if outcome.status == 0:
                return {each["id"] for each in outcome.result["files"]}
