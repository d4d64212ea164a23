"""A repository: a chunk store and an index behind a few verbs, and the order between them.

Invariants I1 to I9 are stated in `ARCHITECTURE.md` and cited here.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Never, Protocol

from blake3 import blake3

from filestore.aio import Budget, in_cpu_thread, in_disk_thread, per_thread, task_group, uninterrupted
from filestore.chunking import CUTTING_VERSION
from filestore.codec import HEADER_SIZE, Decoder, decoded_size, frame_limit
from filestore.digest import Buffer, Digest, manifest_digest
from filestore.errors import (
    Busy,
    ChunksMissing,
    DamagedRecord,
    InvalidFrame,
    InvalidManifest,
    NotFound,
    ReadOnly,
    StorageError,
    UnknownFormat,
    UsedAfterFork,
)
from filestore.index.protocol import ChunkRow, Index, Transaction
from filestore.layout import run_path
from filestore.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.objects import DEFAULT_NAMESPACE, Frame, Kind, Record, Reference, checked_name, checked_namespace
from filestore.signing import shortened, signed_path
from filestore.stages import Stage, part, stage
from filestore.stores.protocol import ChunkStore, Staging

REPOSITORY_VERSION = 1
SIGNED_SECONDS = 86400
"""How long a signed path holds where nobody says."""
IN_FLIGHT_LIMIT = 64 << 20
"""Bytes that a repository decodes at the same time where it is given no budget."""

_BUNDLE_SIZE = 4 << 20
"""Bytes, encoded and decoded, that are verified in one turn in a thread, and then synced in another: some frames."""
_COMMIT_SLICE = 8192
_RECORDS_AT_ONCE = 1000
_FAR_FUTURE = 1 << 62
"""Microseconds since 1970: later than any chunk was seen."""
_FRAME_LIMIT = frame_limit(CHUNK_LIMIT)
_REPOSITORY_ID = re.compile(r"[0-9a-f]{32}\Z")

Moved = Callable[[int], None]
"""The one upward signal of a transfer: encoded bytes that moved just now."""


class Identity(NamedTuple):
    """What a repository says of itself. Caches and journals key what they keep by `id` and `namespace`."""

    id: str
    """32 hex digits, made with the repository."""
    namespace: str
    cutting: int
    """The cutting version that pushers follow."""


class Repository(Protocol):
    """A folder here, or a server across HTTP: callers cannot tell which.

    All verbs are idempotent and may be cancelled at any await: then the whole of something is there, or nothing of it.
    `tests/contracts/test_repository.py` runs every rule against every implementation.
    """

    @property
    def location(self) -> str:
        """What a user calls it: a URL, or the path of a folder."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that stand for location and token, known without asking anyone; no secret can be had from them."""

    async def identity(self) -> Identity:
        """Asked once, then remembered. Raises UnknownFormat for a repository of another version."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` that must be sent, once each, in order. What is reported present stays for the grace period (I9)."""

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        """Keep frames, durably; each is verified first (I4). The caller may reuse their memory afterwards.

        `moved` is called with the number of encoded bytes of every step forward; a retry takes back with a negative one.

        Raises InvalidFrame for the first that does not decode to its digest; the whole ones before and after it may be kept.
        """

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames into `buffer`, one after the other; give each one's part of it, None where a chunk is absent.

        `buffer` must hold decoded sizes and 8 bytes a frame. Frames are not verified: whoever decodes them does that.
        """

    async def recheck(self, digests: Sequence[Digest]) -> list[Digest]:
        """Verify kept frames once more, and forget those that are damaged, so that the next push sends them again; returns these.

        For whoever met damage: it is not believed, but looked at. At most 4096 digests. A repository that was opened for reading
        only forgets them where this process may write; where it may not, they are returned all the same.
        """

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        """Record a file whose chunks were put. The same manifest, name and kind again is the same record, now the newest.

        Raises ChunksMissing with what must be sent first, InvalidManifest, InvalidName, LimitExceeded.
        """

    async def manifest(self, digest: Digest) -> bytes:
        """The canonical bytes of a file's manifest, verified. Raises NotFound, InvalidManifest."""

    async def record(self, reference: Reference) -> Record:
        """The newest record that `reference` means; under a digest alone, that of a directory comes before that of a file.

        Raises NotFound, and UnexpectedRecord where a server answers with another one.
        """

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Records from the newest down; with `before`, those with an earlier `updated_at`, for the next page."""

    async def sign(self, file_id: str) -> str:
        """The path, below the URL of a server of this repository, at which a record's bytes are read without a token.

        Any HTTP client may, until the path expires. Raises NotFound.
        """

    async def remove(self, file_id: str, *, with_chunks: bool = False) -> Record:
        """Remove a record. Its chunks stay, unless `with_chunks`: then those that no other record needs are removed as well.

        That reads the manifest of every record of the namespace. A push in progress that was told that such a chunk is there is
        told at its commit that it is missing, and sends it.

        Raises NotFound; DamagedRecord, and nothing is removed, where one of these manifests is missing or damaged.
        """

    async def close(self) -> None:
        """Free connections and files. No verb may be called afterwards."""


class LocalRepository:
    """A chunk store and an index in this process, for one namespace. Several may share a store, an index and a budget."""

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        location: str,
        namespace: str = DEFAULT_NAMESPACE,
        budget: Budget | None = None,
        signed_seconds: float = SIGNED_SECONDS,
        read_only: bool = False,
    ) -> None:
        """`budget`: bytes in flight (I6), none of which the caller may hold while it waits for a verb.

        `signed_seconds`: how long a signed path holds. `read_only`: verbs that write raise ReadOnly. Raises InvalidName.
        """
        self.location = location
        self.fingerprint = blake3(f"{location}\0{namespace}".encode(errors="surrogateescape")).hexdigest()
        self._opened_store = store
        self._opened_index = index
        self._pid = os.getpid()
        self._namespace = checked_namespace(namespace)
        self._budget = Budget(IN_FLIGHT_LIMIT) if budget is None else budget
        self._signed_seconds = signed_seconds
        self._read_only = read_only
        self._identity: Identity | None = None

    def __reduce__(self) -> Never:
        raise TypeError(f"{self.location}: an open repository cannot be sent to another process; open it there by connect()")

    @property
    def _store(self) -> ChunkStore:
        self._check_process()
        return self._opened_store

    @property
    def _index(self) -> Index:
        self._check_process()
        return self._opened_index

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsedAfterFork(self.location, self._pid)

    async def identity(self) -> Identity:
        if self._identity is None:
            repository_id, cutting = await read_format(self._store, location=self.location)
            self._identity = Identity(repository_id, self._namespace, cutting)
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        return await self._index.missing(self._namespace, digests)

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        async with self.delivery() as delivery:
            for frame in frames:
                delivery.add(frame)
            await delivery.keep()
        if moved is not None:
            moved(sum(len(frame.data) for frame in frames))

    @asynccontextmanager
    async def delivery(self) -> AsyncIterator[Delivery]:
        """The door for frames that arrive one after the other. What is not kept when the block ends is discarded."""
        self._check_writable()
        staged: set[Staging] = set()
        try:
            async with task_group() as group:
                delivery = Delivery(self._store, self._index, self._namespace, budget=self._budget, group=group, staged=staged)
                try:
                    yield delivery
                finally:
                    delivery.stop()
        finally:
            if staged:
                await uninterrupted(in_disk_thread(_discard, staged))

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """A live row whose frame is gone from the store is forgotten, so that the next push heals it."""
        frames = await self._store.read_into(self._namespace, digests, buffer)
        await self._forget_lost(digest for digest, frame in zip(digests, frames, strict=True) if frame is None)
        if moved is not None:
            moved(sum(len(frame) for frame in frames if frame is not None))
        return frames

    async def open(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """`get` for `sendfile`: frames open for reading, in the order asked; None where one is absent. The caller closes each."""
        files = await self._store.open(self._namespace, digests)
        try:
            await self._forget_lost(digest for digest, file in zip(digests, files, strict=True) if file is None)
        except BaseException:
            _close(files)
            raise
        return files

    async def recheck(self, digests: Sequence[Digest]) -> list[Digest]:
        suspects = await self._damaged(digests)
        if not suspects:
            return []
        try:
            async with self._index.transaction() as transaction:
                # Another push may have mended it since. Inside a write transaction none does.
                live = await transaction.sizes(self._namespace, suspects)
                damaged = await self._damaged(list(live))
                await transaction.forget_chunks(self._namespace, damaged)
        except (StorageError, Busy):
            if not self._read_only:
                raise
            return suspects
        return damaged

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        self._check_writable()
        checked_name(name)
        parsed = await in_cpu_thread(Manifest.parse, manifest)
        identity = await self.identity()
        if parsed.cutting != identity.cutting:
            raise InvalidManifest(f"its cutting version is {parsed.cutting}, this repository's is {identity.cutting}")
        async with self._index.transaction() as transaction:
            await self._check_chunks(transaction, parsed.chunks)
            # I2: durable before its record, and in the same transaction, so that no collection takes it in between.
            await self._store.put_manifest(self._namespace, parsed.digest, parsed.encoded)
            return await transaction.add_record(self._namespace, name=name, digest=parsed.digest, size=parsed.size, kind=kind)

    async def manifest(self, digest: Digest) -> bytes:
        encoded = await self._store.manifest(self._namespace, digest)
        if encoded is None:
            raise NotFound(str(digest))
        if await in_cpu_thread(manifest_digest, encoded) != digest:
            raise InvalidManifest(f"what is kept as {digest} is damaged; push the file again")
        return encoded

    async def record(self, reference: Reference) -> Record:
        record = await self._index.record(self._namespace, reference)
        if record is None and reference.name_otherwise is not None:
            record = await self._index.record(self._namespace, Reference(name=reference.name_otherwise))
        if record is None:
            raise NotFound(str(reference))
        return record

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        return await self._index.records(self._namespace, limit=limit, before=before)

    async def sign(self, file_id: str) -> str:
        record = await self.record(Reference(id=file_id))
        path = f"/{run_path(record.id, shortened(record.name))}"
        expires_at = int(time.time() + self._signed_seconds)
        secret = await self._index.secret()
        return signed_path(secret, "GET", path, namespace=self._namespace, expires_at=expires_at).removeprefix("/")

    async def remove(self, file_id: str, *, with_chunks: bool = False) -> Record:
        self._check_writable()
        chunks: dict[Digest, None] = {}
        seen_until = None
        if with_chunks:
            chunks = await self._chunks_of(await self.record(Reference(id=file_id)))
            seen_until = await self._keep_needed(chunks, without=file_id)
        async with self._index.transaction() as transaction:
            if with_chunks:
                # What was committed since; while this transaction lasts, nothing is.
                await self._keep_needed(chunks, without=file_id, since=seen_until)
            record = await transaction.remove_record(self._namespace, file_id)
            if record is None:
                raise NotFound(file_id)
            # I2: the record, then the rows marked, then frame and row.
            await transaction.mark_going(self._namespace, list(chunks), unseen_since=_FAR_FUTURE)
        if with_chunks:
            await self._remove_going(record.digest, list(chunks))
        return record

    async def _chunks_of(self, record: Record) -> dict[Digest, None]:
        """The chunks that a record needs: none where it was removed meanwhile. Raises DamagedRecord, StorageError."""
        try:
            manifest = await in_cpu_thread(Manifest.parse, await self.manifest(record.digest))
        except (NotFound, InvalidManifest) as error:
            # The record goes before its manifest (I2), and an id is never given again.
            if await self._index.record(self._namespace, Reference(id=record.id)) is None:
                return {}
            how = "missing" if isinstance(error, NotFound) else "damaged"
            raise DamagedRecord(record.id, record.name, f"its manifest {record.digest} is {how}") from error
        return dict.fromkeys(chunk.digest for chunk in manifest.chunks)

    async def _keep_needed(self, chunks: dict[Digest, None], *, without: str, since: int | None = None) -> int | None:
        """Take out of `chunks` what records need, other than that of the id `without`; the latest update that was looked at.

        `since`: only records that were updated later.
        """
        latest, before = since, None
        while chunks:
            page = await self._index.records(self._namespace, limit=_RECORDS_AT_ONCE, before=before)
            newer = [record for record in page if since is None or record.updated_at > since]
            for record in newer:
                latest = record.updated_at if latest is None else max(latest, record.updated_at)
                if record.id != without:
                    for digest in await self._chunks_of(record):
                        chunks.pop(digest, None)
            if len(newer) < _RECORDS_AT_ONCE:
                break
            before = newer[-1].updated_at
        return latest

    async def _remove_going(self, manifest: Digest, chunks: Sequence[Digest]) -> None:
        """Remove the manifest, unless a record needs it, and those of `chunks` that are marked as going."""
        for start in range(0, len(chunks), _COMMIT_SLICE):
            async with self._index.transaction() as transaction:
                going = await transaction.going(self._namespace, chunks[start : start + _COMMIT_SLICE])
                await self._store.remove(self._namespace, going)
                await transaction.forget_chunks(self._namespace, going)
        async with self._index.transaction():
            if await self._index.record(self._namespace, Reference(digest=manifest)) is None:
                await self._store.remove_manifest(self._namespace, manifest)

    async def close(self) -> None:
        """Close the store and the index, also for others that share them. Does nothing a second time.

        In a forked child, what the parent has opened stays as it is.
        """
        try:
            await self._opened_store.close()
        finally:
            await self._opened_index.close()

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly(self.location)

    async def _check_chunks(self, transaction: Transaction, chunks: Sequence[Chunk]) -> None:
        """I9: all are live, and are seen now. Raises ChunksMissing, InvalidManifest."""
        absent: dict[Digest, None] = {}
        for start in range(0, len(chunks), _COMMIT_SLICE):
            part = chunks[start : start + _COMMIT_SLICE]
            sizes = await transaction.sizes(self._namespace, [chunk.digest for chunk in part])
            for digest, size in part:
                found = sizes.get(digest)
                if found is None:
                    absent[digest] = None
                elif found != size:
                    raise InvalidManifest(f"chunk {digest} has {found} bytes, it says {size}")
            await transaction.refresh(self._namespace, list(sizes))
        if absent:
            raise ChunksMissing(*map(str, absent))

    async def _forget_lost(self, absent: Iterable[Digest]) -> None:
        """Forget the rows of frames that were not in the store."""
        asked = list(dict.fromkeys(absent))
        if not asked:
            return
        without_row = set(await self._index.missing(self._namespace, asked))
        lost = [digest for digest in asked if digest not in without_row]
        if not lost:
            return
        try:
            async with self._index.transaction() as transaction:
                # A frame may have been put since. Inside a write transaction none is, so that what is absent now stays so.
                live = await transaction.sizes(self._namespace, lost)
                still_lost = [digest for digest in live if not await self._has_frame(digest)]
                await transaction.forget_chunks(self._namespace, still_lost)
        except (StorageError, Busy):
            # Who only reads, perhaps from a read-only disk, is told that the chunk is absent, and not that a row of it stays.
            if not self._read_only:
                raise

    async def _damaged(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` that have no frame which decodes to them."""
        damaged = []
        for digest in dict.fromkeys(digests):
            async with self._budget.take(_FRAME_LIMIT + CHUNK_LIMIT):
                (frame,) = await self._store.read_into(self._namespace, [digest], memoryview(bytearray(_FRAME_LIMIT)))
                if frame is None or not await in_cpu_thread(_is_sound, Frame(digest, frame)):
                    damaged.append(digest)
        return damaged

    async def _has_frame(self, digest: Digest) -> bool:
        files = await self._store.open(self._namespace, [digest])
        _close(files)
        return files != [None]


@dataclass(slots=True, eq=False)
class _Arrival:
    """A frame at the door."""

    digest: Digest
    stored_size: int
    staging: Staging
    header: bytes = b""
    """Its first 8 bytes, as far as they are here."""
    received: int = 0
    data: Buffer | None = None
    """All of it, where it did not come piece by piece."""
    row: ChunkRow | None = None
    """Known once it was verified."""
    is_synced: bool = False
    refusal: InvalidFrame | None = None

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes to verify it, by what it says of itself; a lie is refused before it costs any."""
        try:
            return self.stored_size + decoded_size(self.header, digest=self.digest)
        except InvalidFrame:
            return self.stored_size


class Delivery:
    """Frames on their way in from one connection, verified (I4) and synced in the background while more arrive.

    One frame is received at a time: `begin`, then `write` until it is whole, both in a thread; then `check`, back in the event
    loop. One that is written in one piece is verified there and then, while it is in the processor's cache. Or `add` one that
    is in memory. `keep` makes visible what was verified. Never use it from two places at once. A failing disk cancels the block
    that it was made for, which then raises StorageError or StorageFull.
    """

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        namespace: str,
        *,
        budget: Budget,
        group: asyncio.TaskGroup,
        staged: set[Staging],
    ) -> None:
        """`staged`: what is to be discarded in the end stands in this set of the caller's."""
        self._store = store
        self._index = index
        self._namespace = namespace
        self._budget = budget
        self._group = group
        self._staged = staged
        self._arrivals: list[_Arrival] = []
        self._arriving: _Arrival | None = None
        self._whole: list[_Arrival] = []
        self._bundle: list[_Arrival] = []
        self._bundle_weight = 0
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, digest: Digest, stored_size: int) -> None:
        """The next frame. One that is not whole by now never will be."""
        if self._arriving is not None:
            self._arriving.staging.rest()
        arrival = self._arrive(digest, stored_size)
        if stored_size > _FRAME_LIMIT:
            arrival.refusal = InvalidFrame(str(digest), f"it has {stored_size} bytes, allowed are {_FRAME_LIMIT}")
        self._arriving = arrival

    def write(self, piece: Buffer) -> None:
        """The next bytes of the frame that was begun, in any split; they go to its staging file at once (I6). Blocks.

        The caller may reuse `piece` afterwards. Raises StorageError, StorageFull.
        """
        arrival = self._arriving
        if arrival is None or arrival.received + len(piece) > arrival.stored_size:
            raise ValueError("no frame was begun that these bytes belong to")
        arrival.received += len(piece)
        if len(arrival.header) < HEADER_SIZE:
            arrival.header += bytes(memoryview(piece)[: HEADER_SIZE - len(arrival.header)])
        is_whole = len(piece) == arrival.stored_size
        if arrival.refusal is None and is_whole:
            _verify(arrival, piece)
        if arrival.refusal is None and len(piece):
            _write(arrival, piece)
        if arrival.received == arrival.stored_size:
            arrival.staging.rest()
            self._arriving = None
            self._whole.append(arrival)

    def check(self) -> None:
        """Begin to verify and sync the frames that are whole."""
        whole, self._whole = self._whole, []
        for arrival in whole:
            if arrival.refusal is None:
                self._take_in(arrival)

    def add(self, frame: Frame) -> None:
        """A frame that is in memory as a whole, and stays there until `keep` returns or the block ends."""
        arrival = self._arrive(frame.digest, len(frame.data))
        arrival.header = bytes(frame.data[:HEADER_SIZE])
        arrival.data = frame.data
        self._take_in(arrival)

    async def keep(self) -> int:
        """Make the frames visible, durably, that are whole and were verified; returns how many.

        Raises InvalidFrame for the first that was refused, after the others were kept.
        """
        self.check()
        self._start_bundle()
        if self._tasks:
            await asyncio.wait(self._tasks)
        arrivals, self._arrivals = self._arrivals, []
        verified = {arrival: arrival.row for arrival in arrivals if arrival.row is not None and arrival.is_synced}
        if verified:
            await self._publish(verified)
        for arrival in arrivals:
            if arrival.refusal is not None:
                raise arrival.refusal
        return len(verified)

    def stop(self) -> None:
        """Cancel what runs in the background."""
        for task in self._tasks:
            task.cancel()

    def _arrive(self, digest: Digest, stored_size: int) -> _Arrival:
        arrival = _Arrival(digest, stored_size, self._store.stage())
        self._arrivals.append(arrival)
        self._staged.add(arrival.staging)
        return arrival

    def _take_in(self, arrival: _Arrival) -> None:
        # Frames wait for others: a hop to a thread costs as much as hashing 200 KiB.
        self._bundle.append(arrival)
        self._bundle_weight += arrival.weight
        if self._bundle_weight >= _BUNDLE_SIZE:
            self._start_bundle()

    def _start_bundle(self) -> None:
        bundle, self._bundle = self._bundle, []
        self._bundle_weight = 0
        if bundle:
            self._tasks.append(self._group.create_task(self._check(bundle)))

    async def _check(self, bundle: list[_Arrival]) -> None:
        unverified = [arrival for arrival in bundle if arrival.row is None]
        if unverified:
            # I6: taken when the frames are whole, so that a slow peer never holds any of it.
            async with self._budget.take(sum(arrival.weight for arrival in unverified)):
                await in_cpu_thread(_verify_all, unverified)
        await in_disk_thread(_settle, [arrival for arrival in bundle if arrival.row is not None])

    async def _publish(self, verified: dict[_Arrival, ChunkRow]) -> None:
        async with self._index.transaction() as transaction:
            live = await transaction.sizes(self._namespace, [row.digest for row in verified.values()])
            # I1: the frame of a live row stays as it is. I2: of any other row it is renamed into place, whatever is there.
            new = {arrival: row for arrival, row in verified.items() if row.digest not in live}
            await self._store.publish(self._namespace, [(row.digest, arrival.staging) for arrival, row in new.items()])
            await transaction.add_chunks(self._namespace, list(new.values()))
            await transaction.refresh(self._namespace, list(live))
        self._staged.difference_update(arrival.staging for arrival in new)


async def read_format(store: ChunkStore, *, location: str, new_id: str | None = None) -> tuple[str, int]:
    """The id and the cutting version of the repository in `store`, which is made one where it is none yet.

    A new one gets the id `new_id` (32 hex digits), without it a random one. Raises UnknownFormat.
    """
    proposed = {"format": REPOSITORY_VERSION, "cutting": CUTTING_VERSION, "id": new_id or secrets.token_hex(16)}
    kept = await store.initialise(json.dumps(proposed).encode() + b"\n")
    try:
        values = json.loads(kept)
        version, cutting, repository_id = values["format"], values["cutting"], str(values["id"])
    except (ValueError, KeyError, TypeError):
        raise UnknownFormat(location, "that cannot be read", str(REPOSITORY_VERSION)) from None
    check_versions(location, version=version, cutting=cutting)
    if not _REPOSITORY_ID.match(repository_id):
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    return repository_id, CUTTING_VERSION


def checked_identity(repository_id: object, namespace: object, cutting: object) -> Identity:
    """What a repository says of itself, checked: caches make paths of it (I4). Raises ValueError or InvalidName."""
    if not isinstance(repository_id, str) or not _REPOSITORY_ID.match(repository_id):
        raise ValueError("its id is not 32 hexadecimal digits")
    if not isinstance(namespace, str) or type(cutting) is not int:
        raise ValueError("its namespace is no text, or its cutting version no number")
    return Identity(repository_id, checked_namespace(namespace), cutting)


def check_versions(location: str, *, version: object, cutting: object) -> None:
    """Whether this program knows what a repository says of itself. Raises UnknownFormat."""
    if version != REPOSITORY_VERSION:
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    if cutting != CUTTING_VERSION:
        raise UnknownFormat(f"the cutting of {location}", str(cutting), str(CUTTING_VERSION))


_decoder = per_thread(Decoder)
_content_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, CHUNK_LIMIT)))
_frame_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, _FRAME_LIMIT)))


def _verify_all(bundle: list[_Arrival]) -> None:
    for arrival in bundle:
        _verify(arrival, arrival.data)


def _verify(arrival: _Arrival, data: Buffer | None) -> None:
    """Give the frame its row, or the refusal if it does not decode to its digest. Without `data`, it lies in its staging file."""
    with stage(Stage.VERIFY) as verifying:
        if data is None:
            data = _frame_buffer()[: arrival.stored_size]
            arrival.staging.read_into(data)
        try:
            content = _decoder().decode(Frame(arrival.digest, data), _content_buffer())
        except InvalidFrame as refusal:
            arrival.refusal = refusal
        else:
            verifying.add(len(content))
            arrival.row = ChunkRow(arrival.digest, len(content), arrival.stored_size)


def _is_sound(frame: Frame) -> bool:
    try:
        _decoder().decode(frame, _content_buffer())
    except InvalidFrame:
        return False
    return True


def _settle(arrivals: Iterable[_Arrival]) -> None:
    with stage(Stage.SYNC):
        for arrival in arrivals:
            if arrival.data is not None:
                _write(arrival, arrival.data)
            arrival.staging.sync()
            arrival.is_synced = True


def _write(arrival: _Arrival, data: Buffer) -> None:
    started = time.perf_counter()
    arrival.staging.write(data)
    part(Stage.WRITE, len(data), time.perf_counter() - started)


def _discard(staged: Iterable[Staging]) -> None:
    for staging in staged:
        staging.discard()


def _close(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
