"""Receive the body of a request and send its answer, in pieces, each under a stall timer.

I6: the bytes that wait to be read from a connection, or to be sent on it, hold at most 256 KiB here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from aiofiles.tempfile import SpooledTemporaryFile, TemporaryFile
from aiofiles.threadpool.binary import AsyncBufferedReader, AsyncFileIO
from aiohttp import web

from filestore.core.signing import SigningKeys, signed_path
from filestore.errors import FilestoreError, LimitExceeded
from filestore.http.limits import ServerLimits
from filestore.http.server.body.answer import answering, arriving, connection_of, moving
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.descriptors import OpenFrames
from filestore.http.server.manifests import SharedManifests
from filestore.http.server.origin import Origin
from filestore.http.server.recent_urls import RecentUrls
from filestore.http.server.rechecks import Rechecks
from filestore.http.server.request_record import RequestRecord, record_of
from filestore.http.server.stored_trees import SharedTrees
from filestore.http.server.throttle import Throttle
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore, SpaceClaim
from filestore.system.buffers import Budget
from filestore.system.files import storage_errors
from filestore.system.metrics import SharedTimes
from filestore.system.stalls import StallTimer
from filestore.system.threads import disk_threads, in_disk_thread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request, and everything that is needed to answer it."""

    request: web.Request
    budget: Budget
    reader_budget: Budget
    """The half of `budget` that plain reads of files share. They take from this one first, and then from `budget`."""
    push_budget: Budget
    """Separate budget for pushes. With a shared one a push could deadlock, because it also takes from `budget`."""
    manifests: SharedManifests
    trees: SharedTrees
    open_frames: OpenFrames
    recent_urls: RecentUrls
    rechecks: Rechecks
    spool_folder: Path
    stall_seconds: float
    upload_limit: int | None
    chunks_limit: int | None
    request_limit: int
    presigned_reads: bool
    grace_seconds: float
    """The grace period of the collection in this server."""
    shared_times: SharedTimes
    keys: SigningKeys
    """The keys that sign URLs."""
    origin: Origin
    issuer: str
    """Stands for the token of the request. The URLs that it asks for are bound to it."""
    signed_until: int | None
    """When these URLs end at the latest, in seconds since 1970. None if the token does not say it."""
    upload_quota: UploadQuota
    store: ChunkStore
    index: Index
    throttle: Throttle | None = None
    """What limits the rate of the bodies, if a quota does."""
    author: str = ""
    """The label of the token, which the commits of the request have as their author."""
    upload_setting: str = "upload_limit"
    """The name of the setting that `upload_limit` has its value from. Empty if a caller chose it."""

    def signed_url(self, method: str, path: str, *, namespace: str, seconds: float) -> str:
        """Return a URL of this server that permits a request by `method` of `path` without a token, for `seconds`."""
        expires_at = math.ceil(time.time() + seconds)
        if self.signed_until is not None:
            expires_at = min(expires_at, self.signed_until)
        signed = signed_path(self.keys, method, path, namespace=namespace, expires_at=expires_at, issuer=self.issuer)
        return f"{self.base_url}{signed}"

    @property
    def base_url(self) -> str:
        """This server's URL as the client knows it. Use it only in what goes back to this client."""
        return self.origin.base_url(self.request)

    @property
    def transport(self) -> asyncio.Transport:
        """The connection of the client. Raises ConnectionError when the client has closed it."""
        return connection_of(self.request)

    @property
    def noted(self) -> RequestRecord:
        """What is known of this request. Logs and metrics are made of it."""
        return record_of(self.request)

    def check_upload_size(self, size: int) -> None:
        """Raise LimitExceeded if a file of `size` bytes is too large."""
        if self.upload_limit is not None and size > self.upload_limit:
            raise LimitExceeded("the file's size in bytes", size, self.upload_limit, self.upload_setting)

    @asynccontextmanager
    async def whole_body(self, *, what: str, limit: int) -> AsyncIterator[bytes]:
        """Receive the whole body, of at most `limit` bytes. `what` names its size in an error.

        A body that may have more than 256 KiB waits in a spool until it is whole. It takes its part of the budget only
        then (I6).

        Raises LimitExceeded, Interrupted, Stalled, StorageError.
        """
        announced = self.request.content_length
        setting = "request_limit" if self.request_limit < limit else ""
        limit = min(limit, self.request_limit)
        if announced is not None and announced > limit:
            raise LimitExceeded(what, announced, limit, setting)
        if announced is not None and announced <= PIECE:
            # In one buffer: the pieces may be of one byte each, and each would be an object.
            body = bytearray()
            async for piece in self.pieces():
                body += piece
            async with self.budget.take(len(body)):
                yield bytes(body)
            return
        async with self.spool() as spool:
            async for piece in self.pieces():
                if spool.size + len(piece) > limit:
                    raise LimitExceeded(what, spool.size + len(piece), limit, setting)
                await spool.write(piece)
            async with self.budget.take_for_body(spool.size):
                await spool.rewind()
                yield await spool.read(spool.size)

    @asynccontextmanager
    async def spool(self) -> AsyncIterator[Spool]:
        """Keep a body during the block: up to 256 KiB in memory, a larger one in a file.

        The file has no name. It disappears at the end of the block, or of the process.
        """
        await in_disk_thread(make_spool_folder, self.spool_folder)
        async with (
            self.store.space_for(0, place=self.spool_folder, for_reader=True) as space,
            SpooledTemporaryFile(max_size=PIECE, dir=self.spool_folder, executor=disk_threads()) as file,
        ):
            yield Spool(file, space)

    @asynccontextmanager
    async def form_spool(self, repository: LocalRepository) -> AsyncIterator[tuple[AsyncFileIO, Callable[[int], None]]]:
        """Give a file for the content of a form, and a function to call with the size of each piece, before it is written.

        Space for the announced size of the request is promised first, and counts for the namespace. The file has no name in
        its folder, so nothing is left of it when this process ends, in whichever way. Raises UploadsTooLarge,
        MinFreeReached, StorageFull, StorageError. The function raises them too. Raises QuotaExceeded if the namespace is full.
        """
        await repository.check_not_full()
        size = self.request.content_length or 0
        async with AsyncExitStack() as stack:
            # Somebody may have removed it.
            await in_disk_thread(make_spool_folder, self.spool_folder)
            # First, because a file that does not fit on the disk does not fit into any share of it.
            space = await stack.enter_async_context(repository.space_for(size, place=self.spool_folder))
            claim = await stack.enter_async_context(self.upload_quota.form(repository.namespace, size))
            with spooling():
                file = await stack.enter_async_context(
                    TemporaryFile("w+b", buffering=0, dir=self.spool_folder, executor=disk_threads())
                )

            def written(size: int) -> None:
                claim.written(size)
                space.written(size)

            yield file, written

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Send the rest of the answer that a handler returned. Cut the connection if the client is gone or too slow."""
        try:
            body = response.body if isinstance(response, web.Response) and not response.prepared else None
            if isinstance(body, bytes) and len(body) > PIECE:
                async with self.spool() as spool:
                    await spool.write(body)
                    whole = web.StreamResponse(status=response.status, headers=response.headers)
                    return await self.answer_with(spool, whole)
            if self.throttle is not None and isinstance(body, bytes):
                await self.throttle.passed(len(body))
            async with self.moving():
                await response.prepare(self.request)
                await response.write_eof()
            self.noted.note_body(len(body) if isinstance(body, bytes) and self.request.method != "HEAD" else 0)
        except (FilestoreError, ConnectionError):
            if self.request.transport is not None:
                self.request.transport.abort()
        return response

    async def answer_with(self, spool: Spool, response: web.StreamResponse) -> web.StreamResponse:
        """Answer with the content of `spool`. Raises Stalled, ConnectionError."""
        await spool.rewind()
        async with self.answering(response, size=spool.size) as answer:
            if self.request.method != "HEAD":
                while piece := await spool.read(PIECE):
                    await answer.send(piece)
        return response

    async def answer_json(self, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
        """Answer with JSON. A long body waits in a spool while the client reads it, so the caller must not keep it."""
        if len(body) < PIECE:
            return web.Response(body=body, content_type="application/json", headers=headers)
        async with self.spool() as spool:
            await spool.write(body)
            del body
            return await self.answer_with(spool, web.StreamResponse(headers={"Content-Type": "application/json", **headers}))

    @asynccontextmanager
    async def answering(self, response: web.StreamResponse, *, size: int) -> AsyncIterator[BodyWriter]:
        """Send the head of an answer of `size` bytes. The block sends the bytes; an error in it cuts the connection.

        Raises Stalled, ConnectionError.
        """
        seconds, throttle = self.stall_seconds, self.throttle
        async with answering(self.request, response, size=size, stall_seconds=seconds, throttle=throttle) as writer:
            yield writer

    @asynccontextmanager
    async def moving(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Limit the time of a step that only waits for the client, to `stall_seconds` by default. Raises Stalled."""
        async with moving(self.stall_seconds if seconds is None else seconds, told=self.stall_seconds):
            yield

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises Interrupted, Stalled."""
        content = self.request.content
        if content.is_eof() and content.exception() is None:
            # The rest of it is here, as the body of most requests is together with the head.
            if piece := content.read_nowait():
                await self.passed(len(piece))
                yield piece
            return
        timer = StallTimer(self.stall_seconds)
        while piece := await self.piece(timer, self.request.content.readany()):
            await self.passed(len(piece))
            yield piece

    async def passed(self, size: int) -> None:
        """Wait, after the arrival of `size` bytes, until more may be read."""
        if self.throttle is not None:
            await self.throttle.passed(size)

    async def piece(self, timer: StallTimer, reading: Awaitable[T]) -> T:
        """Wait for the next piece of the body, as long as `timer` allows. Raises Interrupted, Stalled."""
        began = timer.began()
        with arriving():
            async with self.moving(timer.left()):
                piece = await reading
        timer.ended(began)
        timer.count(len(piece) if isinstance(piece, bytes | bytearray) else 0)
        return piece


class Spool:
    """A body that passes through the server. Its methods raise MinFreeReached, StorageFull, StorageError."""

    def __init__(self, file: AsyncBufferedReader, space: SpaceClaim) -> None:
        self.size = 0
        self._file = file
        self._space = space

    async def write(self, content: bytes) -> None:
        """Append `content`."""
        self._space.written(len(content))
        with spooling():
            await self._file.write(content)
        self.size += len(content)

    async def rewind(self) -> None:
        """Make the next `read` start at the beginning."""
        with spooling():
            await self._file.seek(0)

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`. The result is empty at the end."""
        with spooling():
            return await self._file.read(size)


def make_spool_folder(folder: Path) -> None:
    """Make the spool folder again if somebody removed it since the server started. Raises StorageFull, StorageError."""
    with spooling():
        folder.mkdir(0o700, exist_ok=True)


spooling = partial(storage_errors, "the spool folder of the server")
"""A block that uses the spool folder. Errors of the operating system are raised as StorageFull or StorageError."""

LIMITS = web.AppKey("limits", ServerLimits)
