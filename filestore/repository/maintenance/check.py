"""Check a repository: records against manifests, manifests against rows, rows against frames, and the reverse.

It may run while servers write, pushes and collections included. It takes no lock, and holds no transaction open. So
what it suspects, it looks at again: damage is only what was wrong between two reads of the same live row, or between
two reads of the same record. What was removed or replaced meanwhile is not damage.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction

from filestore.core.batches import in_batches
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import Busy, FilestoreError, InvalidManifest, LimitExceeded, StorageError
from filestore.repository.index.protocol import ChunkRow, ChunkState, Index, PositionedRecord
from filestore.repository.maintenance.digest_set import DigestSet
from filestore.repository.maintenance.findings import AffectedFile, Finding, FindingKind
from filestore.repository.maintenance.frames import READERS, FrameReader, Verdict
from filestore.repository.maintenance.passes import Pass, digest_at
from filestore.repository.maintenance.results import NO_NAMESPACE, Outcome, ResultKind, TaskResult, keep_result
from filestore.repository.manifest_batches import read_of_records
from filestore.repository.stores.protocol import ChunkStore, FrameState
from filestore.system.files import BAD_DISK
from filestore.system.threads import in_cpu_thread, task_group

CHECK_TASK = "check"
SCRUB_TASK = "scrub"
"""The names of the tasks that keep the state of a pass in the index."""

_PAGE = 1024
_INSPECTED_AT_ONCE = 256
_RECORDS = 256
_ATTEMPTS = 5
"""How often a row is read that changes each time. More pushes at the same moment are not likely."""
_SAVE_SECONDS = 10.0
_KNOWN_MANIFESTS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How to read the frames themselves."""

    fraction: Fraction = Fraction(1)
    """The share of the chunks. It begins where the last one stopped."""
    rate: float | None = None
    """The most bytes per second."""
    readers: int = READERS
    """The number of frames that are read at the same time."""


@dataclass(slots=True)
class CheckCounts:
    """What a check has looked at so far."""

    record_count: int = 0
    manifest_count: int = 0
    """Manifests of records, each counted once."""
    chunk_count: int = 0
    """Live rows."""
    stored_size: int = 0
    """Bytes of their frames."""
    read_count: int = 0
    read_size: int = 0
    """Frames that were read, and their bytes."""
    continued: bool = False
    """Whether an interrupted read was continued."""
    results: dict[str, TaskResult] = field(default_factory=dict)
    """The result of each namespace that the check is through with, and that of the index, by NO_NAMESPACE."""


async def check(
    store: ChunkStore,
    index: Index,
    *,
    namespaces: Sequence[str] | None = None,
    read: ReadPlan | None = None,
    counts: CheckCounts | None = None,
    writes: bool = True,
) -> AsyncIterator[Finding | AffectedFile]:
    """Yield what is wrong in a repository: first the index, then each namespace, with the affected files at its end.

    Without `read`, frames are not opened: their existence and size are checked. Only a frame with a wrong size is read.
    `counts` is updated while the check runs. Without `writes`, nothing is written. Otherwise the digests of frames are
    kept that have none yet, the state of `read`, and the results, as `keep_results` keeps them.

    Memory does not depend on the number of chunks, except for 8 bytes for each damaged one.

    Raises Busy if another process reads frames for a check, and StorageError if the store as a whole cannot be read.
    """
    counts = CheckCounts() if counts is None else counts
    tally = Tally(counts)
    async for finding in index_findings(index):
        tally.add(finding)
        yield finding
    try:
        found = sorted(await index.namespaces()) if namespaces is None else namespaces
    except StorageError as error:
        tally.add(_index_finding(error))
        yield _index_finding(error)
        found = ()
    await _note(index, NO_NAMESPACE, tally.result(), counts, writes=writes)
    for namespace in found:
        checking = NamespaceCheck(store, index, namespace, counts=counts, writes=writes)
        tally = Tally(counts)
        try:
            async for each in checking.run(read):
                tally.add(each)
                yield each
        except FilestoreError as error:
            if not (isinstance(error, StorageError) and _is_of_index(error)):
                await _note(index, namespace, tally.result(error), counts, writes=writes)
                raise
            finding = _index_finding(error, namespace)
            tally.add(finding)
            yield finding
        await _note(index, namespace, tally.result(), counts, writes=writes)


async def keep_results(index: Index, results: Mapping[str, TaskResult]) -> None:
    """Keep the results of a check by their namespaces, if the index can be written.

    Nothing is kept in an index of a version that has no place for it.
    """
    with suppress(FilestoreError):
        if await index.version() is None:
            return
        for namespace, result in results.items():
            await keep_result(index, namespace, ResultKind.CHECK, result)


async def _note(index: Index, namespace: str, result: TaskResult, counts: CheckCounts, *, writes: bool) -> None:
    counts.results[namespace] = result
    if writes:
        await keep_results(index, {namespace: result})


class Tally:
    """What a check finds in one namespace, from now on."""

    def __init__(self, counts: CheckCounts) -> None:
        """`counts` also has what was looked at before."""
        self._counts = counts
        self._before = replace(counts)
        self._began_at = _now()
        self._damage_count = self._file_count = self._reclaimable_count = self._reclaimable_size = 0

    def add(self, found: Finding | AffectedFile) -> None:
        """Count what was found."""
        if isinstance(found, AffectedFile):
            self._file_count += 1
        elif found.is_damage:
            self._damage_count += 1
        else:
            self._reclaimable_count += 1
            self._reclaimable_size += found.stored_size

    def result(self, error: FilestoreError | None = None) -> TaskResult:
        """Return the result, which is that of a check that has failed if there is an `error`."""
        before, now = self._before, self._counts
        return TaskResult(
            began_at=self._began_at,
            ended_at=_now(),
            outcome=Outcome.COMPLETE if error is None else Outcome.FAILED,
            error="" if error is None else str(error),
            facts={
                "damage_count": self._damage_count,
                "file_count": self._file_count,
                "reclaimable_count": self._reclaimable_count,
                "reclaimable_size": self._reclaimable_size,
                "record_count": now.record_count - before.record_count,
                "chunk_count": now.chunk_count - before.chunk_count,
                "stored_size": now.stored_size - before.stored_size,
                "read_count": now.read_count - before.read_count,
                "read_size": now.read_size - before.read_size,
            },
        )


class NamespaceCheck:
    """The steps of a check in one namespace. `records` uses what the steps before it have found."""

    def __init__(
        self, store: ChunkStore, index: Index, namespace: str, *, counts: CheckCounts | None = None, writes: bool = True
    ) -> None:
        self._store = store
        self._index = index
        self._namespace = namespace
        self._counts = CheckCounts() if counts is None else counts
        self._writes = writes
        self._lost = DigestSet()
        """The chunks that no reader can read."""
        self._found = DigestSet()
        """The chunks that a finding names."""

    async def run(self, read: ReadPlan | None = None) -> AsyncIterator[Finding | AffectedFile]:
        """Do all steps."""
        steps: list[AsyncIterator[Finding | AffectedFile]] = [self.rows(), self.frames()]
        if read is not None:
            steps.append(self.read(read))
        steps += [self.records(), self.manifests()]
        for step in steps:
            async for each in step:
                yield each

    async def rows(self) -> AsyncIterator[Finding]:
        """Compare rows with frames: existence, kind and size."""
        reader = FrameReader(self._store, count=1)
        # Which chunks earlier reads found damaged: these are read again, also if their sizes are right.
        suspects = await self._remembered()
        after: Digest | None = None
        while page := await self._index.chunk_rows(self._namespace, after, limit=_PAGE):
            after = page[-1].row.digest
            live = [state.row for state in page if state.is_live]
            self._counts.chunk_count += len(live)
            self._counts.stored_size += sum(row.stored_size for row in live)
            for row, state in zip(live, await self._inspected(live), strict=True):
                # Millions of rows: the ordinary case is decided by one comparison.
                if (state.size != row.stored_size or not state.size) or (suspects and row.digest in suspects):
                    finding = await self.examine(reader, row.digest)
                    if finding is not None:
                        yield finding
            if len(page) < _PAGE:
                break

    async def frames(self) -> AsyncIterator[Finding]:
        """Find frames without a row. Where the store `has_object_ids`, a push makes such frames all the time."""
        if self._store.has_object_ids:
            return
        try:
            async for finding in self._frames_without_row():
                yield finding
        except StorageError as error:
            yield self._unlisted(error, "frames")

    async def _frames_without_row(self) -> AsyncIterator[Finding]:
        async for digests in in_batches(self._store.digests(self._namespace), _PAGE):
            unknown = await self._without_row(digests)
            if not unknown:
                continue
            # A push renames frames before it commits their rows. After a write transaction of our own, it has.
            with suppress(StorageError, Busy):
                async with self._index.transaction(self._namespace):
                    pass
            unknown = await self._without_row(unknown)
            for digest, state in zip(unknown, await self._store.inspect(self._namespace, unknown), strict=True):
                if state.size:
                    yield Finding(
                        kind=FindingKind.FRAME_WITHOUT_ROW,
                        namespace=self._namespace,
                        digest=digest,
                        detail="no row knows it",
                        stored_size=state.size,
                    )

    async def read(self, plan: ReadPlan) -> AsyncIterator[Finding]:
        """Read frames and compare their digests. Keep the place, so that the next read goes on there.

        Raises Busy if another process does this.
        """
        if not self._writes:
            async for finding in self._read(plan):
                yield finding
            return
        async with self._index.try_lock(CHECK_TASK) as is_ours:
            if not is_ours:
                raise Busy(f"the namespace {self._namespace}", "another check reads its frames")
            async for finding in self._read(plan):
                yield finding

    async def _read(self, plan: ReadPlan) -> AsyncIterator[Finding]:
        state = Pass.load(await self._index.task_state(self._namespace, CHECK_TASK))
        self._counts.continued |= state.begin(plan.fraction, now=_now())
        reader = FrameReader(self._store, count=plan.readers, rate=plan.rate)
        async for finding in self.read_pass(reader, state, task=CHECK_TASK):
            yield finding

    async def read_pass(self, reader: FrameReader, state: Pass, *, task: str, until: int | None = None) -> AsyncIterator[Finding]:
        """Read what is left of a pass, or up to the place `until`, and save its state now and then and at the end."""
        saved_at = asyncio.get_running_loop().time()
        has_read = False
        async for window in state.windows(self._index, self._namespace, size=reader.window_size, until=until):
            verdicts = await reader.read(self._namespace, window.rows)
            self._counts.read_count += len(window.rows)
            self._counts.read_size += sum(verdict.stored_size for verdict in verdicts)
            has_read |= bool(window.rows)
            for verdict in verdicts:
                digest = verdict.row.digest
                is_known = digest in self._found
                finding = None if verdict.kind is None else await self.examine(reader, digest)
                if finding is not None and not is_known:
                    yield finding
                state.note(digest, is_damaged=finding is not None)
            state.advance(window, now=_now())
            now = asyncio.get_running_loop().time()
            is_due = has_read and now >= saved_at + _SAVE_SECONDS
            if await self._save(verdicts, state if is_due else None, task):
                saved_at = now
        if has_read or not state.left:
            await self._save([], state, task)

    async def examine(self, reader: FrameReader, digest: Digest) -> Finding | None:
        """Read the frame of a chunk, and return what is wrong. Return None if nothing is, or if it was removed meanwhile."""
        before = await self._row(digest)
        for _ in range(_ATTEMPTS):
            if before is None or not before.is_live:
                return None
            (verdict,) = await reader.read(self._namespace, [before.row])
            if verdict.kind is None:
                return None
            after = await self._row(digest)
            if after == before:
                break
            before = after
        return self._finding(verdict)

    async def records(self) -> AsyncIterator[Finding | AffectedFile]:
        """Compare records with manifests, and manifests with rows. Yield each file that damage affects."""
        known: dict[Digest, int] = {}
        position = 0
        while page := await self._index.records_after(self._namespace, position, limit=_RECORDS, only_valid=True):
            position = page[-1].position
            self._counts.record_count += len(page)
            async for record, manifest in self._unknown(page, known):
                is_whole = True
                async for each in self._record(record, manifest):
                    is_whole = False
                    yield each
                if is_whole:
                    if len(known) >= _KNOWN_MANIFESTS:
                        known.clear()
                    known[record.digest] = record.size

    async def _unknown(
        self, page: Sequence[PositionedRecord], known: Mapping[Digest, int]
    ) -> AsyncIterator[tuple[Record, Manifest | Finding]]:
        """Yield the records that are not in `known`, with their manifests, several of which are read together.

        The caller adds a record that is whole to `known` before it asks for the next one.
        """
        unknown = [found for found in page if known.get(found.record.digest) != found.record.size]
        alike: dict[Digest, list[Record]] = {}
        for found in unknown:
            alike.setdefault(found.record.digest, []).append(found.record)
        async for batch in read_of_records(unknown, self._manifest):
            for first, manifest in batch:
                for record in alike[first.record.digest]:
                    if known.get(record.digest) != record.size:
                        yield record, manifest if record is first.record else await self._manifest(record)

    async def manifests(self) -> AsyncIterator[Finding]:
        """Find manifests without a record."""
        try:
            async for finding in self._manifests_without_record():
                yield finding
        except StorageError as error:
            yield self._unlisted(error, "manifests")

    def _unlisted(self, error: StorageError, what: str) -> Finding:
        """Return what is found if a folder of the store cannot be listed. Raise `error` if the disk is not the reason."""
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in BAD_DISK:
            raise error
        where = "" if cause.filename is None else f", such as {cause.filename}"
        return Finding(
            kind=FindingKind.FOLDER_UNREADABLE,
            namespace=self._namespace,
            detail=f"the disk cannot list all folders of {what}{where} ({cause.strerror})",
        )

    async def _manifests_without_record(self) -> AsyncIterator[Finding]:
        async for digest in self._store.manifests(self._namespace):
            if not await self._index.ids_of_content(self._namespace, digest):
                yield Finding(
                    kind=FindingKind.MANIFEST_WITHOUT_RECORD,
                    namespace=self._namespace,
                    digest=digest,
                    detail="no record needs it",
                )

    async def _record(self, record: Record, manifest: Manifest | Finding) -> AsyncIterator[Finding | AffectedFile]:
        if isinstance(manifest, Finding):
            if await self._exists(record):
                yield manifest
                yield AffectedFile(record=record, damaged_count=0, chunk_count=0)
            return
        self._counts.manifest_count += 1
        if manifest.size != record.size:
            yield Finding(
                kind=FindingKind.RECORD_INVALID,
                namespace=self._namespace,
                digest=record.digest,
                detail=f"it states {record.size} bytes, and its manifest {manifest.size}",
                record=record,
            )
        absent: list[Digest] = []
        async for chunk, size in self._differing(manifest):
            if size is None:
                absent.append(chunk.digest)
                continue
            yield Finding(
                kind=FindingKind.ROW_WRONG,
                namespace=self._namespace,
                digest=chunk.digest,
                detail=f"its row states {size} bytes of content, and a manifest {chunk.size}",
                record=record,
            )
        damaged_count = await in_cpu_thread(self._lost.count_in, manifest.chunks.encoded)
        if not (absent or damaged_count) or not await self._exists(record):
            return
        for digest in absent:
            if digest not in self._found:
                self._found.add(digest)
                yield Finding(
                    kind=FindingKind.CHUNK_WITHOUT_ROW,
                    namespace=self._namespace,
                    digest=digest,
                    detail="a manifest names it, and it has no row",
                    record=record,
                )
        yield AffectedFile(record=record, damaged_count=damaged_count + len(absent), chunk_count=len(manifest.chunks))

    async def _manifest(self, record: Record) -> Manifest | Finding:
        try:
            encoded = await self._store.manifest(self._namespace, record.digest)
            if encoded is None:
                return self._manifest_finding(record, FindingKind.MANIFEST_MISSING, "its record has no manifest")
            manifest = await in_cpu_thread(Manifest.parse, encoded)
        except (InvalidManifest, LimitExceeded, StorageError) as error:
            return self._manifest_finding(record, FindingKind.MANIFEST_DAMAGED, _reason(error))
        if manifest.digest != record.digest:
            return self._manifest_finding(record, FindingKind.MANIFEST_DAMAGED, "its content has another digest")
        return manifest

    async def _differing(self, manifest: Manifest) -> AsyncIterator[tuple[Chunk, int | None]]:
        """Yield each chunk whose row is absent (None) or states another size, once."""
        seen: set[Digest] = set()
        for start in range(0, len(manifest.chunks), _PAGE):
            chunks = manifest.chunks[start : start + _PAGE]
            sizes = await self._index.sizes(self._namespace, list({chunk.digest for chunk in chunks}))
            for chunk in chunks:
                size = sizes.get(chunk.digest)
                if size != chunk.size and chunk.digest not in seen and chunk.digest not in self._lost:
                    seen.add(chunk.digest)
                    yield chunk, size

    async def _inspected(self, rows: Sequence[ChunkRow]) -> list[FrameState]:
        parts = [rows[start : start + _INSPECTED_AT_ONCE] for start in range(0, len(rows), _INSPECTED_AT_ONCE)]
        async with task_group() as group:
            tasks = [group.create_task(self._store.inspect(self._namespace, [row.digest for row in part])) for part in parts]
        return [state for task in tasks for state in task.result()]

    async def _without_row(self, digests: Sequence[Digest]) -> list[Digest]:
        live = await self._index.sizes(self._namespace, digests)
        # A condemned row is a row: a collection is about to remove its frame.
        return [digest for digest in digests if digest not in live and await self._row(digest) is None]

    async def _remembered(self) -> DigestSet:
        suspects = DigestSet()
        for task in (CHECK_TASK, SCRUB_TASK):
            for digest in Pass.load(await self._index.task_state(self._namespace, task)).damaged:
                suspects.add(digest)
        return suspects

    async def _row(self, digest: Digest) -> ChunkState | None:
        before = digest_at(int.from_bytes(digest, "big") - 1)
        rows = await self._index.chunk_rows(self._namespace, before, limit=1)
        return rows[0] if rows and rows[0].row.digest == digest else None

    async def _exists(self, record: Record) -> bool:
        """Return whether a record still exists. An id is never used again, so it has existed all the time."""
        return await self._index.record(self._namespace, Reference(id=record.id)) is not None

    async def _save(self, verdicts: Iterable[Verdict], state: Pass | None, task: str) -> bool:
        """Keep the digests of frames that have none, and the state of a pass. Return whether the state was written."""
        rows = [verdict.right_row for verdict in verdicts if verdict.kind is None and verdict.right_row is not None]
        if not self._writes or not (rows or state):
            return False
        async with self._index.transaction(self._namespace) as transaction:
            if rows:
                await transaction.set_frame_digests(self._namespace, rows)
            if state is not None:
                await transaction.set_task_state(self._namespace, task, state.as_json())
        return state is not None

    def _finding(self, verdict: Verdict) -> Finding:
        assert verdict.kind is not None  # noqa: S101  # the caller has checked it
        self._found.add(verdict.row.digest)
        if verdict.kind is not FindingKind.ROW_WRONG:
            self._lost.add(verdict.row.digest)
        return Finding(
            kind=verdict.kind,
            namespace=self._namespace,
            digest=verdict.row.digest,
            detail=verdict.detail,
            stored_size=verdict.stored_size,
        )

    def _manifest_finding(self, record: Record, kind: FindingKind, detail: str) -> Finding:
        return Finding(kind=kind, namespace=self._namespace, digest=record.digest, detail=detail, record=record)


async def index_findings(index: Index) -> AsyncIterator[Finding]:
    """Yield what is wrong with the index itself."""
    try:
        problems = await index.problems()
    except StorageError as error:
        yield _index_finding(error)
        return
    for problem in problems:
        kind = FindingKind.RECORD_INVALID if problem.is_record else FindingKind.INDEX_DAMAGED
        yield Finding(kind=kind, namespace=problem.namespace, detail=problem.detail)


def _index_finding(error: StorageError, namespace: str | None = None) -> Finding:
    return Finding(kind=FindingKind.INDEX_DAMAGED, namespace=namespace, detail=_reason(error))


def _is_of_index(error: StorageError) -> bool:
    return isinstance(error.__cause__, sqlite3.DatabaseError)


def _reason(error: FilestoreError) -> str:
    return str(error.named_facts().get("reason", error))


def _now() -> int:
    return time.time_ns() // 1000
