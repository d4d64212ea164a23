"""Check manifests: that one is intact, and that all its chunks are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from filestore.core.digest import DIGEST_AND_NUMBER, Buffer, Digest, ManifestHasher, manifest_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import ChunksMissing, InvalidManifest, LimitExceeded, NotFound
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.files import is_unreadable
from filestore.system.threads import in_cpu_thread, in_disk_thread

SLICE = 2048
"""The number of chunks that are looked up together."""
COUNT_FREE, COUNT_SIZE = 16384, 1024
"""A file may have so many chunks, and one more for so many bytes."""
_PIECE = 56 * SLICE
"""The number of chunks that are copied together: 4 MiB in packed form."""
_READ_SIZE = 128 << 10
_SIZE = DIGEST_AND_NUMBER.size
_KEY_SIZE = 8

Sizes = Callable[[Sequence[Digest]], Awaitable[Mapping[Digest, int]]]
"""A function that returns the decoded size of each digest that has a live row."""


async def read_manifest(store: ChunkStore, namespace: str, digest: Digest) -> bytes:
    """Return the canonical form of a manifest. Raises NotFound, StorageError, and InvalidManifest if it is damaged."""
    encoded = await store.manifest(namespace, digest)
    if encoded is None:
        raise NotFound(str(digest))
    if await in_cpu_thread(manifest_digest, encoded) != digest:
        raise damaged_manifest(digest)
    return encoded


def count_limit(size: int) -> int:
    """Return the most chunks that a file of `size` bytes may have.

    No chunker of ours makes as many: it makes at most one for 40 KiB (`docs/format.md`).
    """
    return COUNT_FREE + size // COUNT_SIZE


def check_count(manifest: Manifest) -> None:
    """Raise LimitExceeded for a manifest with absurdly many chunks for its size.

    Such a file costs its readers far more than its bytes: an opened file and a hash for each chunk.
    """
    limit = count_limit(manifest.size)
    if len(manifest.chunks) > limit:
        raise LimitExceeded(f"the number of chunks of a file of {manifest.size} bytes", len(manifest.chunks), limit)


def damaged_manifest(digest: Digest) -> InvalidManifest:
    """Return the error for a stored manifest whose bytes do not have its digest."""
    return InvalidManifest(f"the stored manifest {digest} is damaged; push the file again")


async def open_manifest(store: ChunkStore, namespace: str, digest: Digest, *, is_verified: bool) -> BinaryIO:
    """Open the canonical form of a manifest. The caller must close the file.

    With `is_verified`, it is read in small pieces and verified. Raises NotFound, StorageError, and InvalidManifest if it is
    damaged.
    """
    file = await store.open_manifest(namespace, digest)
    if file is None:
        raise NotFound(str(digest))
    try:
        if is_verified and await in_disk_thread(_digest_of, file) != digest:
            raise damaged_manifest(digest)
    except BaseException:
        file.close()
        raise
    return file


def _digest_of(file: BinaryIO) -> Digest | None:
    """Return the digest of the manifest that a file has. Return None if it cannot be read."""
    hasher = ManifestHasher()
    try:
        while piece := file.read(_READ_SIZE):
            hasher.update(piece)
    except OSError as error:
        if is_unreadable(error):
            return None
        raise
    return hasher.digest()


async def check_chunks(manifest: Manifest, sizes: Sizes) -> None:
    """Check that all chunks of a manifest have live rows with the right size. They are looked up in slices.

    The check ends when as many are absent as the error may list. So a manifest of absent chunks costs a few slices.

    Raises ChunksMissing if rows are missing, and InvalidManifest if a size is wrong.
    """
    if len(manifest.chunks) <= SLICE:
        # Without a change of threads, because most files are small.
        absent = await _absent(list(manifest.chunks), sizes)
    else:
        absent = await _absent_in_slices(manifest, sizes)
    if absent:
        raise ChunksMissing(*await in_cpu_thread(_texts, manifest, absent))


async def _absent_in_slices(manifest: Manifest, sizes: Sizes) -> set[Digest]:
    absent: set[Digest] = set()
    pieces = _pieces_in_order_of_digests(manifest)
    while (packed := await in_cpu_thread(next, pieces, None)) is not None:
        for start in range(0, len(packed), SLICE * _SIZE):
            absent |= await _absent(list(_unpacked(packed[start : start + SLICE * _SIZE])), sizes)
            if len(absent) >= ChunksMissing.limit:
                return absent
    return absent


async def _absent(chunks: Sequence[Chunk], sizes: Sizes) -> set[Digest]:
    found = await sizes(list({chunk.digest: None for chunk in chunks}))
    absent = set()
    for digest, size in chunks:
        kept = found.get(digest)
        if kept is None:
            absent.add(digest)
        elif kept != size:
            raise InvalidManifest(f"chunk {digest} has {kept} bytes, but the manifest states {size}")
    return absent


def _pieces_in_order_of_digests(manifest: Manifest) -> Iterator[memoryview]:
    """Yield the packed chunks in about the order of the rows in an index.

    Then each page of the index is read once, and not once for each slice. The chunks stay packed, because two million
    objects would take 400 MiB (I6). For the same reason, they are copied in pieces.
    """
    import numpy as np  # noqa: PLC0415  # on first use

    rows = np.frombuffer(manifest.chunks.encoded, np.uint8).reshape(-1, _SIZE)
    order = np.argsort(np.ascontiguousarray(rows[:, :_KEY_SIZE]).view(">u8").ravel())
    for start in range(0, len(order), _PIECE):
        yield memoryview(rows[order[start : start + _PIECE]].tobytes())


def _unpacked(packed: Buffer) -> Iterator[Chunk]:
    for digest, size in DIGEST_AND_NUMBER.iter_unpack(packed):
        yield Chunk(Digest(digest), size)


def _texts(manifest: Manifest, absent: set[Digest]) -> list[str]:
    """Return the absent digests as texts, in the order of the manifest."""
    return [str(digest) for digest in dict.fromkeys(chunk.digest for chunk in manifest.chunks if chunk.digest in absent)]
