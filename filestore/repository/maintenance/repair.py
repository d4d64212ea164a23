"""Repair a repository: forget what is lost, write rows again from frames, and take good copies from elsewhere.

It may run while servers write. Each step is a short write transaction that looks again before it changes something. So
after a kill, a second run completes the work. Nothing is removed: damaged frames are set aside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest, manifest_digest
from filestore.core.manifest import CHUNK_LIMIT, Manifest
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.errors import FilestoreError, InvalidFrame, InvalidManifest, LimitExceeded, NotFound, StorageError
from filestore.format.codec import FRAME_LIMIT, Decoder, Frame, frame_limit
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import (
    CheckCounts,
    NamespaceCheck,
    ReadPlan,
    Tally,
    index_findings,
    keep_results,
)
from filestore.repository.maintenance.content import replace_manifest
from filestore.repository.maintenance.findings import FRAME_LOST, AffectedFile, Finding, FindingKind
from filestore.repository.maintenance.frames import Verdict, judge_frame
from filestore.repository.maintenance.hold import Hold, holds
from filestore.repository.maintenance.results import NO_NAMESPACE
from filestore.repository.protocol import Repository
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.threads import in_cpu_thread, task_group

KEPT_LIMIT = 1000
"""The most findings, files and frames that a report names. All are counted."""

_PAGE = 1024
_BATCH_SIZE = 16 << 20
_RECORDS = 256
_OBJECTS_TOGETHER = 8


class Donor(Protocol):
    """Where good copies of lost content may be. Nothing that it gives is used before it is verified."""

    @property
    def name(self) -> str:
        """How the user named it."""

    def frames(self, wanted: Mapping[Digest, int]) -> AsyncIterator[list[Frame]]:
        """Yield frames of the chunks in `wanted`, which has their decoded sizes, as far as they are there.

        The memory of frames is valid until the next ones are asked for. Raises FilestoreError if the donor fails.
        """

    async def manifest(self, digest: Digest) -> bytes | None:
        """Return a manifest, or None if it is not there. Raises FilestoreError if the donor fails."""


class RepositoryDonor:
    """Another repository: that of a server, or one in a folder."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @property
    def name(self) -> str:
        return self._repository.location

    async def frames(self, wanted: Mapping[Digest, int]) -> AsyncIterator[list[Frame]]:
        """Ask for several chunks at a time."""
        for digests in batched_by_size(wanted, lambda digest: frame_limit(wanted[digest]), limit=_BATCH_SIZE, count_limit=_PAGE):
            buffer = memoryview(bytearray(sum(frame_limit(wanted[digest]) for digest in digests)))
            found = zip(digests, await self._repository.get(digests, buffer), strict=True)
            yield [Frame(digest, frame) for digest, frame in found if frame is not None]

    async def manifest(self, digest: Digest) -> bytes | None:
        try:
            return await self._repository.manifest(digest)
        except (NotFound, InvalidManifest):
            return None


@dataclass(slots=True)
class RepairReport:
    """What a repair found and did. The lists have at most 1000 members each; the numbers count everything."""

    counts: CheckCounts = field(default_factory=CheckCounts)
    damage: list[Finding] = field(default_factory=list)
    damage_count: int = 0
    affected: dict[str, AffectedFile] = field(default_factory=dict)
    """The files that were damaged, by their ids. This has all of them."""
    set_aside: list[str] = field(default_factory=list)
    """Where damaged frames are now."""
    set_aside_count: int = 0
    rows_forgotten: int = 0
    rows_written: int = 0
    chunks_restored: int = 0
    manifests_restored: int = 0
    failed_donors: dict[str, str] = field(default_factory=dict)
    """Why donors could not be used, by their names."""
    holds: list[Hold] = field(default_factory=list)
    """The namespaces whose collection is held."""
    remaining: list[Finding] = field(default_factory=list)
    remaining_count: int = 0
    lost: dict[str, AffectedFile] = field(default_factory=dict)
    """The files that are still damaged, by their ids."""

    @property
    def whole_again(self) -> list[AffectedFile]:
        """The files that were damaged and are whole."""
        return [file for file_id, file in self.affected.items() if file_id not in self.lost]

    def note(self, found: Finding | AffectedFile) -> None:
        """Note what was found before the repair."""
        if isinstance(found, AffectedFile):
            self.affected[found.record.id] = found
        elif found.is_damage:
            self.damage_count += 1
            if len(self.damage) < KEPT_LIMIT:
                self.damage.append(found)

    def note_remaining(self, found: Finding | AffectedFile) -> None:
        """Note what is still wrong after the repair."""
        if isinstance(found, AffectedFile):
            self.lost[found.record.id] = found
        elif found.is_damage:
            self.remaining_count += 1
            if len(self.remaining) < KEPT_LIMIT:
                self.remaining.append(found)

    def note_aside(self, where: str | None) -> None:
        """Note where a frame is now, if it was set aside."""
        if where is not None:
            self.set_aside_count += 1
            if len(self.set_aside) < KEPT_LIMIT:
                self.set_aside.append(where)


async def repair(
    store: ChunkStore,
    index: Index,
    *,
    donors: Sequence[Donor] = (),
    read: ReadPlan | None = None,
    report: RepairReport | None = None,
) -> RepairReport:
    """Repair every namespace of a repository, and say what is whole again and what is still lost.

    Rows without an intact frame are forgotten, so that the next push sends their chunks. Damaged frames are set aside.
    Intact frames without a row get one, and wrong rows are corrected (I5). What records still lack is taken from
    `donors`, in their order. With `read`, frames are read to find damage, as a check does.

    Memory grows only with the number of chunks that are lost and of files that are affected.

    Raises Busy if another check reads frames, and StorageError if the store or the index cannot be used.
    """
    report = RepairReport() if report is None else report
    async for problem in index_findings(index):
        report.note(problem)
    if report.damage_count:
        await _count_again(index)
    found = {*await index.namespaces(), *await store.namespaces()}
    for namespace in sorted(found):
        repairing = _NamespaceRepair(store, index, namespace, donors, report)
        await repairing.run(read)
        # What is left of the damage, as a check would find it now.
        await keep_results(index, {namespace: repairing.remaining.result()})
    tally = Tally(report.counts)
    async for problem in index_findings(index):
        tally.add(problem)
        report.note_remaining(problem)
    await keep_results(index, {NO_NAMESPACE: tally.result()})
    report.holds = [hold async for hold in holds(store, index)]
    return report


async def _count_again(index: Index) -> None:
    """Correct what the index counts of each namespace, which its quota depends on. A damaged index may prevent it."""
    with suppress(StorageError):
        async with index.transaction() as transaction:
            await transaction.count_again()


class _NamespaceRepair:
    def __init__(self, store: ChunkStore, index: Index, namespace: str, donors: Sequence[Donor], report: RepairReport) -> None:
        self._store = store
        self._index = index
        self._namespace = namespace
        self._donors = donors
        self._report = report
        self.remaining = Tally(report.counts)
        """What is still wrong at the end."""
        self._repository = LocalRepository(store, index, location=namespace, namespace=namespace)
        self._buffer = memoryview(bytearray(FRAME_LIMIT))
        self._content = memoryview(bytearray(CHUNK_LIMIT))
        self._decoder = Decoder()

    async def run(self, read: ReadPlan | None) -> None:
        """Do all steps."""
        checking = NamespaceCheck(self._store, self._index, self._namespace, counts=self._report.counts)
        async for finding in checking.rows():
            await self._repair_chunk(finding)
        if read is not None:
            async for finding in checking.read(read):
                await self._repair_chunk(finding)
        manifests: dict[Digest, Record] = {}
        # Before rows are written for frames without a row, so that the files are known that this makes whole.
        async for each in checking.records():
            self._report.note(each)
            if isinstance(each, Finding) and each.record is not None and each.digest is not None:
                if each.kind in {FindingKind.MANIFEST_MISSING, FindingKind.MANIFEST_DAMAGED}:
                    manifests[each.digest] = each.record
                elif each.kind is FindingKind.ROW_WRONG:
                    await self._repair_row(each.digest)
        await self._adopt_frames(checking)
        await self._restore_manifests(manifests)
        await self._restore_chunks()
        await self._note_remaining()

    async def _repair_chunk(self, finding: Finding) -> None:
        self._report.note(finding)
        if finding.digest is None:
            return
        if finding.kind in FRAME_LOST:
            await self._forget(finding.digest)
        elif finding.kind is FindingKind.ROW_WRONG:
            await self._repair_row(finding.digest)

    async def _forget(self, digest: Digest) -> None:
        """Forget a row without an intact frame, and set aside what is in the place of the frame."""
        if self._store.has_object_ids:
            # An object is set aside with those that readers could not read.
            self._report.rows_forgotten += len(await self._repository.verify_chunks([digest]))
            return
        async with self._index.transaction(self._namespace) as transaction:
            # A push may have sent the chunk since. During a write transaction none can.
            if await self._intact_row(digest) is not None:
                return
            await self._set_aside(ObjectName(digest))
            if await transaction.sizes(self._namespace, [digest]):
                await transaction.forget_chunks(self._namespace, [digest])
                self._report.rows_forgotten += 1

    async def _repair_row(self, digest: Digest) -> None:
        """Write the row of an intact frame again. A row that is being collected stays condemned."""
        if self._store.has_object_ids:
            await self._repair_row_of_object(digest)
            return
        async with self._index.transaction(self._namespace) as transaction:
            row = await self._intact_row(digest)
            if row is not None and await transaction.sizes(self._namespace, [digest]):
                await transaction.add_chunks(self._namespace, [row])
                self._report.rows_written += 1

    async def _repair_row_of_object(self, digest: Digest) -> None:
        for row in await self._index.refreshed_rows(self._namespace, [digest]):
            name = ObjectName(digest, row.object_id)
            frame = await self._store.read_object(self._namespace, name)
            right = None if frame is None else (await self._judged(digest, memoryview(frame))).right_row
            if right is None:
                continue
            async with self._index.transaction(self._namespace) as transaction:
                # A push may have put another object since.
                if await transaction.lose_chunks(self._namespace, [name]):
                    await transaction.add_chunks(self._namespace, [right._replace(object_id=name.object_id)])
                    self._report.rows_written += 1

    async def _adopt_frames(self, checking: NamespaceCheck) -> None:
        """Write rows for intact frames without a row (I5), and set the others aside."""
        if self._store.has_object_ids:
            await self._adopt_lost()
            return
        batch: list[Digest] = []
        async for finding in checking.frames():
            if finding.digest is not None:
                batch.append(finding.digest)
            if len(batch) == _PAGE:
                await self._adopt(batch)
                batch = []
        await self._adopt(batch)

    async def _adopt(self, digests: Sequence[Digest]) -> None:
        # The frames are verified outside of a transaction, because that takes long. A frame never changes (I1).
        rows = {digest: await self._intact_row(digest) for digest in digests}
        for start in range(0, len(digests), _PAGE):
            part = digests[start : start + _PAGE]
            async with self._index.transaction(self._namespace) as transaction:
                live = await transaction.sizes(self._namespace, part)
                condemned = set(await transaction.condemned(self._namespace, part))
                new = [digest for digest in part if digest not in live and digest not in condemned]
                states = dict(zip(new, await self._store.inspect(self._namespace, new), strict=True))
                intact = [row for digest in new if (row := rows[digest]) and states[digest].size == row.stored_size]
                await transaction.add_chunks(self._namespace, intact)
                self._report.rows_written += len(intact)
                for digest in new:
                    if rows[digest] is None and await self._intact_row(digest) is None:
                        await self._set_aside(ObjectName(digest))

    async def _adopt_lost(self) -> None:
        """Read the objects that could not be read once. Give the intact ones their rows, and set the damaged ones aside.

        Those that are missing stay as they are: they may be behind an address that leads to another store for an hour.
        """
        after: ObjectName | None = None
        while names := await self._index.lost_frames(self._namespace, after, limit=_OBJECTS_TOGETHER):
            after = names[-1]
            # They are read outside of a transaction, because that takes long. An object never changes (I1).
            async with task_group() as group:
                reads = [group.create_task(self._store.read_object(self._namespace, name)) for name in names]
            intact: dict[ObjectName, ChunkRow] = {}
            damaged: list[ObjectName] = []
            for name, frame in zip(names, (read.result() for read in reads), strict=True):
                if frame is not None:
                    row = (await self._judged(name.digest, memoryview(frame))).right_row
                    if row is None:
                        damaged.append(name)
                    else:
                        intact[name] = row._replace(object_id=name.object_id)
            await self._adopt_objects(intact, damaged)

    async def _adopt_objects(self, intact: Mapping[ObjectName, ChunkRow], damaged: Sequence[ObjectName]) -> None:
        # A copy is durable before the name of the object is forgotten, and the object goes last.
        aside = [name for name in damaged if await self._set_aside(name)]
        async with self._index.transaction(self._namespace) as transaction:
            # A push may have put a chunk again since, and another repair may have been here.
            kept = set(await transaction.forget_lost(self._namespace, [*intact, *aside]))
            live = await transaction.sizes(self._namespace, [name.digest for name in intact])
            rows = [row for name, row in intact.items() if name in kept and name.digest not in live]
            await transaction.add_chunks(self._namespace, rows)
        self._report.rows_written += len(rows)
        await self._store.remove(self._namespace, [name for name in aside if name in kept])

    async def _judged(self, digest: Digest, frame: memoryview) -> Verdict:
        return await in_cpu_thread(judge_frame, ChunkRow(digest, 0, 0), frame, self._decoder, self._content)

    async def _intact_row(self, digest: Digest) -> ChunkRow | None:
        """Read and decode a frame. Return the row that it should have, or None if it is absent or damaged."""
        unknown = ChunkRow(digest, 0, 0)
        (verdict,) = await self._store.read_each(
            self._namespace,
            [digest],
            self._buffer,
            lambda _, data: judge_frame(unknown, data, self._decoder, self._content),
        )
        return getattr(verdict, "right_row", None)

    async def _set_aside(self, name: ObjectName) -> bool:
        """Set a frame aside, and return whether it is."""
        try:
            where = await self._store.set_aside(self._namespace, name)
        except StorageError:
            # The disk may not be able to move what it cannot read. The next push replaces it.
            return False
        self._report.note_aside(where)
        return where is not None

    async def _restore_manifests(self, wanted: Mapping[Digest, Record]) -> None:
        for digest in wanted:
            for donor in self._usable_donors():
                try:
                    encoded = await donor.manifest(digest)
                except FilestoreError as error:
                    self._report.failed_donors[donor.name] = str(error)
                    continue
                if encoded is not None and manifest_digest(encoded) == digest:
                    await replace_manifest(self._store, self._index, self._namespace, digest, encoded)
                    self._report.manifests_restored += 1
                    break

    async def _restore_chunks(self) -> None:
        """Take the chunks that records lack from the donors."""
        lost = await self._lost_chunks() if self._donors else {}
        for donor in self._usable_donors():
            if not lost:
                break
            async for frames in self._frames_of(donor, dict(lost)):
                with suppress(InvalidFrame):  # the others were stored
                    await self._repository.put(frames)
                for digest in await self._index.sizes(self._namespace, [frame.digest for frame in frames]):
                    self._report.chunks_restored += lost.pop(digest, None) is not None

    async def _frames_of(self, donor: Donor, wanted: Mapping[Digest, int]) -> AsyncIterator[list[Frame]]:
        """Yield the frames that a donor has. If it fails, note why and stop."""
        frames = aiter(donor.frames(wanted))
        while True:
            try:
                found = await anext(frames)
            except StopAsyncIteration:
                return
            except FilestoreError as error:
                self._report.failed_donors[donor.name] = str(error)
                return
            # An error here is one of this repository.
            yield found

    def _usable_donors(self) -> list[Donor]:
        return [donor for donor in self._donors if donor.name not in self._report.failed_donors]

    async def _lost_chunks(self) -> dict[Digest, int]:
        """Return the chunks without a row that records need, with their decoded sizes."""
        lost: dict[Digest, int] = {}
        position = 0
        while page := await self._index.records_after(self._namespace, position, limit=_RECORDS, only_valid=True):
            position = page[-1].position
            for digest in dict.fromkeys(record.digest for _, record, _ in page):
                try:
                    encoded = await self._store.manifest(self._namespace, digest)
                    manifest = await in_cpu_thread(Manifest.parse, encoded or b"")
                except (InvalidManifest, LimitExceeded, StorageError):
                    continue
                for start in range(0, len(manifest.chunks), _PAGE):
                    chunks = manifest.chunks[start : start + _PAGE]
                    live = await self._index.sizes(self._namespace, [chunk.digest for chunk in chunks])
                    lost.update((chunk.digest, chunk.size) for chunk in chunks if chunk.digest not in live)
        return lost

    async def _note_remaining(self) -> None:
        # Frames that were just read are not read again: what was found is forgotten, and what is new was verified.
        checking = NamespaceCheck(self._store, self._index, self._namespace, writes=False)
        for step in (checking.rows(), checking.records()):
            async for each in step:
                self.remaining.add(each)
                self._report.note_remaining(each)
