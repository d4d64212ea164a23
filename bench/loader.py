"""The process that `bench/cold_start.py` measures: get a model, read all its tensors, and answer with a checksum.

python bench/loader.py STARTED URL TOKEN CACHE ID WEIGHTS WAY

STARTED is the monotonic time at which the process was started. WEIGHTS is the name of the weights in the directory ID,
or empty if ID is a file. The measurement is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.progress import Progress
from filestore.core.references import Directory, File
from filestore.repository.protocol import Repository
from filestore.runtime import Adapter

Read = Callable[[int, int], Awaitable[bytes | bytearray]]


class _Loader:
    """Reads the tensors of a safetensors file in the order in which they are in the file."""

    def __init__(self) -> None:
        self.first_tensor_time = 0.0
        self.tensors: dict[str, bytes | bytearray] = {}

    async def load(self, read: Read) -> None:
        length = int.from_bytes(await read(0, 8), "little")
        header = json.loads(await read(8, 8 + length))
        header.pop("__metadata__", None)
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = (8 + length + offset for offset in tensor["data_offsets"])
            self.tensors[name] = await read(start, stop)
            self.first_tensor_time = self.first_tensor_time or time.monotonic()

    def answer(self) -> int:
        """Return a checksum of all tensors."""
        total = 0
        for content in self.tensors.values():
            words = np.frombuffer(content, np.uint64, len(content) // 8)
            total += int(words.sum()) + sum(content[len(words) * 8 :])
        return total


async def _resolve(cache: Cache, repository: Repository, file_id: str, weights: str) -> tuple[_Loader, float, dict[str, int]]:
    """Get the model first, and then load it."""
    prepared = await Adapter(cache, repository).prepare([Directory(id=file_id) if weights else File(id=file_id)])
    whole_time = time.monotonic()
    descriptor = os.open(prepared.paths[0] / weights if weights else prepared.paths[0], os.O_RDONLY)

    async def read(start: int, stop: int) -> bytearray:  # as `StreamingFile.read`
        memory = bytearray(stop - start)
        view, done = memoryview(memory), 0
        while count := os.preadv(descriptor, [view[done:]], start + done):
            done += count
        return memory

    loader = _Loader()
    await loader.load(read)
    os.close(descriptor)
    sizes = {name: getattr(prepared, name) for name in ("bytes_received", "bytes_cached", "bytes_reused")}
    return loader, whole_time, sizes


async def _open(cache: Cache, file_id: str) -> tuple[_Loader, float, dict[str, int]]:
    """Load each tensor while the model arrives."""
    loader, reports = _Loader(), [Progress(0, 0, 0, 0, 0)]
    cached = await cache.cached(File(id=file_id))
    whole_time = 0.0
    async with cache.open(File(id=file_id), report=reports.append) as opened:

        async def note_whole() -> None:
            nonlocal whole_time
            await opened.whole()
            whole_time = time.monotonic()

        async with asyncio.TaskGroup() as group:
            group.create_task(note_whole())
            await loader.load(opened.read)
    sizes = {
        "bytes_received": reports[-1].moved,
        "bytes_cached": 0 if cached is None else cached.size,
        "bytes_reused": reports[-1].shared if cached is None else 0,
    }
    return loader, whole_time, sizes


async def _main() -> None:
    process_time = time.monotonic()
    started, url, token, folder, file_id, weights, way = sys.argv[1:]
    async with connect(url, token=token) as repository, Cache(Path(folder), repository) as cache:
        if way == "open":
            loader, whole_time, sizes = await _open(cache, file_id)
        else:
            loader, whole_time, sizes = await _resolve(cache, repository, file_id, weights)
        checksum = loader.answer()
        answer_time = time.monotonic()
    figures = {
        "sum": checksum,
        "process_seconds": process_time - float(started),
        "transfer_seconds": whole_time - process_time,
        "load_seconds": answer_time - whole_time,
        "first_tensor_seconds": loader.first_tensor_time - float(started),
        "total_seconds": answer_time - float(started),
    }
    print(json.dumps(figures | sizes))


if __name__ == "__main__":
    asyncio.run(_main())
