"""Give the chunks of a local file or directory to a repair of a repository, which may have lost them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import Manifest
from filestore.format.codec import Encoder, Frame, frame_limit
from filestore.system.buffers import BufferPool
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.sources.file import WINDOW_SIZE, FileSource, Source, scan_and_hash
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk

_BATCH_SIZE = 16 << 20
_BATCH_COUNT = 1024


class PathDonor:
    """A file or directory that is cut like in a push. Each byte is read once, and the chunks that are needed once more."""

    def __init__(self, path: Path, *, chunking_version: int) -> None:
        self._path = path
        self._chunking_version = chunking_version

    @property
    def name(self) -> str:
        return str(self._path)

    async def frames(self, wanted: Mapping[Digest, int]) -> AsyncIterator[list[Frame]]:
        """Read, cut and hash the source, then read and encode the chunks that are wanted.

        Raises SourceError if the source cannot be read.
        """
        with ExitStack() as stack:
            source = await self._open(stack)
            manifest = await _scan(source)
            found = await in_cpu_thread(_offsets, manifest, wanted)
            encoder = Encoder()
            for digests in batched_by_size(
                found, lambda digest: frame_limit(wanted[digest]), limit=_BATCH_SIZE, count_limit=_BATCH_COUNT
            ):
                yield await in_cpu_thread(
                    _encoded, source, encoder, {digest: (found[digest], wanted[digest]) for digest in digests}
                )

    async def manifest(self, digest: Digest) -> bytes | None:
        """Return the manifest that a push would commit, if it is the one that is asked for."""
        with ExitStack() as stack:
            manifest = await _scan(await self._open(stack))
        return manifest.encoded if manifest.digest == digest else None

    async def _open(self, stack: ExitStack) -> Source:
        return await in_disk_thread(_open_source, stack, self._path, self._chunking_version)


def _open_source(stack: ExitStack, path: Path, chunking_version: int) -> Source:
    if path.is_dir():
        entries = walk(path, symlinks=Symlinks.INSIDE, include=(), exclude=())
        return stack.enter_context(TreeSource(entries, chunking_version=chunking_version))
    return stack.enter_context(FileSource(path, chunking_version=chunking_version))


async def _scan(source: Source) -> Manifest:
    async with BufferPool(count=1, size=WINDOW_SIZE).take() as buffer:
        while not source.is_finished:
            await in_cpu_thread(scan_and_hash, source, buffer)
    return await in_cpu_thread(source.manifest)


def _offsets(manifest: Manifest, wanted: Mapping[Digest, int]) -> dict[Digest, int]:
    return {
        chunk.digest: offset
        for offset, chunk in zip(manifest.offsets(), manifest.chunks, strict=True)
        if wanted.get(chunk.digest) == chunk.size
    }


def _encoded(source: Source, encoder: Encoder, places: Mapping[Digest, tuple[int, int]]) -> list[Frame]:
    frames = []
    for digest, (offset, size) in places.items():
        content = memoryview(bytearray(size))
        source.read_into(content, offset)
        if chunk_digest(content) == digest:  # otherwise the source has just changed
            out = memoryview(bytearray(frame_limit(size)))
            frames.append(Frame(digest, out[: encoder.encode(content, out)]))
    return frames
