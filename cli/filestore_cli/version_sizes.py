"""What each version of a name adds over the older ones: the column ADDS of `filestore ls NAME`."""

from __future__ import annotations

from collections.abc import Sequence

from filestore.core.digest import DIGEST_AND_NUMBER, Digest
from filestore.core.manifest import CHUNK_LIMIT, Chunks, Manifest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import InvalidContent, NotFound
from filestore.repository.protocol import Repository
from filestore.system.threads import in_cpu_thread, task_group

VERSIONS_LIMIT = 200
"""The most versions of a name whose manifests are read."""
MANIFESTS_LIMIT = 16 << 20
"""The most bytes of their manifests together. The chunks of these take about 60 MiB of memory."""
_AT_ONCE = 4
"""Manifests that are read at the same time."""


async def bytes_added(repository: Repository, name: str, records: Sequence[Record], *, is_whole: bool) -> dict[str, int]:
    """Return, by the ids of `records`, the bytes of the chunks that no older version of the name has.

    The bytes are those of the content, before it is compressed. A chunk that a version has twice counts once. `records` are the
    newest versions, the newest first; `is_whole` says that there are no others.

    A version whose manifest cannot be read is left out. The result is empty if there are more versions than `VERSIONS_LIMIT`, or
    if their manifests are larger than `MANIFESTS_LIMIT`. Raises StorageError, TransferError.
    """
    if not is_whole:
        page = await repository.versions(Reference.of_name(name), limit=VERSIONS_LIMIT)
        if page.total > VERSIONS_LIMIT:
            return {}
        records = page.records
    least = sum(record.size // CHUNK_LIMIT * DIGEST_AND_NUMBER.size for record in records)
    if len(records) > VERSIONS_LIMIT or least > MANIFESTS_LIMIT:
        return {}
    added: dict[str, int] = {}
    seen: set[bytes] = set()
    size = 0
    oldest_first = records[::-1]
    for start in range(0, len(oldest_first), _AT_ONCE):
        some = oldest_first[start : start + _AT_ONCE]
        async with task_group() as group:
            reading = [group.create_task(_read(repository, record.digest)) for record in some]
        for record, read in zip(some, reading, strict=True):
            manifest = read.result()
            if manifest is None:
                continue
            size += len(manifest.encoded)
            if size > MANIFESTS_LIMIT:
                return {}
            added[record.id] = await in_cpu_thread(_note, manifest.chunks, seen)
    return added


async def _read(repository: Repository, digest: Digest) -> Manifest | None:
    try:
        return await in_cpu_thread(Manifest.parse, await repository.manifest(digest))
    except (NotFound, InvalidContent):
        return None


def _note(chunks: Chunks, seen: set[bytes]) -> int:
    """Add chunks to those that were seen. Return the bytes of the new ones."""
    size = 0
    for digest, chunk_size in chunks:
        # Half of a digest tells the chunks of a name apart.
        key = bytes(digest[:16])
        if key not in seen:
            seen.add(key)
            size += chunk_size
    return size
