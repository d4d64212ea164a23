"""The frames that a peer gives: those of its folder, and all others from the origin, each once for all who ask for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from filestore.core.digest import Digest
from filestore.errors import Busy, FilestoreError, StorageError, StorageFull, Unauthorized
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.http.server.errors import FailureLog
from filestore.peers.frame_folder import FrameFolder
from filestore.peers.metrics import LOOKUPS
from filestore.peers.tickets import REFUSALS
from filestore.repository.ingest import is_intact
from filestore.repository.protocol import Repository
from filestore.system.buffers import allocate_pages
from filestore.system.metrics import Event, count
from filestore.system.threads import in_cpu_thread, in_disk_thread

FOUND_TOGETHER = 64
"""Frames that a thread looks for in one call."""
PULLED_TOGETHER = 8
"""Frames of one request to the origin. Their sizes are not known before, so each has the memory of the largest one."""
PULLS = 8
"""The most requests to the origin at a time: 256 MiB of frames, and usually a third of that."""
MEMORY_LIMIT = 256 << 20
"""Bytes of frames that wait in memory for those who asked for them, because the disk does not keep them."""
WAIT_SECONDS = 20.0
"""How long a request waits for the origin. It is less than clients wait. The frames that arrive later are kept."""
QUIET_SECONDS = 60.0
"""A failure is logged again only after so long without one."""
PEER = "the peer"
_TRIES = 3


class Held(NamedTuple):
    """A frame for those who asked for it."""

    size: int
    """0 if the origin does not have it."""
    content: bytes | None
    """The frame, if it is not in the folder."""


@dataclass(slots=True)
class _Flight:
    """A frame that somebody asks for now."""

    digest: Digest
    done: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Its size, or 0 if the origin does not have it."""
    waiters: int = 0
    content: bytes | None = None
    """The frame, if it is not in the folder."""

    def result(self) -> Held:
        """Return what was found. Raises Busy, Unauthorized."""
        return Held(self.done.result(), self.content)


class OriginFrames:
    """Finds frames in a folder, or gets them from the origin, verifies them, and keeps them in the folder."""

    def __init__(self, repository: Repository, folder: FrameFolder, *, memory_limit: int = MEMORY_LIMIT) -> None:
        """`repository` is the origin itself: peers do not ask each other. The caller closes it after this object."""
        self._repository = repository
        self._folder = folder
        self._memory_limit = memory_limit
        self._memory = 0
        self._flights: dict[Digest, _Flight] = {}
        self._waiting: dict[Digest, _Flight] = {}
        """The flights that wait for a request to the origin. All of them have waiters (I6)."""
        self._pull_count = 0
        self._keeping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        # Small frames may find room on a disk that is full for large ones, and others work while one request fails.
        failures = partial(FailureLog, level=logging.WARNING, quiet_seconds=QUIET_SECONDS)
        self._origin_failures = failures("frames cannot be had from the origin")
        self._disk_failures = failures("frames cannot be kept, and are given from memory")

    @asynccontextmanager
    async def held(self, digests: Sequence[Digest]) -> AsyncIterator[HeldFrames]:
        """Find frames, and hold them during the block.

        Raises Busy if they are not here in time, and Unauthorized if the origin refuses the token of this peer.
        """
        # A frame whose request to the origin has begun is fetched even if nobody waits for it any more.
        new = [_Flight(digest) for digest in dict.fromkeys(digests) if digest not in self._flights]
        self._flights |= {flight.digest: flight for flight in new}
        flights = {digest: self._flights[digest] for digest in digests}
        for flight in flights.values():
            flight.waiters += 1
        try:
            if new:
                self._begin(self._find(new))
            waiting = [flight.done for flight in flights.values() if not flight.done.done()]
            if waiting and (await asyncio.wait(waiting, timeout=WAIT_SECONDS))[1]:
                raise Busy(PEER, "its origin is slow")
            yield HeldFrames(self, self._folder, {digest: flight.result() for digest, flight in flights.items()})
        finally:
            for flight in flights.values():
                flight.waiters -= 1
                self._forget_unneeded(flight)

    async def close(self) -> None:
        """End all requests to the origin."""
        self._fail([self._waiting.pop(digest) for digest in list(self._waiting)], Busy(PEER, "it is stopping"))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _forget_unneeded(self, flight: _Flight) -> None:
        """Forget a flight that has ended, or that everybody has left, unless its frame is in memory and somebody needs it."""
        if not flight.waiters and self._waiting.get(flight.digest) is flight:
            del self._waiting[flight.digest]
            flight.done.set_exception(Busy(PEER, "nobody waits for it"))
        if not flight.done.done() or (flight.waiters and flight.content is not None):
            return
        if self._flights.get(flight.digest) is flight:
            del self._flights[flight.digest]
        if flight.content is not None:
            self._memory -= len(flight.content)
            flight.content = None
        if not flight.waiters:
            flight.done.exception()  # read, so that the loop does not report it as lost

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find(self, flights: Sequence[_Flight]) -> None:
        """Settle the flights whose frames are in the folder, and begin to get the others."""
        left: list[_Flight] = []
        try:
            for start in range(0, len(flights), FOUND_TOGETHER):
                part = flights[start : start + FOUND_TOGETHER]
                # Frames may have to be decoded.
                sizes = await in_cpu_thread(self._folder.sizes, [flight.digest for flight in part])
                missed = sizes.count(0)
                count(Event.CACHE_LOOKUPS, LOOKUPS, "hit", amount=len(part) - missed)
                count(Event.CACHE_LOOKUPS, LOOKUPS, "miss", amount=missed)
                for flight, size in zip(part, sizes, strict=True):
                    if size:
                        self._settle(flight, size)
                    else:
                        left.append(flight)
                if len(left) >= PULLED_TOGETHER:
                    self._get(left)
                    left = []
            self._get(left)
        except BaseException:
            self._fail(flights, Busy(PEER, "it is stopping"))
            raise

    def _get(self, flights: Sequence[_Flight]) -> None:
        """Let flights wait for a request to the origin."""
        self._waiting |= {flight.digest: flight for flight in flights if flight.waiters}
        self._fail([flight for flight in flights if not flight.waiters], Busy(PEER, "nobody waits for it"))
        for _ in range(min(PULLS - self._pull_count, -(-len(self._waiting) // PULLED_TOGETHER))):
            self._pull_count += 1
            self._begin(self._pull_waiting())

    async def _pull_waiting(self) -> None:
        """Get frames from the origin for as long as flights wait."""
        try:
            while self._waiting:
                await self._pull([self._waiting.pop(digest) for digest in list(islice(self._waiting, PULLED_TOGETHER))])
        finally:
            self._pull_count -= 1

    async def _pull(self, flights: Sequence[_Flight]) -> None:
        """Get frames from the origin, and settle their flights."""
        try:
            buffer = allocate_pages(len(flights) * FRAME_LIMIT)
            found = await self._repository.get([flight.digest for flight in flights], buffer)
            await self._take(flights, found)
        except FilestoreError as error:
            self._origin_failures.failed(error)
            refused = isinstance(error, REFUSALS)
            self._fail(flights, Unauthorized(PEER) if refused else Busy(PEER, "its origin does not answer"))
        except BaseException:
            self._fail(flights, Busy(PEER, "it is stopping"))
            raise
        else:
            self._origin_failures.succeeded()

    async def _take(self, flights: Sequence[_Flight], found: Sequence[memoryview | None]) -> None:
        frames = [(flight, Frame(flight.digest, data)) for flight, data in zip(flights, found, strict=True) if data is not None]
        # I4: nobody gets a frame that is not verified.
        intact = await asyncio.gather(*(in_cpu_thread(is_intact, frame) for _, frame in frames))
        sound = [(flight, frame) for (flight, frame), is_sound in zip(frames, intact, strict=True) if is_sound]
        count(Event.FRAMES_FETCHED, amount=len(sound))
        count(Event.FRAMES_FETCHED_SIZE, amount=sum(len(frame.data) for _, frame in sound))
        kept = await self._keep([frame for _, frame in sound])
        for flight, frame in sound:
            if frame.digest in kept:
                self._settle(flight, len(frame.data))
            elif not flight.waiters:
                self._settle(flight, 0)  # nobody learns of it
            elif self._memory + len(frame.data) > self._memory_limit:
                self._fail([flight], Busy(PEER, "its memory is full, and its disk keeps no frames"))
            else:
                flight.content = bytes(frame.data)
                self._memory += len(flight.content)
                self._settle(flight, len(flight.content))
        damaged = [flight for (flight, _), is_sound in zip(frames, intact, strict=True) if not is_sound]
        self._fail(damaged, Busy(PEER, "its origin gave a damaged frame"))
        for flight in flights:
            self._settle(flight, 0)  # those that are left are absent at the origin

    async def _keep(self, frames: Sequence[Frame]) -> set[Digest]:
        try:
            async with self._keeping:
                kept = await in_disk_thread(self._folder.keep, frames)
        except StorageError as error:
            self._disk_failures.failed(error)
            return set()
        if kept or not frames:
            self._disk_failures.succeeded()
        else:
            self._disk_failures.failed(
                StorageFull("the folder of frames", "the limits of its size and of free space leave no room")
            )
        return kept

    def _settle(self, flight: _Flight, size: int) -> None:
        if not flight.done.done():
            flight.done.set_result(size)
            # If it is in the folder, the next one finds it there. If it is absent, the next one asks again.
            self._forget_unneeded(flight)

    def _fail(self, flights: Sequence[_Flight], error: FilestoreError) -> None:
        for flight in flights:
            if not flight.done.done():
                flight.done.set_exception(error)
                self._forget_unneeded(flight)


class HeldFrames:
    """Frames that somebody asks for: a `FrameSource`."""

    def __init__(self, origin: OriginFrames, folder: FrameFolder, held: Mapping[Digest, Held]) -> None:
        """`held` has the size of each frame, and those that are only in memory."""
        self._origin = origin
        self._folder = folder
        self._held = held

    async def open(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Do what `FrameSource.open` does. Raises Busy, Unauthorized."""
        files = await in_disk_thread(self.open_each, digests)
        async with AsyncExitStack() as stack:
            for file in files:
                if file is not None:
                    stack.callback(file.close)
            for place, digest in enumerate(digests):
                if files[place] is None and self._held[digest].size:
                    files[place] = found = await self._open_again(digest)
                    stack.callback(found.close)
            stack.pop_all()
        return files

    async def frame_sizes(self, digests: Sequence[Digest]) -> list[int]:
        return [self._held[digest].size for digest in digests]

    def open_each(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames. None also stands for one that was evicted since it was found. Blocks."""
        return [self._open(digest) for digest in digests]

    def _open(self, digest: Digest) -> BinaryIO | None:
        held = self._held[digest]
        if held.content is not None:
            return BytesIO(held.content)
        return self._folder.open(digest) if held.size else None

    async def _open_again(self, digest: Digest) -> BinaryIO:
        """Open a frame that was evicted since it was found, because the folder is small for all that is asked for."""
        for _ in range(_TRIES):
            async with self._origin.held([digest]) as again:
                [file] = await in_disk_thread(again.open_each, [digest])
            if file is not None:
                return file
        raise Busy(PEER, "its folder is too small")
