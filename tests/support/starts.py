"""Measure the start of a runtime in a process of its own.

Usage: `python -m tests.support.starts URL TOKEN CACHE ID [--stream]`.

Prepares the directory ID and loads its weights with safetensors. With --stream, it reads the tensors of the file ID one
after the other while the file arrives. Prints the measurement as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict

import numpy as np
from safetensors.numpy import load_file

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.references import Directory, File
from filestore.runtime import Adapter


async def _prepared(url: str, token: str, cache: str, file_id: str) -> dict[str, object]:
    async with connect(url, token=token) as repository:
        prepared = await Adapter(Cache(cache, repository), repository).prepare([Directory(id=file_id)])
        started = time.monotonic()
        tensors = load_file(prepared.paths[0] / "model.safetensors")
        sums = {name: float(np.abs(tensor).sum(dtype=np.float64)) for name, tensor in tensors.items()}
        load_seconds = time.monotonic() - started
    return asdict(prepared) | {"paths": [str(path) for path in prepared.paths], "load_seconds": load_seconds, "sums": sums}


async def _streamed(url: str, token: str, cache: str, file_id: str) -> dict[str, object]:
    async with connect(url, token=token) as repository:
        started = time.monotonic()
        first_seconds = None
        sums = {}
        async with Cache(cache, repository).open(File(id=file_id)) as opened:
            length = int.from_bytes(await opened.read(0, 8), "little")
            header = json.loads(await opened.read(8, 8 + length))
            header.pop("__metadata__", None)
            for name, described in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                start, stop = (8 + length + offset for offset in described["data_offsets"])
                tensor = np.frombuffer(await opened.read(start, stop), np.float32 if described["dtype"] == "F32" else np.int64)
                first_seconds = first_seconds or time.monotonic() - started
                sums[name] = float(np.abs(tensor).sum(dtype=np.float64))
            path = await opened.whole()
        return {"path": str(path), "first_seconds": first_seconds, "seconds": time.monotonic() - started, "sums": sums}


def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "token", "cache", "file_id"):
        parser.add_argument(name)
    parser.add_argument("--stream", action="store_true")
    given = parser.parse_args()
    start = _streamed if given.stream else _prepared
    sys.stdout.write(json.dumps(asyncio.run(start(given.url, given.token, given.cache, given.file_id))))


if __name__ == "__main__":
    _main()
