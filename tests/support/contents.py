"""Content of many tiny chunks, as no file has it."""

from __future__ import annotations

from pathlib import Path

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.transfer.sources.file import Window

CHUNK_SIZE = 1024


class KnownContent:
    """A `Content` whose chunks are all known from an earlier push, so that nothing of it is scanned.

    Each chunk holds its own number, in 1 KiB.
    """

    path = Path("known")
    read = 0
    file_count = files_done = 1
    is_finished = True

    def __init__(self, count: int) -> None:
        self.size = self.cached_size = count * CHUNK_SIZE
        self._content = b"".join(number.to_bytes(CHUNK_SIZE, "little") for number in range(count))

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002
        return 1

    def scan(self, _: memoryview, /) -> list[Window]:
        raise AssertionError("its scan is finished")

    def manifest(self) -> Manifest:
        starts = range(0, self.size, CHUNK_SIZE)
        chunks = (Chunk(chunk_digest(self._content[start : start + CHUNK_SIZE]), CHUNK_SIZE) for start in starts)
        return Manifest.build(chunks, chunking_version=CHUNKING_VERSION)

    def read_into(self, memory: memoryview, offset: int) -> None:
        memory[:] = self._content[offset : offset + len(memory)]

    def check_unchanged(self) -> None:
        pass
