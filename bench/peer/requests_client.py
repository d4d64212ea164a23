"""Push and fetch by `requests`: requests_client.py URL push PATH JSON | URL fetch SERVER_PATH TARGET."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import requests  # type: ignore[import-untyped,unused-ignore]  # it is in an environment of its own

_HEADERS = {"Authorization": f"Bearer {os.environ['FILESTORE_TOKEN']}"}


def push(url: str, path: str, answer: Path) -> None:
    """Upload a file as a form; write the server's answer to `answer`."""
    with Path(path).open("rb") as file:
        response = requests.post(f"{url}/v3/pipeline_files", files={"pfile": file}, headers=_HEADERS, timeout=600)
    response.raise_for_status()
    answer.write_bytes(response.content)


def fetch(url: str, path: str, target: Path) -> None:
    """Download a file in pieces."""
    with requests.get(f"{url}/{path}", headers=_HEADERS, stream=True, timeout=600) as response, target.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_content(1 << 20):
            file.write(piece)


if __name__ == "__main__":
    {"push": push, "fetch": fetch}[sys.argv[2]](sys.argv[1], sys.argv[3], Path(sys.argv[4]))
