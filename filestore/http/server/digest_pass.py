"""Compute the secondary digests of stored files beside the requests of a server.

Clients of the Hub API compare files by SHA-256, and by the id that git gives a file. A push does not state them. So one process
of the server reads what was stored since the last pass, the newest first, and keeps both digests of each file in the index.
By itself it does so for the names that have an owner, and for others when somebody asks.

The namespaces take turns, also in the middle of a large file. The pass gives way: it hashes one batch at a time, in one thread.
While a transfer of this process is under way, or the thread waits for a core, it rests four times as long as it works.

It can be killed at any moment. Large files are kept as they end, and the digests of a tree together at its end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from filestore.core.content_digests import FileDigests
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import Busy, FilestoreError, InvalidArchive, InvalidDigest, LimitExceeded, NotAnArchive, StorageFull
from filestore.http.server.digest_queue import DigestQueue, Due
from filestore.http.server.errors import FailureLog
from filestore.http.server.request_record import RequestRecord
from filestore.http.server.stored_trees import SERVED_TREES
from filestore.repository.index.protocol import ContentDigests, Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.metrics import Event, Gauge, count, note
from filestore.system.threads import in_cpu_thread
from filestore.transfer.content_hashing import LargeFile, TreeHashing, Work, hash_file
from filestore.transfer.parallelism import IN_A_SERVER
from filestore.transfer.stored_tree import StoredTree

logger = logging.getLogger("filestore.maintenance")

TASK = "digests"
"""The name of the state of the pass in the index, and of its lock."""
ASKED_TASK = "digests-asked"
"""The lock of a process that only answers questions, while another one has a pass under way."""
LOOK_SECONDS = 60.0
"""The time between two looks at what other processes have stored."""
BUSY_SECONDS = 60.0
STORAGE_SECONDS = 600.0
"""The times after which a pass goes on when the index is busy, or cannot be written, such as on a full disk."""
FIRST_SECONDS = 5.0
"""The time before the first look, so that a server that runs for a moment does not begin."""
SETTLE_SECONDS = 0.5
"""The time from a request that stored something to the look: often several files are stored one after the other."""
AGAIN_SECONDS = 1.0
"""The time until the next try while another process has the lock."""
TURN_SECONDS = 30.0
"""After this time, a process leaves the lock to the others for `TURN_REST_SECONDS`."""
TURN_REST_SECONDS = 3.0
FAILURE_SECONDS = 3600.0
"""The time after which content that could not be read is tried again."""
RESTS = 4.0
"""How many times as long as it works a pass rests while others need the cores."""
REST_LIMIT = 1.0
"""The longest rest in seconds."""
BUSY_RATIO = 1.25
"""A thread that takes so many times its processor time waits for a core."""
LONG_SECONDS = 10.0
"""After this time, a content of another namespace has its turn in the middle of a large one."""
FAILED_LIMIT = 1000
"""The most contents of a namespace that are tried again after a failure."""
REFUSED_LIMIT = 10_000
"""The most contents whose failures a process remembers."""
_POSITION_MAX = (1 << 63) - 1
_PAGE = 1000
_KEEP_COUNT = 500
"""The place is kept in the index after so many records that need nothing, and whenever something was computed."""


@dataclass(slots=True)
class _Place:
    """How far the pass is in a namespace."""

    done: int = 0
    """Nothing is due up to this position, but what has failed."""
    seen: int = 0
    """What is due up to this position is remembered, unless `has_more`."""
    has_more: bool = False
    seen_count: int = 0
    """The records that were seen since the place was kept."""
    is_changed: bool = False
    """Whether something was computed or failed since."""
    failed: dict[Digest, None] = field(default_factory=dict)

    @property
    def must_be_kept(self) -> bool:
        """Whether the index should have it."""
        return self.is_changed or self.seen_count >= _KEEP_COUNT

    def take_over(self, state: dict[str, Any] | None) -> None:
        """Take the state in the index, which another process may have written. One that is not valid is the same as none."""
        try:
            done = int((state or {})["done"])
            failed = dict.fromkeys(Digest.parse(text) for text in (state or {}).get("failed", [])[:FAILED_LIMIT])
        except (KeyError, TypeError, ValueError, OverflowError, InvalidDigest):
            return
        if not 0 <= done <= _POSITION_MAX:
            return
        self.failed |= failed
        self.done = max(self.done, done)
        self.seen = max(self.seen, self.done)

    def as_json(self) -> dict[str, Any]:
        """Return the state for the index."""
        return {"done": self.done, "failed": [str(digest) for digest in self.failed]}


class DigestPass:
    """The passes of one server process. All methods are called in the event loop."""

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        transfers: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`transfers` returns how many transfers are under way in this process. `clock` is in seconds."""
        self._store = store
        self._index = index
        self._transfers = transfers
        self._clock = clock
        self._woken = asyncio.Event()
        self._queue = DigestQueue()
        self._places: dict[str, _Place] = {}
        self._taken_over_at: float | None = None
        self._is_due_ours = False
        """Whether this process does what is due, and not only what it was asked for."""
        self._failed_at: dict[tuple[str, Digest], float] = {}
        self._under_way: list[tuple[str, float]] = []
        """The namespaces of the contents that are read, and when each began. The second one is in the middle of the first."""

    @property
    def waiting(self) -> int:
        """How many files and trees are known to wait."""
        return len(self._queue)

    def wake(self) -> None:
        """Say that something was stored. The pass looks for it soon."""
        self._woken.set()

    def observe(self, request: RequestRecord) -> None:
        """Take note of a request that has ended: it may have stored something."""
        if request.method not in {"GET", "HEAD"} and request.status // 100 == 2 and "record" in request.facts:
            self.wake()

    def wanted(self, namespace: str, digest: Digest) -> None:
        """Compute the digests of a stored file or tree next. Somebody asked for them, so its name needs no owner.

        This does nothing if they are known, or could not be computed within the last hour. It takes no time.
        """
        if not self._has_failed((namespace, digest)):
            self._queue.want(namespace, digest)
            self.wake()

    async def run(self) -> None:
        """Do passes until this is cancelled. Failures are written to the log."""
        seconds = FIRST_SECONDS
        failures = FailureLog("the secondary digests of stored files are computed later", level=logging.WARNING)
        while True:
            is_woken = await self._wait(seconds * random.uniform(0.5, 1))  # noqa: S311  # so that processes do not meet
            seconds = LOOK_SECONDS
            try:
                if not await self._has_work():
                    continue
                async with self._index.try_lock(TASK) as is_ours:
                    is_over = await self.work() if is_ours else not is_woken
                if not is_ours and self._queue.has_wanted:
                    async with self._index.try_lock(ASKED_TASK) as may_answer:
                        if may_answer:
                            await self._answer()
            except FilestoreError as error:
                failures.failed(error)
                await asyncio.sleep(BUSY_SECONDS if isinstance(error, Busy) else STORAGE_SECONDS)
                continue
            failures.succeeded()
            if not is_over:
                await asyncio.sleep(TURN_REST_SECONDS if is_ours else AGAIN_SECONDS)
                self.wake()

    async def _wait(self, seconds: float) -> bool:
        """Wait until there may be something to do. Return whether somebody said so."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(SETTLE_SECONDS)
        return True

    async def work(self) -> bool:
        """Compute what is wanted and what is due. Return False if it is the turn of another process before the end.

        The caller has the lock. Raises Busy, StorageFull, StorageError.
        """
        ends_at = self._clock() + TURN_SECONDS
        self._is_due_ours = True
        await self._take_over_all()
        while True:
            if self._woken.is_set() or not self._queue.has_due:
                await self._look()
            note(Gauge.DIGESTS_WAITING, value=len(self._queue))
            if not await self._compute_next() and await self._end_places():
                return True
            if self._clock() >= ends_at:
                return not len(self._queue)

    async def _answer(self) -> None:
        """Compute what was asked for in this process. The other one may compute the same, but no further one does."""
        self._is_due_ours = False
        while self._queue.has_wanted:
            await self._compute_next()

    async def _compute_next(self, *, not_in: str | None = None) -> bool:
        """Compute what is wanted, or else due in another namespace than `not_in`. Return False if there is nothing."""
        wanted = self._queue.take_wanted()
        if wanted is not None:
            await self._compute(*wanted)
            return True
        found = self._queue.take_due(not_in=not_in) if self._is_due_ours else None
        if found is None:
            return False
        namespace, due = found
        try:
            await self._compute(namespace, due.digest)
        except BaseException:
            self._queue.add(namespace, [due])
            raise
        return True

    async def _has_work(self) -> bool:
        """Return whether there is something to do, for which the lock is needed."""
        await self._take_over_all()
        await self._look()
        return len(self._queue) > 0 or any(place.must_be_kept for place in self._places.values())

    async def _take_over_all(self) -> None:
        if self._taken_over_at is None or self._clock() >= self._taken_over_at + LOOK_SECONDS:
            self._taken_over_at = self._clock()
            for namespace in await self._index.newest_positions():
                await self._take_over(namespace)

    async def _take_over(self, namespace: str) -> None:
        """Take the state that the index has of a namespace. What has failed is due again after some time."""
        place = self._places.setdefault(namespace, _Place())
        place.take_over(await self._index.task_state(namespace, TASK))
        self._queue.add(namespace, [Due(0, digest) for digest in place.failed if not self._has_failed((namespace, digest))])

    async def _look(self) -> None:
        """Look for what was stored since the last look."""
        self._woken.clear()
        for namespace, newest in (await self._index.newest_positions()).items():
            place = self._places.setdefault(namespace, _Place())
            while place.seen < newest and (page := await self._index.records_after(namespace, place.seen, limit=_PAGE)):
                owned = {found.record.digest: found for found in page if found.record.owner is not None}
                known = await self._known(namespace, [found.record for found in owned.values()])
                due = [
                    Due(found.position, digest)
                    for digest, found in owned.items()
                    if digest not in known and not self._has_failed((namespace, digest))
                ]
                place.has_more = self._queue.add(namespace, due) or place.has_more
                place.seen = page[-1].position
                place.seen_count += len(page)

    async def _known(self, namespace: str, records: Sequence[Record]) -> set[Digest]:
        """Return the digests of those records whose secondary digests are known."""
        trees = [record.digest for record in records if record.kind is Kind.DIRECTORY]
        files = [record.digest for record in records if record.kind is Kind.FILE]
        return await self._index.known_trees(namespace, trees) | (await self._index.content_digests(namespace, files)).keys()

    async def _end_places(self) -> bool:
        """Keep the places, when nothing is due. Return whether they are the newest ones."""
        is_over = True
        for namespace, place in self._places.items():
            if place.has_more:
                place.seen, place.has_more, is_over = place.done, False, False
                continue
            place.done = place.seen
            if place.must_be_kept:
                async with self._index.transaction(namespace) as transaction:
                    await transaction.set_task_state(namespace, TASK, place.as_json())
                place.is_changed, place.seen_count = False, 0
        return is_over

    async def _compute(self, namespace: str, digest: Digest) -> None:
        """Compute what is not known of a content that has a record. Raises Busy, StorageFull."""
        records = await self._index.versions(namespace, Reference(digest=digest), limit=_PAGE)
        kinds = {record.kind: record for record in records}
        place = self._places.setdefault(namespace, _Place())
        self._under_way.append((namespace, self._clock()))
        try:
            for record in kinds.values():
                if digest not in await self._known(namespace, [record]):
                    await (self._compute_tree if record.kind is Kind.DIRECTORY else self._compute_file)(namespace, digest)
                    place.is_changed = True
        except (Busy, StorageFull):
            raise
        except FilestoreError as error:
            if not await self._index.versions(namespace, Reference(digest=digest), limit=1):
                return  # it was removed meanwhile
            self._note_failure(namespace, records[0], error)
        except Exception as error:
            # A fault of our own. One content must not keep all others waiting.
            logger.exception("this is a fault of the server; please report it")
            self._note_failure(namespace, records[0], error)
        else:
            if digest in place.failed:
                del place.failed[digest]
                place.is_changed = True
        finally:
            self._under_way.pop()

    async def _compute_file(self, namespace: str, digest: Digest) -> None:
        repository = self._repository(namespace)
        manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(digest))
        digests = await hash_file(repository, manifest, pause=self._pause)
        row = ContentDigests(digest, manifest.size, *digests, source=digest, start=0)
        async with self._index.transaction(namespace) as transaction:
            await transaction.add_content_digests(namespace, [row])

    async def _compute_tree(self, namespace: str, digest: Digest) -> None:
        repository = self._repository(namespace)
        hashing = TreeHashing(repository, await StoredTree.open(repository, digest, limits=SERVED_TREES), pause=self._pause)
        large = await hashing.large_files()
        rows = await self._index.content_digests(namespace, [file.digest for file in large])
        known = {row.digest: FileDigests(row.sha256, row.blob_id) for row in rows.values()}

        async def keep(files: Sequence[tuple[LargeFile, FileDigests]]) -> None:
            found = [ContentDigests(file.digest, file.size, *digests, source=digest, start=file.start) for file, digests in files]
            for start in range(0, len(found), _PAGE):
                async with self._index.transaction(namespace) as transaction:
                    await transaction.add_content_digests(namespace, found[start : start + _PAGE])

        packed = await hashing.run(known, keep=keep)
        # Also of what was known: this tree may stay longer than the one in which it was found.
        await keep([(file, known[file.digest]) for file in large if file.digest in known])
        async with self._index.transaction(namespace) as transaction:
            await transaction.set_tree_digests(namespace, digest, packed)

    def _repository(self, namespace: str) -> LocalRepository:
        return LocalRepository(self._store, self._index, location="the server", namespace=namespace, transfer_limits=IN_A_SERVER)

    async def _pause(self, work: Work) -> None:
        """Let others have the cores. Compute what was asked for meanwhile, and something of another namespace."""
        count(Event.DIGESTED_SIZE, amount=work.size)
        if len(self._under_way) == 1:
            ((namespace, began),) = self._under_way
            is_long = self._is_due_ours and self._clock() >= began + LONG_SECONDS
            if is_long:
                await self._look()
            if is_long or self._queue.has_wanted:
                await self._compute_next(not_in=namespace)
                self._under_way = [(namespace, self._clock() if is_long else began)]
        if self._transfers() or work.seconds > BUSY_RATIO * work.cpu_seconds:
            await asyncio.sleep(min(REST_LIMIT, RESTS * work.seconds))

    def _has_failed(self, key: tuple[str, Digest]) -> bool:
        failed_at = self._failed_at.get(key)
        return failed_at is not None and self._clock() < failed_at + FAILURE_SECONDS

    def _note_failure(self, namespace: str, record: Record, error: Exception) -> None:
        """Log it, and try again later if the content may be repaired until then."""
        logger.warning("the secondary digests of %r in the namespace %s: %s", record.full_name, namespace, error)
        self._failed_at.pop((namespace, record.digest), None)
        self._failed_at[namespace, record.digest] = self._clock()
        if len(self._failed_at) > REFUSED_LIMIT:
            del self._failed_at[next(iter(self._failed_at))]
        place = self._places[namespace]
        is_refused = isinstance(error, InvalidArchive | NotAnArchive | LimitExceeded)
        may_be_repaired = isinstance(error, FilestoreError) and not is_refused
        if may_be_repaired and len(place.failed) < FAILED_LIMIT and record.digest not in place.failed:
            place.failed[record.digest] = None
            place.is_changed = True


DIGESTS = web.AppKey("digests", DigestPass)
"""The pass of a server process. Whoever misses the digests of something calls its method `wanted`."""
