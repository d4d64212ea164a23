"""An unpack that is killed at its n-th system call, for every n: `python -m tests.support.unpack_crashes FOLDER WAY`.

WAY is new, inside (an empty folder) or force (over an older tree). Each time the same unpack runs again, and must complete: the
tree is whole, and nothing else is left. Prints how many there were.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

from filestore.backends import connect
from filestore.objects import Reference
from filestore.unpack import unpack
from tests.support.archives import Forged, forged
from tests.support.generator import octets
from tests.support.trees import plant, standing
from tests.support.unpacking import stored, things_in

NAME = "archive.zip"
CALLS = ("open", "pwrite", "mkdir", "symlink", "rename", "unlink", "rmdir", "fsync")
ARCHIVE = forged(
    [
        Forged("large.bin", octets(1, 70_000)),
        Forged("folder/packed.txt", b"packed " * 3000, deflated=True),
        Forged("folder/empty/", mode=0o40755),
        Forged("run.sh", b"#!/bin/sh\n", mode=0o100755),
        Forged("link", b"folder/packed.txt", mode=0o120777),
    ]
)
OLDER = {"large.bin": b"of an older version", "gone.txt": b"of an older version", "folder/packed.txt": b"packed"}


def _light(length: int) -> None:
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

    for name in CALLS:
        setattr(os, name, burning(getattr(os, name)))


async def _prepare(root: Path) -> None:
    async with connect(str(root), create=True) as repository:
        await stored(repository, ARCHIVE, name=NAME, chunk_size=30_000)


async def _unpack(root: Path, target: Path, *, force: bool, fuse: int | None) -> None:
    async with connect(str(root)) as repository:
        record = await repository.record(Reference(name=NAME))
        if fuse is not None:
            _light(fuse)
        await unpack(repository, record, target, force=force)


def _in_child(work: Coroutine[Any, Any, None]) -> int:
    """The exit status of a process of its own. Forked, so that it starts in no time; there are no threads here."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(work)
        except BaseException as error:  # noqa: BLE001  # to be told, and not to return into the parent's stack
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
    """Kill one process after the other, until one is done before it comes to that."""
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
            _clear(target)  # it was killed when all was done
        if _in_child(_unpack(root, target, force=way == "force", fuse=None)):
            sys.exit(f"the unpack did not complete after it was killed at call {fuse}")
        _check(place, target)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
