"""Fetch a file in a process of its own: `python -m tests.support.fetch_memory URL TOKEN ID TARGET`.

It prints one line of JSON: the name of the error, or an empty text, and the most memory that the process had, in bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from filestore.backends import connect
from filestore.errors import FilestoreError
from filestore.transfer.fetch import fetch


def peak_of(process: int | str) -> int:
    """Return the most memory that a process had so far, in bytes. That of the program before an exec does not count."""
    lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    [size] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(size) << 10


async def _main(url: str, token: str, file_id: str, target: str) -> None:
    error = ""
    async with connect(url, token=token) as repository:
        try:
            await fetch(repository, file_id, target=target)
        except FilestoreError as failed:
            error = type(failed).__name__
    print(json.dumps({"error": error, "memory": peak_of("self")}))  # noqa: T201  # its parent waits for this line


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
