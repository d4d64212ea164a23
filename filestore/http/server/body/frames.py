"""Send stored frames as they are. Only a few of them are open at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import BinaryIO, Self

from filestore.core.digest import Digest
from filestore.errors import DamagedChunk
from filestore.http import wire
from filestore.http.server.body.writer import BodyWriter, FilePart
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_disk_thread, shield_until_done

OPEN_TOGETHER = 16
"""Frames that one group has. The files of the next group are opened while this group is sent."""

_Files = list[BinaryIO | None]


class Frames:
    """Send the frames of an answer. Call `entries` to find out what the answer will contain, then `send`.

    The end of the block closes all files.
    """

    def __init__(self, repository: LocalRepository, digests: Sequence[Digest]) -> None:
        self._repository = repository
        self._digests = digests
        self._groups = [digests[start : start + OPEN_TOGETHER] for start in range(0, len(digests), OPEN_TOGETHER)]
        self._open: dict[int, asyncio.Task[_Files]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for place in list(self._open):
            await shield_until_done(self._close(place))

    async def entries(self) -> list[wire.BatchEntry]:
        """Return an entry with the size of its frame for each digest. The size of an absent frame is 0.

        The head of the answer needs all sizes, and not all files can be open at once. So the sizes of more than one
        group come from the repository.
        """
        if len(self._groups) == 1:
            sizes = [_size(file) for file in await self._files_of_group(0)]
        else:
            self._begin_opening(0)
            sizes = await self._repository.frame_sizes(self._digests)
        return list(map(wire.BatchEntry, self._digests, sizes))

    async def send(self, answer: BodyWriter, entries: Sequence[wire.BatchEntry]) -> None:
        """Send the frames of `entries`, the result of the method `entries`.

        Raises DamagedChunk if a frame has changed since.
        """
        for place, group in enumerate(self._groups):
            files = await self._files_of_group(place)
            self._begin_opening(place + 1)
            start = place * OPEN_TOGETHER
            await _send_group(answer, files, entries[start : start + len(group)])
            await self._close(place)

    def _begin_opening(self, place: int) -> None:
        if place < len(self._groups) and place not in self._open:
            self._open[place] = asyncio.create_task(self._repository.open(self._groups[place]))

    async def _files_of_group(self, place: int) -> _Files:
        self._begin_opening(place)
        return await self._open[place]

    async def _close(self, place: int) -> None:
        opening = self._open[place]
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            # Close in a thread: to close a file that was replaced in the meantime frees its disk space, which can
            # block.
            await in_disk_thread(_close_all, opening.result())
        del self._open[place]


async def _send_group(answer: BodyWriter, files: _Files, entries: Sequence[wire.BatchEntry]) -> None:
    """Send some frames. Raises DamagedChunk for the first one whose size differs from the announced one."""
    parts = []
    for file, entry in zip(files, entries, strict=True):
        found = _size(file)
        if found != entry.stored_size:
            raise _changed(entry, found)
        if file is not None:
            parts.append(FilePart(file, found))
    await answer.send_files(parts)


def _changed(entry: wire.BatchEntry, found: int) -> DamagedChunk:
    return DamagedChunk(str(entry.digest), f"its frame had {entry.stored_size} bytes a moment ago, and now has {found}")


def _size(file: BinaryIO | None) -> int:
    return 0 if file is None else file.seek(0, os.SEEK_END)


def _close_all(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
