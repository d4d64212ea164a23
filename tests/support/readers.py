"""Read another user's repository: `python -m tests.support.readers FOLDER TARGET`, started by root.

For each line on standard input, `read` or `open`, it does that once, and prints one line of JSON: the result, or the
error. `read` lists and fetches everything, always on the same connection. `open` opens FOLDER for writing. What it
fetches is written to TARGET, which must belong to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np  # noqa: F401  # import everything while this user can read it

from filestore.backends import connect
from filestore.errors import FilestoreError
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch

USER = 65534
"""The user id of `nobody` on every system."""


async def _read(repository: Repository, target: Path) -> dict[str, object]:
    records = await repository.records()
    for record in records:
        await fetch(repository, record, target=target / record.name)
    return {"names": [record.name for record in records]}


async def _open(folder: str) -> None:
    async with connect(folder):
        pass


async def _main(folder: str, target: Path) -> None:
    async with AsyncExitStack() as stack:
        repository: Repository | None = None
        for line in sys.stdin:
            try:
                if line == "open\n":
                    await _open(folder)
                if repository is None:
                    repository = await stack.enter_async_context(connect(folder, read_only=True))
                said = await _read(repository, target)
            except FilestoreError as error:
                said = {"error": type(error).__name__, "sentence": str(error)}
            print(json.dumps(said), flush=True)  # noqa: T201  # its parent waits for this line


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
