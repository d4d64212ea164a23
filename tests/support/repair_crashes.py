"""Kill a repair at its n-th rename or commit, for every n: `python -m tests.support.repair_crashes FOLDER`.

Nothing else of it lasts.

The damaged repository `FOLDER/damaged` is copied to `FOLDER/<n>` for each. Prints the number of runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

from filestore.backends import connect, open_backend
from filestore.repository.maintenance.check import ReadPlan
from filestore.repository.maintenance.repair import RepairReport, RepositoryDonor, repair
from tests.support.crashes import Fuse, kill_at_every_call


async def repair_from(root: Path, donor: Path) -> RepairReport:
    """Repair a repository with copies from another one."""
    store, index = await open_backend(root)
    async with connect(donor, read_only=True) as repository:
        report = await repair(store, index, donors=[RepositoryDonor(repository)], read=ReadPlan())
    await index.close()
    await store.close()
    return report


def _light(fuse: Fuse) -> None:
    os.rename = fuse.before(os.rename)

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                fuse.burn()
            return super().execute(sql, *arguments)

    connect_plainly = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect_plainly(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


def _main(folder: Path) -> None:
    def attempt(place: int, fuse: Fuse) -> None:
        root = folder / str(place)
        shutil.copytree(folder / "damaged", root)
        _light(fuse)
        asyncio.run(repair_from(root, folder / "donor"))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
