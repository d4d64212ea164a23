"""Get frames for a remote repository: in batches from a server, or from the store that the server names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

from filestore.core.digest import Digest
from filestore.errors import InvalidBatch
from filestore.format.codec import FRAME_LIMIT
from filestore.http import wire
from filestore.http.client.answers import BatchAnswer, SmallAnswer
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.concurrency import Concurrency
from filestore.http.client.documents import parse_document
from filestore.http.client.exchange import Request
from filestore.http.client.frame_urls import (
    DOCUMENT_LIMIT,
    FramePlace,
    FramePlaces,
    Outcome,
    PlacesAnswer,
    StoreReads,
    parse_frame_places,
)
from filestore.http.client.known_places import AHEAD, KnownPlaces
from filestore.http.client.requests import ProxyFinder, Requests
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage
from filestore.system.threads import task_group


class FrameReader:
    """Gets frames, several batches at a time. For one event loop. Without an event loop, it may be made and dropped."""

    def __init__(
        self,
        requests: Requests,
        concurrency: Concurrency,
        *,
        stall_seconds: float,
        find_proxy: ProxyFinder,
        presigned_reads: bool,
    ) -> None:
        """`concurrency` is that of all batches of the client."""
        self._requests = requests
        self._concurrency = concurrency
        self._stores = StoreReads(
            places=requests.places,
            stall_seconds=stall_seconds,
            find_proxy=find_proxy,
            is_on=presigned_reads,
        )

        self._known = KnownPlaces()
        self._has_urls: bool | None = None
        """Whether the server has given URLs when it was asked last. None: it has not answered yet."""
        self._first: asyncio.Event | None = None
        """Set when the first answer shows whether the server gives URLs."""
        self._asking = asyncio.Lock()

    def after_fork(self, concurrency: Concurrency) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        self._concurrency = concurrency
        self._asking = asyncio.Lock()
        self._first = None
        self._stores.after_fork(self._requests.places)

    async def close(self) -> None:
        """Close the connections to stores."""
        await self._stores.close()

    async def get(self, digests: Sequence[Digest], buffer: memoryview, moved: Moved | None) -> list[memoryview | None]:
        """Do what `Repository.get` does."""
        # A frame alone is often one that is asked for again because it was damaged. The server has it in one request.
        return await self._get(digests, buffer, moved, takes_urls=self._stores.is_on and len(digests) > 1)

    async def _get(
        self, digests: Sequence[Digest], buffer: memoryview, moved: Moved | None, *, takes_urls: bool
    ) -> list[memoryview | None]:
        found: list[memoryview | None] = []

        async def rest() -> FramePlaces | None:
            # Frames that arrived whole before a connection was cut are not asked for again.
            return await self._get_batch(*self._left(digests, buffer, found), found, moved, takes_urls=takes_urls)

        while len(found) < len(digests):
            places = None
            if takes_urls:
                while self._has_urls is None and self._first is not None:
                    # A server that gives URLs is then asked about all these frames at once.
                    await self._first.wait()
                if self._has_urls:
                    asked, _ = self._left(digests, buffer, found)
                    places = await self._places_of(asked)
            if places is None:
                with self._first_answer() if takes_urls and self._has_urls is None else nullcontext():
                    places = await self._requests.retried(rest)
                    if takes_urls:
                        self._has_urls = places is not None
            if places is not None:
                found += await self._get_directly(*self._left(digests, buffer, found), places, moved)
        return found

    @contextmanager
    def _first_answer(self) -> Iterator[None]:
        """Let other calls wait until the answer to a request in the block shows whether the server gives URLs."""
        self._first = first = asyncio.Event()
        try:
            yield
        finally:
            self._first = None
            first.set()

    def _note_frames(self) -> None:
        """Note that the server sends frames where it might have given URLs."""
        self._has_urls = False
        if self._first is not None:
            self._first.set()

    async def _places_of(self, digests: Sequence[Digest]) -> FramePlaces | None:
        """Return where frames are. If it is not known, ask about these frames and about those that follow them.

        Return None if the server has no URLs any more.
        """
        async with self._asking:
            places = self._known.take(digests)
            if places is None and self._has_urls:
                following = self._known.following(digests[-1], AHEAD - len(digests))
                asked = list(dict.fromkeys([*digests, *following]))
                found = await self._ask_places(asked)
                self._has_urls = any(frame.url is not None for frame in found.frames)
                self._known.add(asked, found)
                places = self._known.take(digests)
            return places

    async def name_places(self, digests: Sequence[Digest]) -> FramePlaces | None:
        """Do what `NamesPlaces.name_places` does."""
        return await self._places_of(digests) if self._stores.is_on and self._has_urls and len(digests) > 1 else None

    def take_places(self, digests: Sequence[Digest], places: FramePlaces) -> None:
        """Do what `NamesPlaces.take_places` does."""
        self._has_urls = True
        self._known.add(digests, places)

    def note_manifest(self, encoded: bytes) -> None:
        """Note that the chunks of a manifest will probably be asked for, in their order."""
        self._known.note_manifest(encoded)

    @staticmethod
    def _left(
        digests: Sequence[Digest], buffer: memoryview, found: Sequence[memoryview | None]
    ) -> tuple[Sequence[Digest], memoryview]:
        """Return the next digests to ask for, and the rest of the buffer."""
        filled = sum(len(frame) for frame in found if frame is not None)
        return digests[len(found) : len(found) + wire.BATCH_COUNT_LIMIT], buffer[filled:]

    async def _get_batch(
        self,
        digests: Sequence[Digest],
        buffer: memoryview,
        found: list[memoryview | None],
        moved: Moved | None,
        *,
        takes_urls: bool,
    ) -> FramePlaces | None:
        """Append to `found` each frame that arrives whole, even if the rest of the batch does not arrive.

        With `takes_urls`, the server may say where the frames are in their place.
        """
        meter = ByteCounter(partial(self._count_moved, moved))
        fields = {"Accept": f"{wire.FRAME_URLS}, {wire.OCTETS}"} if takes_urls else {}
        request = Request(method="POST", path="/chunks/get", fields=fields, body=b"".join(digests), stage=Stage.RECEIVE)
        batch = BatchAnswer(self._requests.location, digests, buffer, moved=meter.add)
        loop = asyncio.get_running_loop()
        answer = PlacesAnswer(self._requests.location, batch, frames_come=partial(loop.call_soon_threadsafe, self._note_frames))
        try:
            async with self._concurrency.place():
                await self._requests.exchange(request, answer if takes_urls else batch)
        finally:
            frames = list(batch.frames())
            found.extend(frames)
            if frames:
                self._requests.retries.note_progress()
            meter.settle(sum(len(frame) for frame in frames if frame is not None))
        return None if answer.document is None else self._places_in(answer.document, len(digests))

    def _places_in(self, answer: SmallAnswer, count: int) -> FramePlaces:
        return parse_frame_places(self._requests.location, parse_document(self._requests.location, answer.content), count=count)

    async def _get_directly(
        self, digests: Sequence[Digest], buffer: memoryview, places: FramePlaces, moved: Moved | None
    ) -> list[memoryview | None]:
        """Read frames from the places that the server named, and the others, and those that cannot be read, from the server."""
        if sum(frame.size for frame in places.frames) > len(buffer):
            raise InvalidBatch(f"{self._requests.location} names larger frames than these chunks can have")
        found: dict[int, memoryview | None] = {}
        end = 0
        for number, frame in enumerate(places.frames):
            if frame.url is not None:
                found[number] = buffer[end : end + frame.size]
                end += frame.size
        direct = list(found)
        others = [number for number, frame in enumerate(places.frames) if frame.url is None and frame.size]
        async with task_group() as group:
            reading = group.create_task(self._read_directly(digests, places, found, moved))
            getting = group.create_task(self._get([digests[number] for number in others], buffer[end:], moved, takes_urls=False))
        found |= zip(others, getting.result(), strict=True)
        left = [number for number in direct if number not in reading.result()]
        async with task_group() as group:
            again = [group.create_task(self._get_one(digests[number], found[number], moved)) for number in left]
        found |= zip(left, (task.result() for task in again), strict=True)
        return [found.get(number) for number in range(len(digests))]

    async def _read_directly(
        self, digests: Sequence[Digest], places: FramePlaces, memory: Mapping[int, memoryview | None], moved: Moved | None
    ) -> set[int]:
        """Read frames into `memory`, by their numbers. Return the numbers of those that were read."""
        read: set[int] = set()
        count_moved = partial(self._count_moved, moved)
        wanted = list(memory)
        for is_again in (False, True):
            urls = [(number, places.frames[number].url, memory[number]) for number in wanted]
            known = [(number, url, part) for number, url, part in urls if url is not None and part is not None]
            async with self._concurrency.place():
                outcomes = await self._stores.read_each([each[1:] for each in known], end=places.end, moved=count_moved)
            ended = dict(zip((number for number, _, _ in known), outcomes, strict=True))
            read |= {number for number, outcome in ended.items() if outcome is Outcome.READ}
            wanted = [number for number, outcome in ended.items() if outcome is Outcome.EXPIRED]
            if read:
                self._requests.retries.note_progress()
            if wanted and is_again:
                self._stores.note_failure("it refuses URLs that the server has just signed")
            if not wanted or is_again:
                return read
            renewed = await self._ask_places([digests[number] for number in wanted], is_again=True)
            frames = list(places.frames)
            for number, frame in zip(wanted, renewed.frames, strict=True):
                # One that was stored again with another size is for the server.
                frames[number] = frame if frame.size == places.frames[number].size else FramePlace(0, None)
            places = FramePlaces(frames, renewed.end)
        return read

    async def _ask_places(self, digests: Sequence[Digest], *, is_again: bool = False) -> FramePlaces:
        """Ask where frames are, and for nothing else. If `is_again`, URLs that were given before are of no use."""
        fields = {"Accept": wire.FRAME_URLS} | ({"Cache-Control": "no-cache"} if is_again else {})
        request = Request(method="POST", path="/chunks/get", fields=fields, body=b"".join(digests))

        async def ask() -> FramePlaces:
            answer = SmallAnswer(self._requests.location, limit=DOCUMENT_LIMIT)
            await self._requests.exchange(request, answer)
            return self._places_in(answer, len(digests))

        return await self._requests.retried(ask)

    async def _get_one(self, digest: Digest, memory: memoryview | None, moved: Moved | None) -> memoryview | None:
        """Read a frame through the server, if possible into `memory`."""
        try:
            [frame] = await self._get([digest], memory or memoryview(b""), moved, takes_urls=False)
        except InvalidBatch:
            # Somebody has stored it again, and it is larger now.
            [frame] = await self._get([digest], memoryview(bytearray(FRAME_LIMIT)), moved, takes_urls=False)
        return frame

    def _count_moved(self, moved: Moved | None, size: int) -> None:
        self._concurrency.note_moved(size)
        if moved is not None:
            moved(size)
