"""Kill a fetch of a tree at its n-th system call, for every n: `python -m tests.support.fetch_tree_crashes FOLDER WAY`.

WAY is new, inside (an empty folder) or force (over an older tree). After each kill the same fetch runs again and must
complete: the tree is whole, and nothing else is left. Prints the number of runs.

The other ways replace a tree by more than one rename: mounted (over the content of a mounted folder), image (over a
folder that came with a container image) and staged (the staging folder came with the image, and the target is new).
They are killed at every call that changes a name, after everything is staged.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from filestore.backends import connect
from filestore.core.references import Reference
from filestore.errors import TargetError
from filestore.system.files import sync_tree
from filestore.transfer import target as targets
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.target import staging_folder
from tests.support.archives import Forged, forged
from tests.support.disks import overlay, small_disk
from tests.support.fetching_trees import stored, things_in
from tests.support.frames import manifest
from tests.support.generator import octets
from tests.support.trees import Planted, plant, standing

NAME = "archive.zip"
CALLS = ("open", "pwrite", "mkdir", "symlink", "rename", "unlink", "rmdir", "fsync")
CHANGES = ("mkdir", "symlink", "rename", "unlink", "rmdir")
"""The calls that change a name. A kill between two of them always finds the same state."""
ARCHIVE = forged(
    [
        Forged("large.bin", octets(1, 70_000)),
        Forged("folder/packed.txt", b"packed " * 3000, deflated=True),
        Forged("folder/empty/", mode=0o40755),
        Forged("run.sh", b"#!/bin/sh\n", mode=0o100755),
        Forged("link", b"folder/packed.txt", mode=0o120777),
    ]
)
CHUNK_SIZE = 30_000
DIGEST = manifest([ARCHIVE[start : start + CHUNK_SIZE] for start in range(0, len(ARCHIVE), CHUNK_SIZE)]).digest
OLDER = {"large.bin": b"of an older version", "gone.txt": b"of an older version", "folder/packed.txt": b"packed"}
OLD: dict[str, Planted] = {"large.bin": b"old", "folder/packed.txt": b"packed", "gone/deep/1": b"1"}


def _light(length: int, calls: Sequence[str] = CALLS) -> None:
    """Kill this process at the n-th call, as `kill -9` does."""
    lock = threading.Lock()
    left = length

    def burning(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            with lock:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in calls:
        setattr(os, name, burning(getattr(os, name)))


async def _prepare(root: Path) -> None:
    async with connect(str(root), create=True) as repository:
        await stored(repository, ARCHIVE, name=NAME, chunk_size=CHUNK_SIZE)


async def _unpack(root: Path, target: Path, *, force: bool, fuse: int | None) -> None:
    async with connect(str(root)) as repository:
        record = await repository.record(Reference(name=NAME))
        if fuse is not None:
            _light(fuse)
        await fetch_tree(repository, record, target=target, force=force)


def _in_child(work: Coroutine[Any, Any, None]) -> int:
    """Return the exit status of `work` in a forked process. A fork starts fast, and there are no threads here."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(work)
        except BaseException as error:  # noqa: BLE001  # it is printed here, since the child must not return into the parent's code
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    work.close()
    return os.waitpid(pid, 0)[1]


def _clear(target: Path) -> None:
    shutil.rmtree(target)
    target.mkdir()


def _check(place: Path, target: Path) -> None:
    assert things_in(ARCHIVE) == standing(target), f"{target}: {sorted(standing(target))}"
    assert [target] == list(place.iterdir()), sorted(path.name for path in place.iterdir())


def main(folder: Path, way: str) -> None:
    """Kill one process after the other, until one reaches its end."""
    root = folder / "root"
    assert _in_child(_prepare(root)) == 0
    for fuse in count(1):
        place = folder / "place"
        target = place / "target"
        place.mkdir()
        if way == "inside":
            target.mkdir()
        elif way == "force":
            plant(target, OLDER)
        status = _in_child(_unpack(root, target, force=way == "force", fuse=fuse))
        if status == 0:
            _check(place, target)
            sys.stdout.write(str(fuse))
            return
        if not os.WIFSIGNALED(status):
            sys.exit(f"the unpack failed when it was to be killed at call {fuse}")
        if way != "inside" and target.exists():
            assert standing(target) in (things_in(ARCHIVE), OLDER), f"half a tree appeared at call {fuse}"
        if way != "force" and target.exists() and standing(target) == things_in(ARCHIVE):
            _clear(target)  # it was killed after everything was done
        if _in_child(_unpack(root, target, force=way == "force", fuse=None)):
            sys.exit(f"the unpack did not complete after it was killed at call {fuse}")
        _check(place, target)
        shutil.rmtree(place)


@contextmanager
def _place(folder: Path, way: str) -> Iterator[Path]:
    """Yield the folder of the target, as it is before the fetch that is killed."""
    place = folder / "place"
    if way == "mounted":
        place.mkdir()
        with small_disk(place / "target", "size=8m"):
            plant(place / "target", OLD)
            yield place
    else:
        image = folder / "image"
        image.mkdir()
        if way == "image":
            plant(image / "target", OLD)
        else:
            plant(image / staging_folder(image / "target", DIGEST).name, things_in(ARCHIVE))
        with overlay(place, image):
            yield place
        shutil.rmtree(image)
        shutil.rmtree(folder / "place-layer")
    shutil.rmtree(place)


async def _replace(root: Path, target: Path, *, fuse: int) -> None:
    """Replace a tree, and be killed at the n-th change of a name after everything is staged."""

    def sync_then_light(staging: Path) -> None:
        syncing.stop()
        sync_tree(staging)
        _light(fuse, CHANGES)

    syncing = patch.object(targets, "sync_tree", sync_then_light)
    syncing.start()
    await _unpack(root, target, force=True, fuse=None)


async def _look(root: Path, target: Path, *, fuse: int | None) -> None:
    """Run the next command. Without `--force` it is refused if a tree is there."""
    if fuse is not None:
        _light(fuse, CHANGES)
    with suppress(TargetError):
        await _unpack(root, target, force=False, fuse=None)


def _seen(target: Path) -> dict[str, Planted]:
    """Return what is at a target, without hidden names of filestore."""
    return {name: thing for name, thing in standing(target).items() if ".filestore-" not in name} if target.exists() else {}


def replacements(folder: Path, way: str) -> None:
    """After each kill, the next command finds the whole old tree or the whole new one, also if it is killed too."""
    root = folder / "root"
    assert _in_child(_prepare(root)) == 0
    before = {} if way == "staged" else OLD
    for fuse in count(1):
        with _place(folder, way) as place:
            target = place / "target"
            status = _in_child(_replace(root, target, fuse=fuse))
            if not os.WIFSIGNALED(status):
                assert status == 0, f"the unpack failed when it was to be killed at change {fuse}"
                _check(place, target)
                sys.stdout.write(str(fuse))
                return
            if fuse % 2:
                _in_child(_look(root, target, fuse=1 + fuse * 5 % 11))
            if _in_child(_look(root, target, fuse=None)):
                sys.exit(f"the next command failed after a kill at change {fuse}")
            found = _seen(target)
            assert found in (before, things_in(ARCHIVE)), f"a mixture after a kill at change {fuse}: {sorted(found)}"
            is_done = found == things_in(ARCHIVE) == standing(target)
            if not is_done and _in_child(_unpack(root, target, force=True, fuse=None)):
                sys.exit(f"--force did not work after a kill at change {fuse}")
            _check(place, target)


if __name__ == "__main__":
    (main if sys.argv[2] in {"new", "inside", "force"} else replacements)(Path(sys.argv[1]), sys.argv[2])
