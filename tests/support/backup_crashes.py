"""Kill a backup or a restore at its n-th system call or SQL statement: `python -m tests.support.backup_crashes WHAT FOLDER`.

WHAT is `backup`, `restore` (into a new folder) or `restore-over` (over a folder without its index). Works on FOLDER/<n>,
and prints the number of runs. The last run is not killed.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from filestore.backends import connect
from filestore.repository.maintenance.backup import back_up
from filestore.repository.maintenance.restore import restore
from tests.support.crashes import Fuse, kill_at_every_call, light
from tests.support.frames import contents, encoded, manifest

CHUNKS = contents(2, size=500)
STEP = 5
"""Only every fifth call is struck: most come in groups of open, write and sync."""


async def _push(root: Path, name: str, content: bytes) -> None:
    async with connect(root, create=True) as repository:
        await repository.put([encoded(content)])
        await repository.commit(manifest([content]).encoded, name=name)


async def _prepare(folder: Path, *, is_whole: bool) -> None:
    """Make a backup of one file, and of both if `is_whole`."""
    await _push(folder / "root", "first", CHUNKS[0])
    await back_up(folder / "root", folder / "backup", full=True)
    await _push(folder / "root", "second", CHUNKS[1])
    if is_whole:
        await back_up(folder / "root", folder / "backup", full=True)


def _main(what: str, folder: Path) -> None:
    made = folder / "made"

    # In a process of its own: a fork must not find its threads.
    def prepare(_: int, __: Fuse) -> None:
        asyncio.run(_prepare(made, is_whole=what != "backup"))

    kill_at_every_call(prepare)

    def attempt(place: int, _: Fuse) -> None:
        own = folder / str(place)
        shutil.copytree(made, own)
        if what == "restore-over":
            shutil.copytree(made / "root", own / "new")
            (own / "new/index.sqlite").unlink()
        light(Fuse(place * STEP))
        if what == "backup":
            asyncio.run(back_up(own / "root", own / "backup", full=True))
        else:
            asyncio.run(restore(own / "backup", own / "new"))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
