"""A user who reads a repository of another user's: `python -m tests.support.readers FOLDER TARGET`, started by root.

For each line on standard input, `read` or `open`, it does that once, and prints one line of JSON: what it found, or the error.
`read` lists and fetches all, always through the same connection; `open` opens FOLDER for writing. What it fetches goes to
TARGET, which must be its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np  # noqa: F401  # all that is needed is imported while it can be read

from filestore.backends import connect
from filestore.errors import FilestoreError
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch

USER = 65534
"""Nobody, by the number that it has everywhere."""


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
            print(json.dumps(said), flush=True)  # noqa: T201  # what its parent waits for


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
