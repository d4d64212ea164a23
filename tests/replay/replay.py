"""Replay a recording: rebuild what a power cut could have left after each call, and check it."""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.replay.checks import CHECKS, Check, Left, ViolationError, check_repository
from tests.replay.direct import without_threads
from tests.replay.disk import Disk
from tests.replay.image import Image
from tests.replay.log import Kind
from tests.replay.promises import Promises
from tests.replay.recording import Recording
from tests.replay.scenarios import BESIDE
from tests.replay.states import Choice, choices

_SHOWN = 12


@dataclass(slots=True)
class Report:
    """What a replay has done, and the first broken promise."""

    call_count: int = 0
    """Calls that changed something."""
    state_count: int = 0
    """Choices of what a power cut keeps."""
    checked_count: int = 0
    """Different states that were checked."""
    violation: str | None = None
    image: Image | None = None
    """The state in which the promise is broken."""
    _seen: set[bytes] = field(default_factory=set)

    def is_new(self, image: Image, promises: Promises) -> bool:
        """Count a state. Return whether no equal state was checked with the same promises."""
        self.state_count += 1
        key = image.digest + promises.key
        if key in self._seen:
            return False
        self._seen.add(key)
        self.checked_count += 1
        return True


def replay(recording: Recording, place: Path, *, seed: int = 0, limit: int | None = None, use_one_in: int = 1) -> Report:
    """Check the states that a power cut could have left, until a promise is broken.

    `place` is a new folder for the states. `limit` is the most torn writes and pairs of changes at each call, of which
    `seed` chooses a sample. None means all. In one state of `use_one_in`, a check also looks if work can go on.
    """
    with without_threads():
        return asyncio.run(_replay(recording, place, random.Random(seed), limit, use_one_in))


async def _replay(recording: Recording, place: Path, sample: random.Random, limit: int | None, use_one_in: int) -> Report:
    report, promises, disk = Report(), Promises(), recording.disk
    check = CHECKS.get(recording.scenario, check_repository)
    for number, event in enumerate(recording.events):
        if event.kind is Kind.MARK:
            promises.take(event.name)
        elif disk.apply(event):
            report.call_count += 1
        else:
            continue
        for choice in choices(disk.pending, sample, limit=limit):
            image = disk.image(choice.kept, choice.tear)
            if not report.is_new(image, promises):
                continue
            is_used = report.checked_count % use_one_in == 0
            left = Left(place, recording.folder / BESIDE, promises, is_used=is_used)
            why = await _violation(check, image, left)
            if why is not None:
                report.violation, report.image = f"{why}\n{_told(disk, choice, number)}", image
                return report
    return report


async def _violation(check: Check, image: Image, left: Left) -> str | None:
    left.root.mkdir()
    try:
        image.write(left.root)
        await check(left)
    except ViolationError as error:
        return str(error)
    finally:
        shutil.rmtree(left.root)
    return None


def _told(disk: Disk, choice: Choice, number: int) -> str:
    """Say which changes a choice keeps and drops: the last ones."""
    kept = {change.number for change in choice.kept}
    lines = [f"{'kept' if change.number in kept else 'lost'}  {disk.describe(change)}" for change in disk.pending[-_SHOWN:]]
    if choice.tear is not None:
        lines.append(f"torn  {choice.tear}")
    return "\n".join([f"after call {number}, of {len(disk.pending)} changes that were not durable:", *lines])
