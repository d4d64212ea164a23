"""Say whether a server process is alive, and whether it should get requests.

It is alive if it answers: `/healthz` looks at nothing else. A supervisor restarts a process that is not alive, and no
restart mends a disk. It is ready if it is not stopping, and its disk, its index and its spool folder can be used:
`/readyz`. A full disk does not matter to that, because a server goes on to read and to remove, and somebody must be able
to remove something. The answer says that it is full.

Each check does a small real write. Its result is kept for a few seconds, so that frequent questions cost nothing. A
check has a time limit, and a check that hangs is not started a second time: a disk that hangs fails the check, and does
not collect threads.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from aiohttp import web

from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.errors import Busy, StorageError, StorageFull, Unhealthy
from filestore.http.server.context import make_spool_folder, spooling
from filestore.http.server.errors import log_failure, problem_answer, refusal
from filestore.http.server.traffic import RETRY_AFTER_SECONDS
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.files import sync_descriptor

KEPT_SECONDS = 5.0
"""How long the result of a check is kept."""
LIMIT_SECONDS = 5.0
"""A check that takes longer than this has failed."""
BUSY_SECONDS = 2.0
"""How long a check of the index waits for another writer. A long write of another one shows that it can be written."""
_CONTENT_SIZE = 4096
FULL = "it is full"
"""The reason why nothing can be written to a part that has no space."""


class Health:
    """The checks of one server process."""

    def __init__(
        self, store: ChunkStore, index: Index, spool_folder: Path, *, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_stopping = is_stopping
        kept = "object store" if store.has_object_ids else "disk"
        self._checks: Mapping[str, _Check] = {
            kept: _Check(partial(_check_space_and_store, store), kept),
            "index": _Check(partial(_check_index, index), "index"),
            "spool folder": _Check(partial(_in_own_thread, partial(_check_spool, spool_folder)), "spool folder"),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Allow checks during the block. Its end does not wait for one that hangs."""
        try:
            yield
        finally:
            for check in self._checks.values():
                check.cancel()

    async def failure(self) -> Unhealthy | None:
        """Return the first part that failed, or None if all parts work."""
        for part, reason in (await self._reasons()).items():
            if reason and reason != FULL:
                return Unhealthy(part, reason)
        return None

    async def is_full(self) -> bool:
        """Return whether nothing new can be stored, because the disk or the one of the spool folder has no space."""
        return FULL in (await self._reasons()).values()

    async def answer_alive(self, _: web.Request) -> web.StreamResponse:
        """Answer that this process answers. No token is needed."""
        return web.json_response({"status": "ok"})

    async def answer_ready(self, _: web.Request) -> web.StreamResponse:
        """Answer whether this process should get requests. No token is needed, and nothing secret is said."""
        if self._is_stopping():
            return refusal("the server", "it is stopping", retry_after_seconds=RETRY_AFTER_SECONDS)
        failure = await self.failure()
        if failure is not None:
            return problem_answer(failure)
        return web.json_response({"status": "ok", "full": await self.is_full()})

    async def _reasons(self) -> dict[str, str]:
        """Return why each part does not work, or an empty text."""
        reasons = await asyncio.gather(*(check.reason() for check in self._checks.values()))
        return dict(zip(self._checks, reasons, strict=True))


class _Check:
    """One check, and its last result."""

    def __init__(self, check: Callable[[], Awaitable[None]], part: str) -> None:
        self._check = check
        self._part = part
        self._running: asyncio.Task[None] | None = None
        self._started = 0.0
        self._ended: float | None = None
        self._reason = ""

    async def reason(self) -> str:
        """Return why the part does not work, or an empty text."""
        now = time.monotonic()
        if self._running is None and (self._ended is None or now - self._ended >= KEPT_SECONDS):
            self._started = now
            self._running = asyncio.create_task(self._run())
        if self._running is not None:
            await asyncio.wait([self._running], timeout=max(0.0, self._started + LIMIT_SECONDS - now))
        if self._running is not None:
            return f"it did not answer within {LIMIT_SECONDS:g} seconds"
        return self._reason

    def cancel(self) -> None:
        """End the check that runs."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        reason = ""
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001  # any error means that the part does not work
            reason = FULL if isinstance(error, StorageFull) else "it cannot be written and read"
            if reason != self._reason:  # once, and not for each question
                log_failure(f"the check of the {self._part} failed", error)
        self._reason = reason
        self._ended = time.monotonic()
        self._running = None


async def _in_own_thread(function: Callable[[], None]) -> None:
    """Run `function` in a thread that nothing waits for, not even the end of the process, because it may hang."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if ended.cancelled():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        failure: Exception | None = None
        try:
            function()
        except Exception as error:  # noqa: BLE001  # raised again in the event loop
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="filestore-health", daemon=True).start()
    await ended


async def _check_space_and_store(store: ChunkStore) -> None:
    if store.has_object_ids:
        await _check_object_store(store)
        return
    await _in_own_thread(partial(_check_store, store))
    # It is full too if less would stay free than the setting `min_free`.
    async with store.space_for(_CONTENT_SIZE):
        pass


async def _check_object_store(store: ChunkStore) -> None:
    """Put an object that no row names, and remove it."""
    content = secrets.token_bytes(_CONTENT_SIZE)
    digest = chunk_digest(content)
    object_id = await store.put_manifest(DEFAULT_NAMESPACE, digest, content)
    await store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(digest, object_id))


def _check_store(store: ChunkStore) -> None:
    content = secrets.token_bytes(_CONTENT_SIZE)
    staging = store.new_staging()
    try:
        staging.write(content)
        store.sync(DEFAULT_NAMESPACE, [(chunk_digest(content), staging)])
        found = bytearray(len(content))
        staging.read_into(memoryview(found))
    finally:
        staging.discard()
    _compare(content, found)


def _check_spool(folder: Path) -> None:
    content = secrets.token_bytes(_CONTENT_SIZE)
    make_spool_folder(folder)
    with spooling(), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(content)
        sync_descriptor(file.fileno())
        file.seek(0)
        _compare(content, file.read())


async def _check_index(index: Index) -> None:
    state = {"written": secrets.token_hex(8)}
    try:
        async with asyncio.timeout(BUSY_SECONDS), index.transaction(DEFAULT_NAMESPACE) as transaction:
            await transaction.set_task_state(DEFAULT_NAMESPACE, "health", state)
    except (TimeoutError, Busy):
        # Another writer is at work, so the index can be written.
        await index.task_state(DEFAULT_NAMESPACE, "health")
        return
    # Another process may have written since.
    if await index.task_state(DEFAULT_NAMESPACE, "health") is None:
        raise StorageError("the index", "it does not return what was written to it")


def _compare(written: bytes, found: bytes | bytearray) -> None:
    if written != found:
        raise StorageError("the file of the check", "it does not hold what was written to it")
