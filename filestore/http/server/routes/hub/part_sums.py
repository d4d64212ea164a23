"""Compute the digests of LFS objects while their parts arrive, so that little is left to do when the last part is there.

Some clients wait for the answer to a completion for ten seconds only. A process that received the first part of an object
goes on with the others as they arrive. What it has computed is lost with the process; then the completion begins again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from aiohttp import web

from filestore.errors import InvalidParts, ObjectMismatch, UploadNotFound
from filestore.http.server.lfs_objects import ContentSums
from filestore.http.server.routes.sdk.parts import UploadPart, unbroken
from filestore.http.server.routes.sdk.upload_store import ServedUpload
from filestore.system.threads import in_cpu_thread

KEPT_LIMIT = 256
"""Objects whose digests are being computed. Each takes 2 KiB. If one is dropped, its completion computes them."""
_SLICE_SIZE = 16 << 20
_PIECE_SIZE = 1 << 20


class _Progress:
    """How far the digests of one object are."""

    def __init__(self, sums: ContentSums) -> None:
        self.sums = sums
        self.tags: list[str] = []
        """The tags of the parts that were read, from the first one on."""
        self.is_broken = False
        """Whether a part was read in part."""
        self.lock = asyncio.Lock()


class PartSums:
    """The digests of the objects whose parts arrive at this process."""

    def __init__(self) -> None:
        self._progress: OrderedDict[str, _Progress] = OrderedDict()

    async def advance(self, upload: ServedUpload, sha256: bytes, size: int, number: int) -> None:
        """Read the parts that arrived, after the one with this number did. `sha256` and `size` are those of the object."""
        progress = self._progress.get(upload.id)
        if progress is None:
            if number != 1:
                return
            progress = self._add(upload.id, ContentSums(sha256, size))
        try:
            async with progress.lock:
                while more := unbroken(await upload.parts())[len(progress.tags) :]:
                    await _read(progress, more)
        except BaseException as error:
            progress.is_broken = True
            self._progress.pop(upload.id, None)
            # The completion finds it again, and answers with it.
            if not isinstance(error, (UploadNotFound, InvalidParts, ObjectMismatch)):
                raise

    async def sums(self, upload: ServedUpload, parts: Sequence[UploadPart], sha256: bytes, size: int) -> ContentSums:
        """Return the digests of all parts. Raises InvalidParts, ObjectMismatch."""
        progress = self._progress.pop(upload.id, None) or _Progress(ContentSums(sha256, size))
        async with progress.lock:
            if progress.is_broken or progress.tags != [part.tag for part in parts[: len(progress.tags)]]:
                progress = _Progress(ContentSums(sha256, size))
            await _read(progress, parts[len(progress.tags) :])
        return progress.sums

    def _add(self, upload_id: str, sums: ContentSums) -> _Progress:
        progress = self._progress[upload_id] = _Progress(sums)
        if len(self._progress) > KEPT_LIMIT:
            self._progress.popitem(last=False)
        return progress


PART_SUMS = web.AppKey("part_sums", PartSums)


async def _read(progress: _Progress, parts: Sequence[UploadPart]) -> None:
    for part in parts:
        offset = 0
        while offset < part.size:
            # In slices, between which others have their turn.
            offset = await in_cpu_thread(_add_slice, progress.sums, part, offset)
        progress.tags.append(part.tag)


def _add_slice(sums: ContentSums, part: UploadPart, offset: int) -> int:
    """Read a part from `offset` on, and return where the next slice begins."""
    memory = memoryview(bytearray(_PIECE_SIZE))
    end = min(offset + _SLICE_SIZE, part.size)
    while offset < end:
        piece = memory[: end - offset]
        part.read_into(piece, offset)
        sums.add(piece)
        offset += len(piece)
    return offset
