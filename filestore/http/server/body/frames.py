"""Send stored frames as they are. Only a few of them are open at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from io import BytesIO
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from filestore.core.digest import Digest
from filestore.errors import DamagedChunk
from filestore.http import wire
from filestore.http.server.body.writer import BodyWriter, FilePart
from filestore.http.server.descriptors import OpenFrames
from filestore.system.threads import in_disk_thread, shield_until_done

OPEN_TOGETHER = 16
"""The most frames that one group has. The files of the next group are opened while this group is sent."""

_Files = list[BinaryIO | None]
_NOTHING = BytesIO()
"""Stands for an absent frame, of which no byte is sent."""


class FrameSource(Protocol):
    """Where the frames of an answer are."""

    async def open(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open the files of frames. None stands for an absent one. The caller closes them."""

    async def frame_sizes(self, digests: Sequence[Digest]) -> list[int]:
        """Return the sizes of frames in bytes. 0 stands for an absent one."""


class Frames:
    """Send the frames of an answer. Call `entries` to find out what the answer will contain, then `send`.

    A client that keeps up gets groups of 16 frames, and the next group is opened ahead. A client that takes nothing for a
    moment keeps only the frame open that it is in the middle of. After that it gets groups of one, which grow again if it
    keeps up.

    The end of the block closes all files.
    """

    def __init__(self, source: FrameSource, digests: Sequence[Digest], open_frames: OpenFrames | None = None) -> None:
        """`open_frames` limits the frames that are open in the process. One of each answer may be open in any case."""
        self._source = source
        self._digests = digests
        self._open_frames = OpenFrames() if open_frames is None else open_frames
        self._together = OPEN_TOGETHER
        self._groups: dict[int, _Group] = {}
        """The groups that are open or being opened, by the number of their first frame."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._groups:
            await shield_until_done(self._begin_again())

    async def entries(self) -> list[wire.BatchEntry]:
        """Return an entry with the size of its frame for each digest. The size of an absent frame is 0.

        The head of the answer needs all sizes, and not all files can be open at once. So the sizes of more than one
        group come from the source.
        """
        group = self._begin_opening(0)
        if group is None:
            return []
        if group.count == len(self._digests):
            sizes = [_size(file) for file in await group.opening]
        else:
            sizes = await self._source.frame_sizes(self._digests)
        return list(map(wire.BatchEntry, self._digests, sizes))

    async def send(self, answer: BodyWriter, entries: Sequence[wire.BatchEntry], *, header: bytes = b"") -> None:
        """Send `header`, and the frames of `entries`, the result of the method `entries`.

        Raises DamagedChunk if a frame has changed since.
        """
        sent = await answer.offer(header)
        if sent < len(header):
            await self._begin_again()
            await answer.send(header[sent:])
        place = 0
        while (group := self._begin_opening(place)) is not None:
            if not group.opening.done():
                await group.opening
            if self._together > 1:
                self._begin_opening(place + group.count)
            place += await self._send_group(answer, group, entries[place : place + group.count])
            await self._close(group)

    def _begin_opening(self, place: int) -> _Group | None:
        """Return the group that begins at `place`. Return None at the end, or if nothing more may be opened ahead."""
        if place >= len(self._digests):
            return None
        if place not in self._groups:
            wanted = min(self._together, len(self._digests) - place)
            # The first group has one frame that is not counted. Every connection has a descriptor for it.
            counted = self._open_frames.take(wanted if self._groups else wanted - 1)
            count = counted if self._groups else counted + 1
            if not count:
                return None
            opening = asyncio.create_task(self._source.open(self._digests[place : place + count]))
            self._groups[place] = _Group(place, count, counted, opening)
        return self._groups[place]

    async def _send_group(self, answer: BodyWriter, group: _Group, entries: Sequence[wire.BatchEntry]) -> int:
        """Send some frames, or fewer if the client is slow. Return their number.

        Raises DamagedChunk for the first one whose size differs from the announced one.
        """
        parts = []
        for file, entry in zip(group.opening.result(), entries, strict=True):
            found = _size(file)
            if found != entry.stored_size:
                raise _changed(entry, found)
            parts.append(FilePart(_NOTHING if file is None else file, found))
        sending = answer.files(parts)
        count = len(parts)
        if await answer.offer_files(sending):
            self._together = min(2 * self._together, OPEN_TOGETHER)
            return count
        count = sending.place + 1
        sending.end_after_this_part()
        await self._slow_down(group, sending.place)
        await answer.wait()
        while not await answer.offer_files(sending):
            await answer.wait()
        return count

    async def _slow_down(self, current: _Group, keep: int) -> None:
        """Close all frames except the one of the group `current` with the number `keep`. Open one at a time from now on."""
        await self._begin_again(except_for=current)
        others = [file for number, file in enumerate(current.opening.result()) if number != keep]
        await in_disk_thread(_close_files, others)
        spare = current.count - 1
        self._open_frames.give_back(spare)
        current.counted -= spare
        current.count = 1

    async def _begin_again(self, *, except_for: _Group | None = None) -> None:
        self._together = 1
        for group in list(self._groups.values()):
            if group is not except_for:
                await self._close(group)

    async def _close(self, group: _Group) -> None:
        if not group.opening.done():
            await asyncio.wait([group.opening])
        if not group.opening.cancelled() and group.opening.exception() is None:
            # Those that were sent are closed already.
            left = [file for file in group.opening.result() if file is not None and not file.closed]
            if left:
                # Close in a thread: to close a file that was replaced in the meantime frees its disk space, which can
                # block.
                await in_disk_thread(_close_files, left)
        del self._groups[group.place]
        self._open_frames.give_back(group.counted)


class _Group:
    """Frames that are opened together."""

    def __init__(self, place: int, count: int, counted: int, opening: asyncio.Task[_Files]) -> None:
        self.place = place
        self.count = count
        self.counted = counted
        """How many of them are counted among the open frames of the process."""
        self.opening = opening


def _changed(entry: wire.BatchEntry, found: int) -> DamagedChunk:
    return DamagedChunk(str(entry.digest), f"its frame had {entry.stored_size} bytes a moment ago, and now has {found}")


def _size(file: BinaryIO | None) -> int:
    return 0 if file is None else file.seek(0, os.SEEK_END)


def _close_files(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
