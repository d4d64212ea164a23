"""An index in one SQLite file, on a local file system.

It uses a write-ahead log with `synchronous=FULL`. Readers and the one writer do not wait for each other, and committed
data survives a power cut. Every write begins with BEGIN IMMEDIATE, because a read transaction that becomes a write
fails at once, with any timeout. Needs SQLite 3.24.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

from filestore.core.commits import PLAIN_COMMIT, Commit, Label, NewCommit
from filestore.core.digest import Digest
from filestore.core.object_names import NO_OBJECT_ID, ObjectName
from filestore.core.quotas import Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.errors import Busy, IndexDamaged, ReadOnly, RepositoryMoved
from filestore.repository.index import (
    chunks,
    content_digests,
    history,
    names,
    quotas,
    records,
    signing_keys,
    tasks,
    tokens,
    usage,
    uses,
)
from filestore.repository.index.connections import Connection, ReadingConnection, roll_back, run_when_free
from filestore.repository.index.integrity import find_problems
from filestore.repository.index.last_commit import LastCommit, check_version
from filestore.repository.index.protocol import (
    REFRESH_MICROSECONDS,
    Base,
    ChunkRow,
    ChunkState,
    ContentDigests,
    Heads,
    IndexProblem,
    IndexVersion,
    ListingGrowth,
    NamespaceUsage,
    Policy,
    PositionedRecord,
    Publication,
    QuotaRow,
    RemovedRows,
    TokenRow,
    Use,
)
from filestore.repository.index.publish_group import Group
from filestore.repository.index.publishing import Publishing, Waiter, drop, next_waiters
from filestore.repository.index.reading import may_be_written
from filestore.repository.index.row_pages import Row, Table, select_page
from filestore.repository.index.rows import new_record
from filestore.repository.index.schema import SCHEMA_VERSION, check_not_newer, free_pages, has_tables, mark_moved, prepare
from filestore.system.clock import system_now
from filestore.system.files import storage_errors
from filestore.system.locks import FileLock
from filestore.system.sqlite_links import check_links
from filestore.system.threads import in_disk_thread, shield_until_done
from filestore.system.turns import Turns
from filestore.system.turnstile import Turnstile

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["REFRESH_MICROSECONDS", "SCHEMA_VERSION", "SqliteIndex", "open_index", "open_index_for_reading", "system_now"]

BUSY_SECONDS = 60.0
SECRET_SIZE = 32

_FREED_PAGES = 500
"""How many pages of 4 KiB one transaction of `compact` moves."""
_SLICE_SECONDS = 0.1
_EMPTY = "it is empty: it has no tables"


class SqliteIndex:
    """An index with two connections, one for writing and one for reading. Each has its own thread.

    Open it with `open_index` or `open_index_for_reading`.
    """

    def __init__(
        self,
        writer: Connection,
        reader: Connection,
        *,
        busy_seconds: float,
        now: Callable[[], int],
        last_commit: LastCommit | None,
        turnstile: Turnstile | None = None,
        read_only: bool = False,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._busy_seconds = busy_seconds
        self._now = now
        self._last_commit = last_commit
        self._turnstile = turnstile
        self._read_only = read_only
        self._writing = Turns()
        self._looking = Turns()
        self._publishing = Publishing(self._commit_next)

    @property
    def waiting(self) -> dict[str, int]:
        return {"index-writes": self._writing.waiting, "index-looks": self._looking.waiting}

    async def stored_size(self) -> int:
        return await in_disk_thread(_files_size, self._reader.path)

    @asynccontextmanager
    async def transaction(self, namespace: str | None = None) -> AsyncIterator[SqliteTransaction]:  # noqa: ARG002  # it locks all
        """Begin a transaction by BEGIN IMMEDIATE. It waits for other writers in short steps, so that a cancel works.

        The namespaces of this process take turns, and then the processes do.
        """
        async with self._turn() as deadline:
            await run_when_free(self._writer, self._begin, deadline)
            transaction = SqliteTransaction(self._writer, self._now)
            yield transaction
            await shield_until_done(self._writer.run(self._commit, transaction))

    async def publish(self, publication: Publication) -> list[ChunkRow]:
        waiter = Waiter(publication, deadline=asyncio.get_running_loop().time() + self._busy_seconds)
        await self._publishing.publish(waiter)
        return waiter.new

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        live = await self.refreshed_sizes(namespace, digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in live]

    async def refreshed_rows(self, namespace: str, digests: Sequence[Digest]) -> list[ChunkRow]:
        """Return the live rows. This writes only if a last-seen time is old and writing is allowed."""
        async with self._looking.take():
            states = await self._reader.run(chunks.select_live, namespace, list(dict.fromkeys(digests)))
        horizon = self._now() - REFRESH_MICROSECONDS
        old = [] if self._read_only else [state.row.digest for state in states if state.last_seen < horizon]
        removed: set[Digest] = set()
        if old:
            # I9: a chunk that a collection condemned since the read above is reported missing.
            removed = set(old) - set(await self._write(partial(_refresh, namespace=namespace, digests=old, now=self._now())))
        return [state.row for state in states if state.row.digest not in removed]

    async def refreshed_sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return {row.digest: row.size for row in await self.refreshed_rows(namespace, digests)}

    async def removals(self, namespace: str) -> int:
        return await self._reader.run(tasks.select_removals, namespace)

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        return await self._reader.run(tasks.select_removed, namespace, number)

    async def record(self, namespace: str, reference: Reference, *, prefix: str = "") -> Record | None:
        return await self._reader.run(records.select_record, namespace, reference, prefix)

    async def versions(
        self, namespace: str, reference: Reference, *, limit: int, before: int | None = None, prefix: str = ""
    ) -> list[Record]:
        return await self._reader.run(records.select_versions, namespace, reference, limit, before, prefix=prefix)

    async def version_count(self, namespace: str, reference: Reference, *, before: int | None = None, prefix: str = "") -> int:
        return await self._reader.run(records.count_versions, namespace, reference, before, prefix=prefix)

    async def commit(self, namespace: str, name: str, revision: str | None = None) -> Commit | None:
        return await self._reader.run(history.select_commit, namespace, name, revision)

    async def history(
        self, namespace: str, name: str, revision: str | None = None, *, limit: int, before: int | None = None
    ) -> list[Commit] | None:
        return await self._reader.run(history.select_history, namespace, name, revision, limit=limit, before=before)

    async def labels(self, namespace: str, name: str) -> list[Label]:
        return await self._reader.run(history.select_labels, namespace, name)

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        return await self._reader.run(history.select_labels_of_record, namespace, file_id)

    async def list_names(
        self,
        namespace: str,
        *,
        search: str | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int,
        prefix: str = "",
    ) -> Heads:
        return await self._reader.run(
            names.select_heads, namespace, search=search, owner=owner, after=after, limit=limit, prefix=prefix
        )

    async def owner_namespace(self, owner: str) -> str | None:
        return await self._reader.run(history.select_owner_namespace, owner)

    async def owners(self) -> list[tuple[str, str]]:
        return await self._reader.run(history.select_owners)

    async def ids_of_content(self, namespace: str, digest: Digest) -> list[str]:
        return await self._reader.run(records.select_ids_of_content, namespace, digest)

    async def records(
        self, namespace: str, *, limit: int, before: int | None = None, with_graphs: bool = False, prefix: str = ""
    ) -> list[Record]:
        return await self._reader.run(records.select_records, namespace, limit, before, with_graphs=with_graphs, prefix=prefix)

    async def records_after(
        self, namespace: str, position: int, *, limit: int, only_valid: bool = False
    ) -> list[PositionedRecord]:
        return await self._reader.run(records.select_records_after, namespace, position, limit, only_valid=only_valid)

    async def newest_positions(self) -> dict[str, int]:
        return await self._reader.run(records.select_newest_positions)

    async def record_count(self, namespace: str) -> int:
        return await self._reader.run(records.select_count, namespace)

    async def superseded(
        self, namespace: str, position: int, *, newer_count: int, updated_before: int | None, limit: int
    ) -> list[PositionedRecord]:
        return await self._reader.run(
            records.select_superseded, namespace, position, newer_count=newer_count, before=updated_before, limit=limit
        )

    async def write_listing(self, namespace: str, file: BinaryIO, growth: ListingGrowth, *, prefix: str = "") -> None:
        connection = type(self._reader)(Path(self._reader.path), timeout_seconds=self._busy_seconds)
        try:
            await connection.run_long(lambda opened: records.write_listing(opened, namespace, file, growth, prefix=prefix))
        finally:
            await shield_until_done(connection.close())

    async def namespaces(self) -> list[str]:
        return await self._reader.run(chunks.select_namespaces)

    async def usage(self, namespace: str) -> NamespaceUsage:
        return await self._reader.run(usage.select_usage, namespace)

    async def usages(self) -> list[NamespaceUsage]:
        return await self._reader.run(usage.select_usages)

    async def lost_frames(
        self,
        namespace: str,  # noqa: ARG002  # of the protocol
        after: ObjectName | None = None,  # noqa: ARG002  # the same
        *,
        limit: int,  # noqa: ARG002  # the same
    ) -> list[ObjectName]:
        return []

    async def chunk_rows(self, namespace: str, after: Digest | None = None, *, limit: int) -> list[ChunkState]:
        return await self._reader.run(chunks.select_rows, namespace, after, limit)

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return await self._reader.run(chunks.select_sizes, namespace, digests)

    async def problems(self) -> list[IndexProblem]:
        # On a connection of its own, because it takes long, and other reads wait for the one of this object.
        connection = ReadingConnection(Path(self._writer.path), timeout_seconds=self._busy_seconds)
        try:
            return await connection.run_long(find_problems)
        finally:
            await shield_until_done(connection.close())

    async def unknown(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._reader.run(chunks.select_unknown, namespace, digests)

    async def content_digests(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
        return await self._reader.run(content_digests.select_contents, namespace, digests)

    async def contents_by_sha256(self, namespace: str, sha256s: Sequence[bytes]) -> dict[bytes, ContentDigests]:
        return await self._reader.run(content_digests.select_contents_by_sha256, namespace, sha256s)

    async def tree_digests(self, namespace: str, digest: Digest) -> bytes | None:
        return await self._reader.run(content_digests.select_tree, namespace, digest)

    async def known_trees(self, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
        return await self._reader.run(content_digests.select_trees, namespace, digests)

    async def policy(self, namespace: str) -> Policy:
        return await self._reader.run(tasks.select_policy, namespace)

    async def quotas(self) -> list[QuotaRow]:
        return await self._reader.run(quotas.select_quotas)

    async def task_state(self, namespace: str, task: str) -> dict[str, Any] | None:
        return await self._reader.run(tasks.select_state, namespace, task)

    async def version(self) -> IndexVersion | None:
        return await self._reader.run(tasks.select_version)

    @asynccontextmanager
    async def try_lock(self, name: str) -> AsyncIterator[bool]:
        """Take the lock of a file beside the index. The file stays, so that all processes lock the same one."""
        path = Path(f"{self._writer.path}.{name}.lock")
        with storage_errors(path):
            lock = await in_disk_thread(lambda: FileLock.of_file(path, is_required=False))
        try:
            yield await in_disk_thread(lock.try_acquire)
        finally:
            lock.release()

    async def uses(self, namespace: str, file_ids: Collection[str] | None = None) -> list[Use]:
        return await self._reader.run(uses.select_uses, namespace, file_ids)

    async def token(self, token_digest: Digest) -> TokenRow | None:
        return await self._reader.run(tokens.select_token, token_digest)

    async def tokens(self) -> list[TokenRow]:
        return await self._reader.run(tokens.select_tokens)

    async def note_token_uses(self, digests: Sequence[Digest]) -> None:
        if self._read_only:
            raise ReadOnly(self._writer.path)
        if not self._writing.is_free:
            raise Busy(self._writer.path, "another write of this process is in progress")
        async with self._writing.take():
            await self._writer.run(self._note_token_uses, digests)

    async def secret(self) -> bytes:
        kept = await self._reader.run(tokens.select_secrets)
        if not kept and self._read_only:
            raise ReadOnly(self._writer.path)
        if not kept:
            async with self.transaction():
                # Another process may have made one since.
                await self._writer.run(tokens.insert_secret, secrets.token_bytes(SECRET_SIZE))
                kept = await self._writer.run(tokens.select_secrets)
        return kept[0]

    async def signing_keys(self) -> SigningKeys:
        kept = await self._reader.run(tokens.select_secrets) or [await self.secret()]
        return signing_keys.parse_keys(kept, path=str(self._reader.path))

    async def row_page(self, table: Table, after: Row | None) -> list[Row]:
        """Return rows as `row_pages.RowSource` does."""
        return await self._reader.run(select_page, table, after)

    async def moved_to(self) -> str | None:
        """Return where the repository has moved, or None."""
        return await self._reader.run(tasks.select_moved)

    async def compact(self) -> None:
        """Free pages at the end of the file. An index that an earlier version made keeps them for its next rows."""
        is_done = False
        while not is_done:
            async with self.transaction():
                is_done = await self._writer.run(free_pages, _FREED_PAGES)
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Close both connections. SQLite rolls back an open transaction."""
        await shield_until_done(self._writer.close())
        if self._turnstile is not None:
            self._turnstile.close()
        await shield_until_done(self._reader.close())

    async def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` in a transaction, all in one change of threads, since others wait for each."""

        def run(connection: sqlite3.Connection) -> T:
            self._begin(connection)
            found = function(connection)
            self._commit(connection)
            return found

        async with self._turn() as deadline:
            return await run_when_free(self._writer, run, deadline)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[float]:
        """Take the turn of this process for a transaction, and roll back if the block fails. Yield until when it may wait."""
        deadline = asyncio.get_running_loop().time() + self._busy_seconds
        await self._acquire(deadline)
        try:
            yield deadline
        except BaseException:
            # Also after a cancel during BEGIN, which may have begun, or during COMMIT, which may have committed.
            if not self._writer.closed:
                await shield_until_done(self._writer.run(self._roll_back))
            raise
        finally:
            self._writing.release()

    def _note_token_uses(self, connection: sqlite3.Connection, digests: Sequence[Digest]) -> None:
        """Do the whole transaction in the thread. Others in this process wait for it, so it waits for nobody."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._begin(connection, wait_seconds=0)
            tokens.update_used_at(connection, digests, self._now())
            self._commit(connection)
        except BaseException:
            self._roll_back(connection)
            raise
        finally:
            connection.execute(f"PRAGMA busy_timeout = {round(_SLICE_SECONDS * 1000)}")

    def _begin(self, connection: sqlite3.Connection, *, wait_seconds: float = _SLICE_SECONDS) -> None:
        if self._turnstile is not None and not self._turnstile.try_enter(wait_seconds):
            raise Busy(self._writer.path, "another process is writing to it")
        self._writer.begin(connection)
        check_not_newer(connection, self._writer.path)
        moved_to = tasks.select_moved(connection)
        if moved_to is not None:
            raise RepositoryMoved(self._writer.path, moved_to)

    def _commit(self, connection: sqlite3.Connection, transaction: SqliteTransaction | None = None) -> None:
        if transaction is not None:
            transaction.write(connection)
        version = tasks.select_version(connection) if transaction is not None and transaction.has_record else None
        self._writer.commit(connection)
        if version is not None and self._last_commit is not None:
            self._last_commit.write(version)
        self._leave()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            roll_back(connection)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._turnstile is not None:
            self._turnstile.leave()

    async def _commit_next(self, queue: deque[Waiter]) -> None:
        """Commit the first publications of a queue in one transaction, and end them."""
        loop = asyncio.get_running_loop()
        try:
            await self._acquire(queue[0].deadline)
        except Busy as busy:
            kept = drop(queue, busy, now=loop.time())
            queue.clear()
            queue.extend(kept)
            return
        group = Group(next_waiters(queue))
        failure: BaseException | None = None
        try:
            while group.waiters and not await self._writer.run(self._publish, group):
                failed = Busy(self._writer.path, "another process is writing to it")
                group.waiters = drop(group.waiters, failed, now=loop.time())
        except BaseException as error:  # noqa: BLE001  # the waiters raise it
            failure = error
        try:
            if failure is not None or not group.waiters:
                # Also after a cancel during BEGIN, which may have begun, or during COMMIT, which may have committed.
                await shield_until_done(self._give_up(group))
        except BaseException as error:  # noqa: BLE001  # as above
            failure = failure or error
        finally:
            self._writing.release()
        for waiter in group.waiters:
            waiter.end(failure)
        if failure is not None and not isinstance(failure, Exception):
            raise failure

    def _publish(self, connection: sqlite3.Connection, group: Group) -> bool:
        """Do a whole transaction in the thread, since all others wait for each change of threads. Return False if it is busy."""
        group.prepare()
        try:
            self._begin(connection)
        except Busy:
            return False
        group.write(connection, self._now())
        self._commit(connection)
        group.close()
        return True

    async def _give_up(self, group: Group) -> None:
        try:
            if not self._writer.closed:
                await self._writer.run(self._roll_back)
        finally:
            await in_disk_thread(group.close)

    async def _acquire(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._writing.acquire()
        except TimeoutError:
            raise Busy(self._writer.path, f"another write of this process took more than {self._busy_seconds:g} s") from None


class SqliteTransaction:
    """Runs the writes of a transaction on the connection for writing.

    Rows of chunks wait for the next other step, or for the commit: all other writers wait for each change of threads.
    """

    def __init__(self, writer: Connection, now: Callable[[], int]) -> None:
        self._writer = writer
        self._now = now
        self._waiting: list[Callable[[sqlite3.Connection], None]] = []
        self.has_record = False
        """Whether a record was added."""

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        for write in waiting:
            write(connection)

    async def _run(self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def run(connection: sqlite3.Connection) -> T:
            self.write(connection)
            return function(connection, *args, **kwargs)

        return await self._writer.run(run)

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return await self._run(chunks.select_sizes, namespace, digests)

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        if rows:
            self._waiting.append(partial(chunks.insert_chunks, namespace=namespace, rows=rows, now=self._now()))

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        if digests:
            self._waiting.append(partial(chunks.update_last_seen, namespace=namespace, digests=digests, now=self._now()))

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> list[ObjectName]:
        await self._run(chunks.delete_chunks, namespace, digests)
        return [ObjectName(digest) for digest in digests]

    async def lose_chunks(self, namespace: str, names: Sequence[ObjectName]) -> list[Digest]:
        digests = [name.digest for name in names]
        without_row = set(await self._run(chunks.select_unknown, namespace, digests))
        await self._run(chunks.delete_chunks, namespace, digests)
        return [digest for digest in digests if digest not in without_row]

    async def forget_lost(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:  # noqa: ARG002  # of the protocol
        return []

    async def keep_manifest(self, namespace: str, name: ObjectName) -> bytes:  # noqa: ARG002  # of the protocol
        return NO_OBJECT_ID

    async def forget_manifest(self, namespace: str, digest: Digest) -> ObjectName:  # noqa: ARG002  # of the protocol
        return ObjectName(digest)

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        return await self._run(chunks.update_condemned, namespace, digests, unseen_since)

    async def set_frame_digests(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        await self._run(chunks.update_frame_digests, namespace, rows)

    async def add_bases(self, namespace: str, bases: Sequence[Base]) -> None:
        await self._run(chunks.insert_bases, namespace, bases)

    async def needed_bases(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._run(chunks.select_needed_bases, namespace, digests)

    async def removals(self, namespace: str) -> int:
        return await self._run(tasks.select_removals, namespace)

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        return await self._run(tasks.select_removed, namespace, number)

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._run(chunks.select_condemned, namespace, digests)

    async def usage(self, namespace: str) -> NamespaceUsage:
        return await self._run(usage.select_usage, namespace)

    async def count_again(self) -> None:
        await self._run(usage.replace_counts)

    async def add_record(
        self,
        namespace: str,
        *,
        name: str,
        digest: Digest,
        size: int,
        kind: Kind,
        manifest_size: int = 0,
        commit: NewCommit = PLAIN_COMMIT,
    ) -> Record:
        record = new_record(namespace, name=name, digest=digest, size=size, kind=kind)
        self.has_record = True
        return await self._run(records.insert_record, record, self._now(), manifest_size, commit)

    async def claim_owner(self, namespace: str, owner: str) -> None:
        await self._run(history.claim_owner, owner, namespace, self._now())

    async def remove_owner(self, owner: str) -> bool:
        return await self._run(history.delete_owner, owner)

    async def remove_owners(self, namespace: str) -> None:
        await self._run(history.delete_owners_of, namespace)

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        return await self._run(history.select_labels_of_record, namespace, file_id)

    async def set_label(self, namespace: str, name: str, label: Label, *, force: bool = False) -> Label:
        return await self._run(history.replace_label, namespace, name, label._replace(created_at=self._now()), force=force)

    async def remove_label(self, namespace: str, name: str, label: str) -> Label | None:
        return await self._run(history.delete_label, namespace, name, label)

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        return await self._run(records.delete_record, namespace, file_id)

    async def add_uses(self, namespace: str, added: Sequence[Use]) -> None:
        await self._run(uses.insert_uses, namespace, added)

    async def remove_uses(self, namespace: str, pipeline_id: str) -> None:
        await self._run(uses.delete_uses, namespace, pipeline_id)

    async def uses_of(self, namespace: str, file_id: str) -> list[Use]:
        return await self._run(uses.select_uses_of, namespace, file_id)

    async def add_token(
        self,
        token_digest: Digest,
        *,
        namespace: str,
        label: str,
        scope: Scope = Scope.ADMIN,
        prefix: str = "",
        expires_at: int | None = None,
    ) -> None:
        row = TokenRow(token_digest, namespace, label, self._now(), scope, prefix, expires_at)
        await self._run(tokens.insert_token, row)

    async def remove_token(self, token_digest: Digest) -> bool:
        return await self._run(tokens.delete_token, token_digest)

    async def signing_keys(self) -> SigningKeys:
        return signing_keys.parse_keys(await self._run(tokens.select_secrets), path=str(self._writer.path))

    async def set_signing_keys(self, keys: SigningKeys) -> None:
        await self._run(tokens.replace_keys, keys)

    async def set_policy(self, namespace: str, policy: Policy) -> None:
        await self._run(tasks.replace_policy, namespace, policy)

    async def set_quota(self, namespace: str, quota: Quota, *, token: Digest | None = None) -> None:
        await self._run(quotas.replace_quota, namespace, token, quota)

    async def add_content_digests(self, namespace: str, rows: Sequence[ContentDigests]) -> None:
        await self._run(content_digests.insert_contents, namespace, rows)

    async def set_tree_digests(self, namespace: str, digest: Digest, packed: bytes) -> None:
        await self._run(content_digests.insert_tree, namespace, digest, packed)

    async def set_task_state(self, namespace: str, task: str, state: dict[str, Any] | None) -> None:
        await self._run(tasks.replace_state, namespace, task, state)

    async def set_moved(self, location: str) -> None:
        """Note that the repository is at `location` from now on. After this transaction, each other one fails."""
        await self._run(tasks.replace_state, "", tasks.MOVED, {"to": location})
        await self._run(mark_moved)


async def open_index(
    path: Path,
    *,
    busy_seconds: float = BUSY_SECONDS,
    now: Callable[[], int] = system_now,
    last_commit: Path | None = None,
    turnstile: Path | None = None,
    makes_tables: bool = True,
) -> SqliteIndex:
    """Open the index in the file `path`, and make the file if it does not exist. Its folder must exist.

    `busy_seconds` is how long a write waits for other writers. `last_commit` is a file that remembers the last commit.
    `turnstile` is a folder for the files by which processes take turns to write. Without `makes_tables`, neither the file nor
    its tables are made.

    Raises IndexDamaged if the index is empty and `makes_tables` is false, or if it is not the index that `last_commit`
    names, or an older copy of it. Raises LinkedDatabase if its file has another name. Also raises UnknownFormat, StorageError,
    StorageFull, Busy.
    """
    await in_disk_thread(_check_links, path)
    # The connection for writing waits in slices, see `run_when_free`. The other waits only while SQLite recovers from
    # a crash.
    writer = Connection(path, timeout_seconds=_SLICE_SECONDS, makes_file=makes_tables)
    reader = Connection(path, timeout_seconds=busy_seconds)
    kept = None if last_commit is None else LastCommit(last_commit)
    entrance = None if turnstile is None else Turnstile(turnstile)
    index = SqliteIndex(writer, reader, busy_seconds=busy_seconds, now=now, last_commit=kept, turnstile=entrance)
    try:
        deadline = asyncio.get_running_loop().time() + busy_seconds
        await run_when_free(writer, partial(_open_tables, path=str(path), last_commit=kept, makes_tables=makes_tables), deadline)
        # Now, so that both connections have the same files open, whatever happens to the names.
        await reader.run(has_tables, str(path))
    except BaseException:
        await index.close()
        raise
    return index


async def open_index_for_reading(
    path: Path,
    *,
    busy_seconds: float = BUSY_SECONDS,
    now: Callable[[], int] = system_now,
    last_commit: Path | None = None,
) -> SqliteIndex:
    """Open the existing index in the file `path` for reading. No file is made.

    Only `transaction` writes, so that a reader can report damage. It fails if this user may not write. Raises
    IndexDamaged and LinkedDatabase as `open_index` does, UnknownFormat, StorageError, Busy. A file that nobody writes to, because
    this user may not and nobody else has it open, may have another name.
    """
    if await in_disk_thread(may_be_written, str(path)):
        await in_disk_thread(_check_links, path)
    writer = Connection(path, timeout_seconds=_SLICE_SECONDS)
    reader = ReadingConnection(path, timeout_seconds=busy_seconds)
    index = SqliteIndex(writer, reader, busy_seconds=busy_seconds, now=now, last_commit=None, read_only=True)
    kept = None if last_commit is None else LastCommit(last_commit)
    try:
        await reader.run(_check_tables, path=str(path), known=None if kept is None else await in_disk_thread(kept.read))
    except BaseException:
        await index.close()
        raise
    return index


def _refresh(connection: sqlite3.Connection, *, namespace: str, digests: Sequence[Digest], now: int) -> dict[Digest, int]:
    """Set the last-seen times of live rows. Return the sizes of those that are still live."""
    chunks.update_last_seen(connection, namespace, digests, now)
    return chunks.select_sizes(connection, namespace, digests)


def _files_size(path: str) -> int:
    size = 0
    with storage_errors(path):
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                size += Path(f"{path}{suffix}").stat().st_size
    return size


def _check_links(path: Path) -> None:
    with storage_errors(path):
        check_links(path)


def _open_tables(connection: sqlite3.Connection, *, path: str, last_commit: LastCommit | None, makes_tables: bool) -> None:
    """Make or migrate the tables, and check that this is the index that was last written."""
    known = None if last_commit is None else last_commit.read()
    if makes_tables or has_tables(connection, path):
        if known is not None:
            # Before a migration: an older index that was put here stays as it is.
            check_version(path, tasks.select_version(connection), known)
        prepare(connection)
    else:
        raise IndexDamaged(path, _EMPTY)
    version = tasks.select_version(connection)
    if last_commit is not None and version is not None and known is None:
        last_commit.write(version)


def _check_tables(connection: sqlite3.Connection, *, path: str, known: IndexVersion | None) -> None:
    if not has_tables(connection, path):
        raise IndexDamaged(path, _EMPTY)
    check_version(path, tasks.select_version(connection), known)
