"""Share parsed manifests between the readers of a server process, within a limit of memory (I6)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from filestore.core.digest import Digest
from filestore.core.manifest import HEADER_SIZE, Manifest
from filestore.errors import InvalidManifest
from filestore.http.server.shared_loads import Key, SharedLoad, SharedLoads
from filestore.repository.local import LocalRepository
from filestore.repository.manifest_check import damaged_manifest
from filestore.system.threads import in_cpu_thread, in_disk_thread

MANIFESTS_LIMIT = 80 << 20
"""Bytes of memory for the manifests of a process. The largest manifest has 64 MiB, and its offsets have 15 MiB."""
_ENTRY_SIZE = 36
_OFFSET_SIZE = 8
_OBJECTS_SIZE = 2048
"""Bytes of the objects of one manifest, apart from its table and offsets."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A manifest, and where its chunks begin in the file. The offsets have 8 bytes each."""

    manifest: Manifest
    offsets: Sequence[int]


class SharedManifests:
    """The parsed manifests of one process. Readers of the same file use one copy, which is read once.

    If the readers in progress use all memory, a further one waits. It holds up no reader whose manifest fits.
    """

    def __init__(self, *, wait_seconds: float, limit: int = MANIFESTS_LIMIT) -> None:
        """`wait_seconds` is how long a reader waits for memory."""
        refusal = "readers of other large files use all memory for lists of chunks"
        self._loads = SharedLoads[Layout]("manifests", wait_seconds=wait_seconds, limit=limit, refusal=refusal)

    @property
    def size(self) -> int:
        """Bytes of memory that all manifests take."""
        return self._loads.size

    @asynccontextmanager
    async def reading(self, repository: LocalRepository, digest: Digest) -> AsyncIterator[Layout]:
        """Give the layout of a file during the block.

        Raises NotFound, StorageError, InvalidManifest if the stored manifest is damaged, and Busy if other readers use all
        memory for too long.
        """
        key = (repository.namespace, digest)
        async with self._loads.using(key, lambda: self._begin(repository, key)) as layout:
            yield layout

    async def _begin(self, repository: LocalRepository, key: Key) -> SharedLoad[Layout] | None:
        """Begin to read a manifest. Return None if it does not fit into the memory now."""
        file = await repository.open_manifest(key[1], is_verified=False)
        size = file.seek(0, os.SEEK_END)
        size += max(size - HEADER_SIZE, 0) // _ENTRY_SIZE * _OFFSET_SIZE + _OBJECTS_SIZE
        if (begun := self._loads.get(key)) is not None or not self._loads.make_room(size):
            file.close()
            return begun
        return self._loads.add(key, _load(file, key[1]), size=size)


async def _load(file: BinaryIO, digest: Digest) -> Layout:
    return await in_cpu_thread(_layout, await in_disk_thread(_content, file), digest)


def _content(file: BinaryIO) -> bytes:
    with file:
        file.seek(0)
        return file.read()


def _layout(encoded: bytes, digest: Digest) -> Layout:
    try:
        manifest = Manifest.parse(encoded)
    except InvalidManifest:
        raise damaged_manifest(digest) from None
    if manifest.digest != digest:
        raise damaged_manifest(digest)
    return Layout(manifest, manifest.offset_table())
