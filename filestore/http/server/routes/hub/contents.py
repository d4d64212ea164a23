"""Find stored content by its SHA-256: what a record or a file of a stored tree has, or an LFS object that arrived."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import InvalidManifest, NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread


class StoredContent(NamedTuple):
    """Content whose chunks are all here."""

    sha256: bytes
    blob_id: bytes
    size: int
    digest: Digest
    """Its file digest."""
    chunks: Sequence[Chunk]
    crc: int | None
    """Its CRC-32, if it is known."""


class Contents:
    """Finds contents for one request. Not for two tasks at a time."""

    def __init__(self, context: RequestContext, repository: LocalRepository) -> None:
        self._repository = repository
        self._uploads = context.request.app[ASSEMBLY].uploads
        self._latest: Manifest | None = None
        """The manifest that was read last. Neighbours often lie in one tree."""
        self._ends = array("Q")
        """Where its chunks begin, and where the last one ends."""

    async def has(self, sha256: bytes, size: int) -> bool:
        """Return whether content with this SHA-256 and this size is here."""
        found = await self.find(sha256)
        return found is not None and found.size == size

    async def find(self, sha256: bytes) -> StoredContent | None:
        """Return the content with this SHA-256, or None.

        Its chunks are in the store, and the collection leaves them alone for the grace period. Raises StorageError.
        """
        return await self._recorded(sha256) or await self._arrived(sha256)

    async def _recorded(self, sha256: bytes) -> StoredContent | None:
        row = (await self._repository.contents_by_sha256([sha256])).get(sha256)
        manifest = None if row is None else await self._manifest(row.source)
        if row is None or manifest is None:
            return None
        chunks = _chunks_between(manifest, self._ends, row.start, row.start + row.size)
        if chunks is None or not await self._are_live(chunks):
            return None
        # The checksum saves a commit to read the content.
        known = await self._uploads.find_object(self._repository.namespace, sha256)
        return StoredContent(row.sha256, row.blob_id, row.size, row.digest, chunks, None if known is None else known.crc)

    async def _arrived(self, sha256: bytes) -> StoredContent | None:
        known = await self._uploads.find_object_with_manifest(self._repository.namespace, sha256)
        if known is None or not await self._are_live(known[1].chunks):
            return None
        found, manifest = known
        return StoredContent(sha256, found.blob_id, found.size, found.digest, manifest.chunks, found.crc)

    async def _manifest(self, digest: Digest) -> Manifest | None:
        if self._latest is None or self._latest.digest != digest:
            try:
                encoded = await self._repository.manifest(digest)
            except (NotFound, InvalidManifest):
                return None
            self._latest, self._ends = await in_cpu_thread(_parsed, encoded)
        return self._latest

    async def _are_live(self, chunks: Sequence[Chunk]) -> bool:
        return not await self._repository.missing([chunk.digest for chunk in chunks])


def _parsed(encoded: bytes) -> tuple[Manifest, array[int]]:
    manifest = Manifest.parse(encoded)
    return manifest, array("Q", accumulate(manifest.chunks.sizes(), initial=0))


def _chunks_between(manifest: Manifest, ends: Sequence[int], start: int, end: int) -> Sequence[Chunk] | None:
    """Return the chunks with the content from `start` to `end`, or None if it does not begin and end with chunks."""
    first, after = bisect_left(ends, start), bisect_left(ends, end)
    if after >= len(ends) or (ends[first], ends[after]) != (start, end):
        return None
    # A commit names many contents, and may not keep the manifest of each tree that they lie in.
    return manifest.chunks.between(first, after).detached()
