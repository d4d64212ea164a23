"""Record the system calls of a scenario in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from tests.replay.disk import SHARED_MEMORY, Disk
from tests.replay.log import Event, parse_log
from tests.replay.scenarios import DISK, SCENARIOS

_SOURCE = Path(__file__).with_name("recorder.c")
_REPOSITORY = Path(__file__).parents[2]
_FLAGS = ("-O1", "-Wall", "-Werror", "-shared", "-fPIC")


@dataclass(frozen=True, slots=True)
class Recording:
    """The calls of a scenario, and the folder in which it ran. `disk` is what was there before."""

    scenario: str
    folder: Path
    disk: Disk
    events: list[Event]


def fast_folder() -> str | None:
    """Return a folder in memory, or None if the system has none that can be written to."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def build_recorder(folder: Path) -> Path:
    """Compile the recorder, and return its path."""
    library = folder / "recorder.so"
    subprocess.run(["gcc", *_FLAGS, "-o", library, _SOURCE, "-lpthread"], check=True)
    return library


class IncompleteRecordingError(Exception):
    """All recorded calls together do not lead to what is on the disk, so a call was not recorded."""


def record(scenario: str, folder: Path, *, recorder: Path, fault: str = "") -> Recording:
    """Prepare a scenario in `folder`, an empty folder, run it, and return its calls.

    Raises IncompleteRecordingError.
    """
    asyncio.run(SCENARIOS[scenario].prepare(folder))  # type: ignore[arg-type]  # an Awaitable that is a coroutine
    disk = Disk(folder / DISK)
    log = folder / "log"
    environ = {**os.environ, "LD_PRELOAD": str(recorder), "TEST_REPLAY_LOG": str(log), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.replay.driver", scenario, str(folder), *([fault] if fault else [])]
    subprocess.run(command, check=True, env=environ, cwd=_REPOSITORY)
    events = list(parse_log(log.read_bytes()))
    _check_complete(deepcopy(disk), events, folder / DISK)
    return Recording(scenario, folder, disk, events)


def _check_complete(disk: Disk, events: Iterable[Event], root: Path) -> None:
    for event in events:
        disk.apply(event)
    image = disk.image()
    expected = {**image.files, **image.links, **dict.fromkeys(image.folders)}
    found = _standing(root)
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path, b"") != found.get(path, b""))
    if wrong or expected.keys() != found.keys():
        raise IncompleteRecordingError(f"these differ: {wrong}")


def _standing(root: Path) -> dict[str, bytes | str | None]:
    """Return what is below a folder: bytes of files, targets of links, and None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        if path.name.endswith(SHARED_MEMORY):
            continue
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = os.fspath(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found
