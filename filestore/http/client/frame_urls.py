"""Read frames where a server says that they are, without the server.

A server chooses these addresses, so a client sends nothing there but the request itself: no token, and no certificate. It follows
no redirect, and what it receives is verified as a frame of the server is. An address without TLS is used only if the server is
reached without TLS too.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, NamedTuple

from filestore.errors import FilestoreError, Interrupted, ServerError
from filestore.format.codec import FRAME_LIMIT
from filestore.http import wire
from filestore.http.client.answers import BatchAnswer, SmallAnswer, longer_than_announced
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.channels import Places
from filestore.http.client.exchange import AnswerBody, Request
from filestore.http.client.requests import ProxyFinder
from filestore.http.client.transport import Transport
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage
from filestore.system.threads import abandon, task_group

CONNECTIONS = 16
"""The most connections to stores, where nobody limits them. A store answers a request for one frame later than a server does."""
STALL_SECONDS = 10.0
"""The longest time that a store may take without progress. The server has the frames too."""
FAILURES_LIMIT = 5
"""After so many failures in a row, frames are read through the server only."""
DOCUMENT_LIMIT = 8 << 20
"""Bytes of the largest answer with URLs. 1024 of them, with the tokens of a cloud in them, have about 3 MiB."""
_ORIGINS_LIMIT = 4
_URL_LIMIT = 8192
_EARLY_SECONDS = 5.0
"""How long before its end a URL is not used any more."""
_URL = re.compile(r"(https?)://((?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)(/[\x21\x22\x24-\x7e]*)")

logger = logging.getLogger("filestore.transfer")


class StoreUrl(NamedTuple):
    """A URL of a store. Whoever has it can read the frame, so it is in no error and no log."""

    origin: str
    """Scheme, host and port, as a URL."""
    path: str
    """With the query, as it was signed."""

    def __repr__(self) -> str:
        return f"StoreUrl({self.origin!r}, ...)"


class FramePlace(NamedTuple):
    """Where a frame is."""

    size: int
    """Bytes of the frame. 0 if it is absent."""
    url: StoreUrl | None
    """None if only the server gives it."""


class FramePlaces(NamedTuple):
    """The places of the frames that were asked for, in their order."""

    frames: list[FramePlace]
    end: float
    """When the URLs end, by the monotonic clock."""


def parse_frame_places(location: str, document: dict[str, Any], *, count: int) -> FramePlaces:
    """Parse where `count` frames are. A URL that may not be used counts as none.

    `location` is the URL of the server that says it. Raises ServerError.
    """
    seconds, values = document.get("expires_in"), document.get("frames")
    try:
        if type(seconds) is int and 0 < seconds <= 7 * 86400 and isinstance(values, list) and len(values) == count:
            frames = [_parse_place(value, accepts_http=location.startswith("http://")) for value in values]
            return FramePlaces(frames, time.monotonic() + seconds - _EARLY_SECONDS)
    except (KeyError, TypeError, ValueError):
        pass
    raise ServerError(location, HTTPStatus.OK, "its list of the places of frames is malformed")


def _parse_place(value: dict[str, Any], *, accepts_http: bool) -> FramePlace:
    size, url = value["size"], value.get("url")
    if type(size) is not int or not 0 <= size <= FRAME_LIMIT:
        raise ValueError("it is not the size of a frame")
    found = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= _URL_LIMIT else None
    if found is None or not size or (found[1] == "http" and not accepts_http):
        return FramePlace(size, None)
    return FramePlace(size, StoreUrl(f"{found[1]}://{found[2].lower()}", found[3]))


class PlacesAnswer:
    """An `AnswerBody` for a batch of frames, or for a document that says where they are."""

    def __init__(self, location: str, batch: BatchAnswer, *, frames_come: Callable[[], object]) -> None:
        """`batch` gets the frames, if the server sends them. `frames_come` is then called before the first, in any thread."""
        self._location = location
        self._frames_come = frames_come
        self._body: AnswerBody = batch
        self.document: SmallAnswer | None = None
        """The document, if the server sends that."""

    @property
    def size(self) -> int:
        return 0 if self.document is not None else self._body.size

    def expect(self, size: int | None, media_type: str) -> None:
        if media_type == wire.FRAME_URLS:
            self._body = self.document = SmallAnswer(self._location, limit=DOCUMENT_LIMIT)
        else:
            self._frames_come()
        self._body.expect(size, media_type)

    def memory(self) -> memoryview:
        return self._body.memory()

    def add(self, size: int) -> None:
        self._body.add(size)

    def end(self) -> None:
        self._body.end()


class _FrameAnswer:
    """An `AnswerBody` for one frame of a known size, which is received into the caller's memory."""

    def __init__(self, location: str, memory: memoryview, *, moved: Moved) -> None:
        self._location = location
        self._memory = memory
        self._moved = moved
        self.size = 0

    def expect(self, size: int | None, media_type: str) -> None:  # noqa: ARG002  # of the protocol
        if size is not None and size > len(self._memory):
            raise longer_than_announced(self._location)

    def memory(self) -> memoryview:
        return self._memory[self.size :]

    def add(self, size: int) -> None:
        self.size += size
        self._moved(size)

    def end(self) -> None:
        if self.size < len(self._memory):
            raise Interrupted(self._location, "the answer is shorter than it said")


class Outcome(Enum):
    """How a read of a frame ended."""

    READ = "read"
    EXPIRED = "expired"
    FAILED = "failed"


class _Origin:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.first = asyncio.Lock()
        """Held by the first request, which finds out whether the store can be reached at all."""


class StoreReads:
    """Reads frames from the stores that servers name. For one event loop. Without an event loop, it may be made and dropped."""

    def __init__(self, *, places: Places, stall_seconds: float, find_proxy: ProxyFinder, is_on: bool = True) -> None:
        """`places` are those of the client."""
        self._places = places.others(CONNECTIONS)
        self._owns_places = self._places is not places
        self._stall_seconds = min(stall_seconds, STALL_SECONDS)
        self._find_proxy = find_proxy
        self._origins: dict[str, _Origin] = {}
        self._failures = 0
        self.is_on = is_on
        """Whether stores are tried."""

    def after_fork(self, places: Places) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        abandon(self._places)
        abandon(self._origins)
        self._places = places.others(CONNECTIONS)
        self._origins = {}

    async def read_each(self, wanted: Sequence[tuple[StoreUrl, memoryview]], *, end: float, moved: Moved) -> list[Outcome]:
        """Read frames side by side, each into memory of its size. Return how each ended.

        `end` is when the URLs end. `moved` is called with the bytes that arrive, in the end with those of whole frames only.
        """
        async with task_group() as group:
            reading = [group.create_task(self._read(url, memory, end=end, moved=moved)) for url, memory in wanted]
        return [task.result() for task in reading]

    async def close(self) -> None:
        """Close all connections."""
        for origin in self._origins.values():
            await origin.transport.close()
        if self._owns_places:
            self._places.close()

    async def _read(self, url: StoreUrl, memory: memoryview, *, end: float, moved: Moved) -> Outcome:
        origin = self._origin(url.origin)
        if origin is None:
            return Outcome.FAILED
        if not origin.transport.has_answered:
            async with origin.first:
                if not origin.transport.has_answered:
                    return await self._read_once(origin, url, memory, end=end, moved=moved)
        return await self._read_once(origin, url, memory, end=end, moved=moved)

    async def _read_once(self, origin: _Origin, url: StoreUrl, memory: memoryview, *, end: float, moved: Moved) -> Outcome:
        if not self.is_on:
            return Outcome.FAILED
        if time.monotonic() > end:
            return Outcome.EXPIRED
        meter = ByteCounter(moved)
        request = Request(method="GET", path=url.path, stage=Stage.RECEIVE)
        kept = 0
        try:
            await origin.transport.exchange(request, _FrameAnswer(url.origin, memory, moved=meter.add))
            kept = len(memory)
        except FilestoreError as error:
            if isinstance(error, ServerError) and error.status_code == HTTPStatus.FORBIDDEN:
                return Outcome.EXPIRED
            self.note_failure(f"{error}", is_final=not origin.transport.has_answered)
            return Outcome.FAILED
        finally:
            meter.settle(kept)
        self._failures = 0
        return Outcome.READ

    def note_failure(self, reason: str, *, is_final: bool = False) -> None:
        """Count a failure. After too many, and after one that `is_final`, no store is tried any more."""
        self._failures += 1
        if self.is_on and (is_final or self._failures >= FAILURES_LIMIT):
            self.is_on = False
            logger.warning("frames are read through the server, because they cannot be read from the object store: %s", reason)

    def _origin(self, url: str) -> _Origin | None:
        if url not in self._origins and len(self._origins) < _ORIGINS_LIMIT:
            try:
                proxy = self._find_proxy(url)
                transport = Transport(
                    url, token=None, places=self._places, stall_seconds=self._stall_seconds, proxy=proxy, api=""
                )
                self._origins[url] = _Origin(transport)
            except (FilestoreError, ValueError):  # a port that is none
                return None
        return self._origins.get(url)
