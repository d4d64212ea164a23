"""Fetch a file in a process of its own: `python -m tests.support.fetch_memory URL TOKEN ID TARGET`.

It prints one line of JSON: the name of the error, or an empty text, and the most memory that the process had, in bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from filestore.backends import connect
from filestore.errors import FilestoreError
from filestore.transfer.fetch import fetch
from tests.support.process_memory import memory


async def _main(url: str, token: str, file_id: str, target: str) -> None:
    error = ""
    async with connect(url, token=token) as repository:
        try:
            await fetch(repository, file_id, target=target)
        except FilestoreError as failed:
            error = type(failed).__name__
    print(json.dumps({"error": error, "memory": memory(os.getpid(), "VmHWM")}))  # noqa: T201  # its parent waits for this line


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
