"""A local repository: a chunk store and an index in this process. It does writes to them in the right order.

`ARCHITECTURE.md` states the invariants I1 to I9 that are cited here.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Never, TypeVar

from blake3 import blake3

from filestore.core.commits import (
    MAIN,
    PLAIN_COMMIT,
    Commit,
    Label,
    LabelKind,
    NewCommit,
    checked_branch,
    checked_label,
    checked_new_commit,
)
from filestore.core.digest import Digest
from filestore.core.links import Link
from filestore.core.manifest import CHUNK_LIMIT, Manifest
from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace, checked_new_full_name, shortened, split_full_name
from filestore.core.object_names import ObjectName
from filestore.core.paths import run_path
from filestore.core.quotas import EVERYBODY, NO_QUOTA, Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.signing import NO_ISSUER, signed_path
from filestore.errors import (
    Busy,
    DamagedRecord,
    InvalidManifest,
    NotFound,
    OutsidePrefix,
    OwnerTaken,
    ReadOnly,
    RevisionNotFound,
    StorageError,
    UsedAfterFork,
)
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.repository.commit_check import CommitCheck
from filestore.repository.format_file import read_format
from filestore.repository.full_disk import with_reserve
from filestore.repository.index.protocol import ContentDigests, Heads, Index, ListingGrowth, NamespaceUsage, Transaction, Use
from filestore.repository.ingest import Ingest, discard_all
from filestore.repository.links import OPERATOR, LinkMaker, list_links, make_link, revoke_link
from filestore.repository.listing import listing_file, read_lines
from filestore.repository.lost_frames import LostFrames
from filestore.repository.maintenance.selection import VersionRule
from filestore.repository.maintenance.versions import list_versions
from filestore.repository.manifest_check import SLICE, check_count, open_manifest, read_manifest
from filestore.repository.protocol import (
    BY_CORES,
    GRACE_SECONDS,
    SIGNED_SECONDS,
    FreedContent,
    Identity,
    Moved,
    Opening,
    QuotaUse,
    TransferLimits,
    Usage,
    VersionPage,
    Wanted,
    closed_error,
    whole_reference_of,
)
from filestore.repository.quota_check import added_record, check_announced, check_commit, check_not_full
from filestore.repository.removal import remove_record
from filestore.repository.stores.protocol import PUBLISHED_WITHIN_SECONDS, ChunkStore, FrameUrl, SpaceClaim, Staging
from filestore.repository.unneeded import remove_duplicates
from filestore.system.buffers import Budget
from filestore.system.clock import elapsed_seconds
from filestore.system.files import BLOCK_SIZE
from filestore.system.metrics import Event, count
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done, task_group

if TYPE_CHECKING:  # it imports numpy, which is heavy
    from filestore.repository.maintenance.growth import GrowthSums, Space

T = TypeVar("T")

IN_FLIGHT_LIMIT = 64 << 20
"""The default limit for the bytes that a repository decodes at the same time."""
_CHECKS = 10
"""How often the chunks of a manifest are checked for one commit."""


class LocalRepository:
    """A repository made of a chunk store and an index in this process, for one namespace.

    Several such objects may share a store, an index and a budget.
    """

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        location: str,
        namespace: str = DEFAULT_NAMESPACE,
        budget: Budget | None = None,
        signed_seconds: float = SIGNED_SECONDS,
        signed_until: int | None = None,
        issuer: str = NO_ISSUER,
        prefix: str = "",
        read_only: bool = False,
        quota: Quota = NO_QUOTA,
        opening: Opening | None = None,
        transfer_limits: TransferLimits = BY_CORES,
    ) -> None:
        """`budget` limits the bytes in flight (I6). The caller must not hold any of it while it waits for a verb.

        `signed_seconds` is how long a signed path is valid, unless the token that `issuer` stands for is removed. It ends no
        later than `signed_until`, in seconds since 1970. With `read_only`, verbs that write raise ReadOnly. Verbs that store
        something beyond `quota` raise QuotaExceeded. Raises InvalidName.

        With a `prefix`, all verbs treat records whose names do not begin with it as absent, and store no others: they raise
        OutsidePrefix. Content that is asked for by the digest of a chunk or a manifest is that of the whole namespace.

        `opening` is how another process opens the same repository.
        """
        self.location = location
        self.fingerprint = blake3(f"{location}\0{namespace}".encode(errors="surrogateescape")).hexdigest()
        self._opened_store = store
        self._opened_index = index
        self._pid = os.getpid()
        self._namespace = checked_namespace(namespace)
        self._budget = Budget(IN_FLIGHT_LIMIT) if budget is None else budget
        self._signed_seconds = signed_seconds
        self._signed_until = signed_until
        self._issuer = issuer
        self.prefix = prefix
        self._read_only = read_only
        self.quota = quota
        self._opening = opening
        self.transfer_limits = transfer_limits
        self._identity: Identity | None = None
        self._is_closed = False

    def __reduce__(self) -> Never:
        raise TypeError(f"{self.location}: an open repository cannot be sent to another process; open it there by connect()")

    def opening(self) -> Opening | None:
        return self._opening

    def lending(self, processes: int) -> AbstractAsyncContextManager[int]:
        return nullcontext(processes)  # a folder needs no connections

    @property
    def _store(self) -> ChunkStore:
        self._check_process()
        return self._opened_store

    @property
    def _index(self) -> Index:
        self._check_process()
        return self._opened_index

    @property
    def _lost_frames(self) -> LostFrames:
        return LostFrames(self._store, self._index, self._namespace, budget=self._budget, read_only=self._read_only)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsedAfterFork(self.location, self._pid)
        if self._is_closed:
            raise closed_error(self.location)

    @property
    def namespace(self) -> str:
        """The namespace of this object. Unlike the rest of `identity`, it is known without reading from the disk."""
        return self._namespace

    @property
    def waited_seconds(self) -> float | None:
        return None

    @property
    def waited_because(self) -> str:
        return ""

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        return None

    async def identity(self) -> Identity:
        if self._is_closed:
            raise closed_error(self.location)
        if self._identity is None:
            repository_id, chunking_version = await read_format(self._store, location=self.location)
            self._identity = Identity(repository_id, self._namespace, chunking_version)
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the chunks that must be sent. Look at the frames of the others, so that a push repairs what is lost.

        They are looked at in slices, between which other namespaces have their turn.
        """
        asked = list(dict.fromkeys(digests))
        missing: list[Digest] = []
        for start in range(0, len(asked), SLICE):
            part = asked[start : start + SLICE]
            present = await self._present(part)
            count(Event.CHUNKS_SHARED, amount=len(present))
            count(Event.CHUNKS_SHARED_SIZE, amount=sum(present.values()))
            missing += [digest for digest in part if digest not in present]
        return missing

    async def _present(self, digests: Sequence[Digest]) -> Mapping[Digest, int]:
        """Return the decoded size of each of `digests` that need not be sent."""
        if self._store.has_object_ids:
            return await self._index.refreshed_sizes(self._namespace, digests)
        rows = await self._index.refreshed_rows(self._namespace, digests)
        lost = await self._lost_frames.forget_among(rows)
        return {row.digest: row.size for row in rows if row.digest not in lost}

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        async with self.space_for(sum(len(frame.data) + BLOCK_SIZE for frame in frames)), self.ingest() as ingest:
            for frame in frames:
                ingest.add(frame)
            await ingest.commit()
        if moved is not None:
            moved(sum(len(frame.data) for frame in frames))

    def space_for(self, size: int, *, place: Path | None = None) -> AbstractAsyncContextManager[SpaceClaim]:
        """Promise space for `size` bytes during an `async with` block, as `ChunkStore.space_for` does."""
        self._check_writable()
        return self._store.space_for(size, place=place)

    @asynccontextmanager
    async def ingest(self) -> AsyncIterator[Ingest]:
        """Give an `Ingest` for frames that arrive one after the other.

        Frames that are not committed are discarded when the block ends. Raises ReadOnly if the repository is read-only.
        """
        self._check_writable()
        staged: set[Staging] = set()
        try:
            async with task_group() as group:
                ingest = Ingest(
                    *(self._store, self._index, self._namespace),
                    budget=self._budget,
                    group=group,
                    staged=staged,
                    quota=self.quota,
                )
                try:
                    yield ingest
                finally:
                    await ingest.stop()
        finally:
            if staged:
                await shield_until_done(in_disk_thread(discard_all, staged))

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames.

        If the frame of a live row is missing in the store, or cannot be read, the row is removed, so that the next push
        sends it.
        """
        try:
            frames = await self._store.read_into(self._namespace, digests, buffer)
        except ValueError:
            # The frame of another chunk may be in the place of a smaller one, and take the space of those that follow.
            wrong = set(await self._lost_frames.damaged(digests))
            if not wrong:
                raise
            intact = [digest for digest in digests if digest not in wrong]
            found = iter(await self._store.read_into(self._namespace, intact, buffer))
            frames = [None if digest in wrong else next(found) for digest in digests]
        await self._lost_frames.forget_absent(digest for digest, frame in zip(digests, frames, strict=True) if frame is None)
        if moved is not None:
            moved(sum(len(frame) for frame in frames if frame is not None))
        return frames

    async def open(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for `sendfile`, in the order of `digests`. The result has None for an absent frame.

        The caller must close each file. The rows of absent frames are removed, as in `get`.
        """
        files = await self._store.open(self._namespace, digests)
        try:
            await self._lost_frames.forget_absent(digest for digest, file in zip(digests, files, strict=True) if file is None)
        except BaseException:
            _close(files)
            raise
        return files

    async def frame_sizes(self, digests: Sequence[Digest]) -> list[int]:
        """Return the size of each frame, in the order of `digests`, or 0 if it is absent. Frames are not opened."""
        sizes = await self._store.sizes(self._namespace, digests)
        await self._lost_frames.forget_absent(digest for digest, size in zip(digests, sizes, strict=True) if not size)
        return sizes

    async def frame_urls(self, digests: Sequence[Digest], *, seconds: float) -> list[FrameUrl | None] | None:
        """Return URLs of frames, as `ChunkStore.frame_urls` does."""
        return await self._store.frame_urls(self._namespace, digests, seconds=seconds)

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        async with self._budget.take(FRAME_LIMIT + CHUNK_LIMIT):
            suspects = await self._lost_frames.damaged(digests)
        return await self._lost_frames.forget_damaged(suspects)

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        self._check_writable()
        self.check_name(checked_new_full_name(name))
        checked_new_commit(commit)
        parsed = await in_cpu_thread(Manifest.parse, manifest)
        check_count(parsed)
        identity = await self.identity()
        if parsed.chunking_version != identity.chunking_version:
            raise InvalidManifest(
                f"its cutting version is {parsed.chunking_version}, but this repository's is {identity.chunking_version}"
            )
        await check_commit(self._index, self._namespace, self.quota, parsed, name=name)
        async with self.space_for(len(parsed.encoded) + BLOCK_SIZE), self._transaction_for(parsed) as transaction:
            record = await self._add_record(transaction, parsed, name=name, kind=kind, commit=commit)
        count(Event.FILES_STORED)
        count(Event.FILES_STORED_SIZE, amount=record.size)
        return record

    @asynccontextmanager
    async def _transaction_for(self, manifest: Manifest) -> AsyncIterator[Transaction]:
        """Give a transaction in which all chunks of a manifest are live, and the manifest is durable (I2).

        They are checked before the transaction, and their last-seen times are set to now (I9), because a huge manifest takes
        seconds. The transaction checks only those that were removed since. If they are more than a slice, or nobody knows
        them any more, it is left, and they are checked before another one.

        This ends. Each check needs that chunks which were removed since the last one are there again. That happens again and
        again only if this namespace removes and pushes the same thousands of chunks all the time. Then the commit fails after
        a few checks, and the client may repeat it. No other namespace waits for it.

        Raises ChunksMissing if rows are missing, InvalidManifest if a size is wrong, and Busy.
        """
        check = CommitCheck(self._index, self._namespace, manifest)
        for _ in range(_CHECKS):
            await check.look()
            is_intact = not self._store.has_object_ids or await self._has_intact(manifest)
            began = elapsed_seconds()
            object_id = await self._store.put_manifest(self._namespace, manifest.digest, manifest.encoded)
            name = ObjectName(manifest.digest, object_id)
            async with self._index.transaction(self._namespace) as transaction:
                # A collection may have removed the manifest, which has no record yet. During this transaction it cannot.
                is_kept = self._store.has_object_ids or await self._store.has_manifest(self._namespace, manifest.digest)
                is_complete = is_kept and await check.is_complete(transaction)
                if is_complete:
                    kept = await transaction.keep_manifest(self._namespace, name)
                    if kept != object_id and not is_intact and not await self._has_intact(manifest):
                        # The object of the row was lost or damaged. It has no row from now on, and is removed as abandoned.
                        await transaction.forget_manifest(self._namespace, manifest.digest)
                        kept = await transaction.keep_manifest(self._namespace, name)
                    if elapsed_seconds() - began > PUBLISHED_WITHIN_SECONDS:  # this process was stopped, and it may be removed
                        raise Busy(self.location, "the commit waited for too long")
                    yield transaction
            if is_complete:
                if kept != object_id:
                    await remove_duplicates(self._store, self._namespace, manifests=[name])
                return
            if self._store.has_object_ids:
                await remove_duplicates(self._store, self._namespace, manifests=[name])
        raise Busy(self.location, f"chunks of the file were removed and stored again during each of {_CHECKS} checks")

    async def _has_intact(self, manifest: Manifest) -> bool:
        """Return whether the bytes of a manifest are stored."""
        return await self._store.manifest(self._namespace, manifest.digest) == manifest.encoded

    async def _add_record(
        self, transaction: Transaction, manifest: Manifest, *, name: str, kind: Kind, commit: NewCommit
    ) -> Record:
        owner, _ = split_full_name(name)
        if owner is not None:
            await transaction.claim_owner(self._namespace, owner)
        add = partial(
            transaction.add_record,
            self._namespace,
            name=name,
            digest=manifest.digest,
            size=manifest.size,
            kind=kind,
            manifest_size=len(manifest.encoded),
            commit=commit,
        )
        return await added_record(transaction, self._namespace, self.quota, add)

    async def check_announced(self, sizes: Mapping[Digest, int]) -> None:
        """Raise QuotaExceeded if frames of these sizes cannot be stored within the quota. The commit of each one checks again."""
        await check_announced(self._index, self._namespace, self.quota, sizes)

    async def check_not_full(self) -> None:
        """Raise QuotaExceeded if the quota does not permit to store any content that is new."""
        await check_not_full(self._index, self._namespace, self.quota)

    async def manifest(self, digest: Digest) -> bytes:
        return await read_manifest(self._store, self._namespace, digest)

    async def open_manifest(self, digest: Digest, *, is_verified: bool = True) -> BinaryIO:
        """Open the bytes of a manifest for `sendfile`, and verify them. The caller must close the file."""
        return await open_manifest(self._store, self._namespace, digest, is_verified=is_verified)

    async def record(self, wanted: Wanted) -> Record:
        reference = whole_reference_of(wanted)
        record = await self._index.record(self._namespace, reference, prefix=self.prefix)
        if record is None and reference.name_otherwise is not None:
            record = await self._index.record(self._namespace, Reference(name=reference.name_otherwise), prefix=self.prefix)
        if record is None and reference.revision is not None:
            await self._check_has_name(reference.full_name or "", reference.revision)
        if record is None:
            raise NotFound(str(reference))
        return record

    async def check_new_name(self, name: str, *, branch: str = MAIN) -> None:
        self._check_writable()
        self.check_name(checked_new_full_name(name))
        owner, _ = split_full_name(name)
        if owner is not None and await self._index.owner_namespace(owner) not in {None, self._namespace}:
            raise OwnerTaken(owner)
        if checked_branch(branch) != MAIN:
            await self.find_commit(name, f"refs/heads/{branch}")

    async def find_commit(self, name: str, revision: str | None = None) -> Commit:
        found = await self._index.commit(self._namespace, name, revision) if self.sees(name) else None
        if found is None:
            await self._check_has_name(name, revision or MAIN)
            raise NotFound(name)
        return found

    async def history(
        self, name: str, *, revision: str | None = None, limit: int = 1000, before: int | None = None
    ) -> list[Commit]:
        first = await self.find_commit(name, revision)
        # By the id: the branch may move meanwhile.
        found = await self._index.history(self._namespace, name, first.id, limit=limit, before=before)
        if found is None:
            raise RevisionNotFound(name, first.id)  # removed since
        return found

    async def list_names(
        self, *, search: str | None = None, owner: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Heads:
        """Return a page of the names that are seen here, as `Index.list_names` does."""
        return await self._index.list_names(
            self._namespace, search=search, owner=owner, after=after, limit=limit, prefix=self.prefix
        )

    async def owners(self) -> list[str]:
        """Return the owners of names that belong to the namespace, those that names seen here may have."""
        owners = [owner for owner, namespace in await self._index.owners() if namespace == self._namespace]
        return [owner for owner in owners if self.sees(f"{owner}/") or self.prefix.startswith(f"{owner}/")]

    async def content_digests(self, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
        """Return the secondary digests of stored contents, as far as they are known."""
        return await self._index.content_digests(self._namespace, digests)

    async def tree_digests(self, digest: Digest) -> bytes | None:
        """Return the secondary digests of the files of a stored tree, as `Index.tree_digests` does."""
        return await self._index.tree_digests(self._namespace, digest)

    async def labels(self, name: str) -> list[Label]:
        if await self._newest_version(name) is None:
            raise NotFound(name)
        return await self._index.labels(self._namespace, name)

    async def labels_of(self, record: Record) -> list[str]:
        """Return the names of the tags and branches at the commits of a record, in their order. A name has at most 1,000."""
        return await self._index.labels_of(self._namespace, record.id)

    async def set_label(
        self, name: str, label: str, *, kind: LabelKind = LabelKind.TAG, revision: str | None = None, force: bool = False
    ) -> Label:
        self._check_writable()
        checked_label(label, what=kind.value)
        commit = await self.find_commit(name, revision)
        async with self._index.transaction(self._namespace) as transaction:
            return await transaction.set_label(self._namespace, name, Label(label, kind, commit.id, 0), force=force)

    async def remove_label(self, name: str, label: str) -> Label:
        self._check_writable()
        if await self._newest_version(name) is None:
            raise NotFound(name)
        async with self._index.transaction(self._namespace) as transaction:
            removed = await transaction.remove_label(self._namespace, name, label)
        if removed is None:
            raise RevisionNotFound(name, label)
        return removed

    async def _check_has_name(self, name: str, revision: str) -> None:
        """Raise RevisionNotFound if there is a file with this name."""
        if await self._newest_version(name) is not None:
            raise RevisionNotFound(name, revision)

    async def _newest_version(self, name: str) -> Record | None:
        """Return the version of a name that was stored last, on whatever branch. It may be that `main` has none."""
        found = await self._index.versions(self._namespace, Reference.of_name(name), limit=1, prefix=self.prefix)
        return found[0] if found else None

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        return await self._index.records(self._namespace, limit=limit, before=before, prefix=self.prefix)

    async def iter_records(self) -> AsyncGenerator[Record, None]:
        with listing_file() as file:
            await self.write_listing(file, ListingGrowth())
            try:
                async for record in read_lines(file):
                    yield record
            except ValueError as error:
                raise StorageError(self.location, str(error)) from None

    async def write_listing(self, file: BinaryIO, growth: ListingGrowth) -> None:
        """Replace the content of `file` by the listing of all records, as `Index.write_listing` does."""
        await self._index.write_listing(self._namespace, file, growth, prefix=self.prefix)

    async def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        reference = whole_reference_of(wanted)
        try:
            first = await self.record(reference)
        except NotFound:
            name = reference.full_name or ""
            newest = await self._newest_version(name) if reference == Reference.of_name(name) else None
            if newest is None:
                raise
            first = newest
        rule = None
        if keep_last is not None or older_than_seconds is not None:
            rule = VersionRule(keep_last=keep_last, older_than_seconds=older_than_seconds)
        return await list_versions(
            self._index,
            self._namespace,
            reference,
            first=first,
            rule=rule,
            limit=limit,
            before=before,
            prefix=self.prefix,
        )

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        from filestore.repository.maintenance.usage import measure_freed  # noqa: PLC0415  # heavy: numpy

        with self._names_hidden():
            return await measure_freed(self._store, self._index, self._namespace, file_ids, prefix=self.prefix)

    async def freed_by_each(self, file_ids: Sequence[str]) -> dict[str, int]:
        """Return, by their ids, how many bytes the removal of each of these records alone would free, as `freed_by` finds them.

        Ids that do not exist are left out. It reads the manifests of all records of the namespace. Raises DamagedRecord.
        """
        from filestore.repository.maintenance.usage import measure_freed_each  # noqa: PLC0415  # heavy: numpy

        with self._names_hidden():
            return await measure_freed_each(self._store, self._index, self._namespace, file_ids, prefix=self.prefix)

    async def kept(self) -> NamespaceUsage:
        """Return what the whole namespace keeps, by its rows. This takes a moment, whatever its size."""
        return await self._index.usage(self._namespace)

    async def version_count(self, name: str) -> int:
        """Return the number of versions of a name. 0 if nothing is stored under it."""
        return await self._index.version_count(self._namespace, Reference.of_name(name), prefix=self.prefix)

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        return await self._usage(grace_seconds=GRACE_SECONDS if grace_seconds is None else grace_seconds, name_limit=name_limit)

    async def space(self, *, grace_seconds: float, name_limit: int = 1000) -> Space:
        """Return what `usage` returns, and how the namespace came to that, for the cost of `usage`."""
        from filestore.repository.maintenance.growth import GrowthSums, Space  # noqa: PLC0415  # heavy: numpy

        sums = GrowthSums()
        usage = await self._usage(grace_seconds=grace_seconds, name_limit=name_limit, growth=sums)
        return Space(usage, sums.growth())

    async def _usage(self, *, grace_seconds: float, name_limit: int, growth: GrowthSums | None = None) -> Usage:
        from filestore.repository.maintenance.usage import measure_usage  # noqa: PLC0415  # heavy: numpy

        usage = await measure_usage(
            self._store,
            self._index,
            self._namespace,
            now=time.time_ns() // 1000,
            grace_seconds=grace_seconds,
            name_limit=name_limit,
            prefix=self.prefix,
            growth=growth,
        )
        return usage._replace(quota=await self._quota_use())

    async def _quota_use(self) -> QuotaUse | None:
        rows = {row.namespace: row.quota for row in await self._index.quotas() if row.token is None}
        quota = rows.get(self._namespace, rows.get(EVERYBODY))
        if quota is None:
            return None
        kept = await self._index.usage(self._namespace)
        return QuotaUse(quota, kept.size, kept.whole_stored_size, kept.name_count)

    async def sign(self, file_id: str) -> str:
        record = await self.record(Reference(id=file_id))
        path = f"/{run_path(record.id, shortened(record.name))}"
        # Now, and not when the request began: what it waited for may have taken long.
        expires_at = int(time.time() + self._signed_seconds)
        if self._signed_until is not None:
            expires_at = min(expires_at, self._signed_until)
        keys = await self._index.signing_keys()
        signed = signed_path(keys, "GET", path, namespace=self._namespace, expires_at=expires_at, issuer=self._issuer)
        return signed.removeprefix("/")

    async def make_link(self, file_id: str, *, seconds: float, nonce: str | None = None, maker: LinkMaker = OPERATOR) -> Link:
        self._check_writable()
        record = await self.record(Reference(id=file_id))
        return await make_link(self._index, record, seconds=seconds, nonce=nonce or secrets.token_hex(16), maker=maker)

    async def links(self) -> list[Link]:
        return await list_links(self._index, self._namespace, prefix=self.prefix)

    async def revoke_link(self, link_id: str) -> Link:
        self._check_writable()
        return await revoke_link(self._index, self._namespace, link_id, prefix=self.prefix)

    async def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        self._check_writable()
        if self.prefix:
            # An id never gets another name, so this holds until the removal.
            await self.record(Reference(id=file_id))

        removal = partial(
            remove_record,
            self._store,
            self._index,
            self._namespace,
            file_id,
            with_chunks=with_chunks,
            force=force,
            updated_at=updated_at,
            unless_newest=unless_newest,
        )
        with self._names_hidden():
            record = await with_reserve(self._store, removal)
        count(Event.FILES_REMOVED)
        return record

    async def with_reserve(self, removal: Callable[[], Awaitable[T]]) -> T:
        """Return what `removal` returns. On a full disk, call it a second time with the space of the reserve."""
        return await with_reserve(self._store, removal)

    async def uses(self, file_ids: Collection[str] | None = None) -> list[Use]:
        """Return all uses of records by pipelines, or those of the records with these ids."""
        return await self._index.uses(self._namespace, file_ids)

    async def ids_of_content(self, digest: Digest) -> list[str]:
        """Return the ids of all records with a digest, the newest first."""
        return await self._index.ids_of_content(self._namespace, digest)

    async def add_uses(self, added: Sequence[Use]) -> None:
        """Record that pipelines use records. Uses of records that do not exist are skipped."""
        async with self._index.transaction(self._namespace) as transaction:
            await transaction.add_uses(self._namespace, added)

    async def remove_uses(self, pipeline_id: str, *, graph_ids: Sequence[str]) -> None:
        """Remove the graphs of a pipeline and all its uses of records, in one transaction. Missing ones do not matter."""

        async def removed() -> None:
            async with self._index.transaction(self._namespace) as transaction:
                for graph_id in graph_ids:
                    await transaction.remove_record(self._namespace, graph_id)
                await transaction.remove_uses(self._namespace, pipeline_id)

        await with_reserve(self._store, removed)

    async def contents_by_sha256(self, sha256s: Sequence[bytes]) -> dict[bytes, ContentDigests]:
        """Return a stored content for each SHA-256. Those that are not known are left out."""
        return await self._index.contents_by_sha256(self._namespace, sha256s)

    async def note_digests(self, rows: Sequence[ContentDigests], *, tree: Digest, packed: bytes | None) -> None:
        """Add secondary digests that this process has computed: those of contents, and those of the files of a stored tree.

        What has no record is skipped. `packed` is what `Index.tree_digests` returns, or None if it is not known.
        """
        async with self._index.transaction(self._namespace) as transaction:
            await transaction.add_content_digests(self._namespace, rows)
            if packed is not None:
                await transaction.set_tree_digests(self._namespace, tree, packed)

    async def close(self) -> None:
        """Close the store and the index, also for other objects that share them. A second call does nothing.

        In a forked child, the parent's files stay open.
        """
        self._is_closed = True
        try:
            await self._opened_store.close()
        finally:
            await self._opened_index.close()

    def sees(self, name: str) -> bool:
        """Return whether records with this name are seen here."""
        return name.startswith(self.prefix)

    def check_name(self, name: str) -> None:
        """Raise OutsidePrefix if no record with this name can be stored here."""
        if not self.sees(name):
            raise OutsidePrefix(f"the name {name!r}", self.prefix)

    @contextmanager
    def _names_hidden(self) -> Iterator[None]:
        """Replace the name in an error about a damaged record that is not seen here."""
        try:
            yield
        except DamagedRecord as error:
            if self.sees(str(error.named_facts()["name"])):
                raise
            raise DamagedRecord("", "", "its manifest is missing or damaged") from None

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly(self.location)


def _close(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
