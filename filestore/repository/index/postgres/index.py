"""An index in a PostgreSQL database. Any number of processes on any number of hosts use it side by side.

A write has the lock of its namespace from the first statement of its transaction to the commit. So each later statement sees all
that was committed to the namespace before, and nobody else changes that meanwhile. Writers of other namespaces do not wait. Reads
take no lock. Tables that have rows of several namespaces in common, such as owners and tokens, rely on unique constraints
and locks of rows.

The server must be reached directly, or through a proxy that keeps a session for each connection.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

import asyncpg

from filestore.core.commits import Commit, Label
from filestore.core.digest import Digest
from filestore.core.object_names import FrameObject, ObjectName
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.core.signing import SigningKeys
from filestore.errors import Busy, IndexDamaged, InvalidUrl, NotARepository, ReadOnly, UnknownFormat
from filestore.repository.index.postgres import (
    chunks,
    content_digests,
    history,
    names,
    object_map,
    quotas,
    records,
    row_pages,
    tasks,
    tokens,
    usage,
    uses,
)
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.connections import Connections
from filestore.repository.index.postgres.errors import FAILURES, postgres_errors
from filestore.repository.index.postgres.integrity import find_problems
from filestore.repository.index.postgres.listing import write_listing
from filestore.repository.index.postgres.location import shown_location
from filestore.repository.index.postgres.locks import ALL_NAMESPACES, locking
from filestore.repository.index.postgres.parts import joined, merged, read_parts
from filestore.repository.index.postgres.publish import Group
from filestore.repository.index.postgres.revisions import KNOWN_REVISIONS, REVISION
from filestore.repository.index.postgres.transaction import PostgresTransaction
from filestore.repository.index.postgres.writing import Writers
from filestore.repository.index.protocol import (
    REFRESH_MICROSECONDS,
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
from filestore.repository.index.publishing import Publishing, Waiter, next_waiters
from filestore.repository.index.row_pages import Row, Table
from filestore.repository.index.signing_keys import parse_keys
from filestore.system.threads import shield_until_done

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

SECRET_SIZE = 32

_ROLLBACK_SECONDS = 10
_ANSWER_SECONDS = 60
"""How much longer than a lock the answer about it may take."""
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {milliseconds}; {locking};"
    f" SELECT check_revision('{REVISION}')"
)
_STORED_SIZE = (
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)
_TABLES = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"


class PostgresIndex:
    """An index in a database, and what says which object is a frame (`stores.object_map.ObjectMap`).

    It belongs to one process and one event loop. Open it with `open_postgres_index`.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        location: str,
        busy_seconds: float,
        now: Callable[[], int],
        read_only: bool,
    ) -> None:
        self.location = location
        """The URL of the database, without password and query."""
        self._connections = connections
        self._busy_seconds = busy_seconds
        self._now = now
        self._read_only = read_only
        self._writers = Writers(location, limit=connections.writers)
        self._publishing = Publishing(self._commit_next)

    @property
    def waiting(self) -> dict[str, int]:
        return {"index-writes": self._writers.waiting, "index-looks": self._connections.waiting}

    async def stored_size(self) -> int:
        """Return the bytes of all tables in the schema of the index, with their indexes."""
        return await self._read(_select_stored_size)

    @asynccontextmanager
    async def transaction(self, namespace: str | None = None) -> AsyncIterator[PostgresTransaction]:
        async with self._begun(namespace, self._deadline()) as connection:
            yield PostgresTransaction(connection, self.location, self._now, namespace=namespace)

    async def publish(self, publication: Publication) -> list[ChunkRow]:
        self._connections.check()
        waiter = Waiter(publication, deadline=self._deadline())
        await self._publishing.publish(waiter)
        return waiter.new

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        live = await self.refreshed_sizes(namespace, digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in live]

    async def refreshed_rows(self, namespace: str, digests: Sequence[Digest]) -> list[ChunkRow]:
        """Return the live rows. This writes only if a last-seen time is old and writing is allowed."""
        states = joined(await self._look_up(chunks.select_live, namespace, _in_key_order(digests)))
        horizon = self._now() - REFRESH_MICROSECONDS
        old = {state.row.digest: state.row.size for state in states if state.last_seen < horizon}
        removed = old.keys() - (await self._refresh(namespace, old)).keys()
        return [state.row for state in states if state.row.digest not in removed]

    async def refreshed_sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        horizon = self._now() - REFRESH_MICROSECONDS
        found = await self._look_up(chunks.select_refreshed, namespace, _in_key_order(digests), horizon)
        recent, old = (merged(sizes) for sizes in zip(*found, strict=True))
        return recent | await self._refresh(namespace, old)

    async def removals(self, namespace: str) -> int:
        return await self._read(tasks.select_removals, namespace)

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        return await self._read(tasks.select_removed, namespace, number)

    async def record(self, namespace: str, reference: Reference, *, prefix: str = "") -> Record | None:
        return await self._read(records.select_record, namespace, reference, prefix)

    async def versions(
        self, namespace: str, reference: Reference, *, limit: int, before: int | None = None, prefix: str = ""
    ) -> list[Record]:
        return await self._read(records.select_versions, namespace, reference, limit, before, prefix=prefix)

    async def version_count(self, namespace: str, reference: Reference, *, before: int | None = None, prefix: str = "") -> int:
        return await self._read(records.count_versions, namespace, reference, before, prefix=prefix)

    async def commit(self, namespace: str, name: str, revision: str | None = None) -> Commit | None:
        return await self._read(history.select_commit, namespace, name, revision)

    async def history(
        self, namespace: str, name: str, revision: str | None = None, *, limit: int, before: int | None = None
    ) -> list[Commit] | None:
        return await self._read(history.select_history, namespace, name, revision, limit=limit, before=before)

    async def labels(self, namespace: str, name: str) -> list[Label]:
        return await self._read(history.select_labels, namespace, name)

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        return await self._read(history.select_labels_of_record, namespace, file_id)

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
        return await self._read(
            names.select_heads, namespace, search=search, owner=owner, after=after, limit=limit, prefix=prefix
        )

    async def owner_namespace(self, owner: str) -> str | None:
        return await self._read(history.select_owner_namespace, owner)

    async def owners(self) -> list[tuple[str, str]]:
        return await self._read(history.select_owners)

    async def ids_of_content(self, namespace: str, digest: Digest) -> list[str]:
        return await self._read(records.select_ids_of_content, namespace, digest)

    async def records(
        self, namespace: str, *, limit: int, before: int | None = None, with_graphs: bool = False, prefix: str = ""
    ) -> list[Record]:
        return await self._read(records.select_records, namespace, limit, before, with_graphs=with_graphs, prefix=prefix)

    async def records_after(
        self, namespace: str, position: int, *, limit: int, only_valid: bool = False
    ) -> list[PositionedRecord]:
        return await self._read(records.select_records_after, namespace, position, limit, only_valid=only_valid)

    async def newest_positions(self) -> dict[str, int]:
        return await self._read(records.select_newest_positions)

    async def record_count(self, namespace: str) -> int:
        return await self._read(records.select_count, namespace)

    async def superseded(
        self, namespace: str, position: int, *, newer_count: int, updated_before: int | None, limit: int
    ) -> list[PositionedRecord]:
        return await self._read(
            records.select_superseded, namespace, position, newer_count=newer_count, before=updated_before, limit=limit
        )

    async def write_listing(self, namespace: str, file: BinaryIO, growth: ListingGrowth, *, prefix: str = "") -> None:
        async with self._connections.lend_long() as connection:
            with postgres_errors(self.location):
                await write_listing(connection, namespace, file, growth, prefix=prefix)

    async def namespaces(self) -> list[str]:
        return await self._read(chunks.select_namespaces)

    async def usage(self, namespace: str) -> NamespaceUsage:
        return await self._read(usage.select_usage, namespace)

    async def usages(self) -> list[NamespaceUsage]:
        return await self._read(usage.select_usages)

    async def lost_frames(self, namespace: str, after: ObjectName | None = None, *, limit: int) -> list[ObjectName]:
        return await self._read(object_map.select_lost, namespace, after, limit)

    async def chunk_rows(self, namespace: str, after: Digest | None = None, *, limit: int) -> list[ChunkState]:
        return await self._read(chunks.select_rows, namespace, after, limit)

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return merged(await self._look_up(chunks.select_sizes, namespace, digests))

    async def problems(self) -> list[IndexProblem]:
        async with self._connections.lend_long() as connection:
            with postgres_errors(self.location):
                return await find_problems(connection)

    async def unknown(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return joined(await self._look_up(chunks.select_unknown, namespace, digests))

    async def content_digests(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
        return merged(await self._look_up(content_digests.select_contents, namespace, digests))

    async def contents_by_sha256(self, namespace: str, sha256s: Sequence[bytes]) -> dict[bytes, ContentDigests]:
        return await self._read(content_digests.select_contents_by_sha256, namespace, sha256s)

    async def tree_digests(self, namespace: str, digest: Digest) -> bytes | None:
        return await self._read(content_digests.select_tree, namespace, digest)

    async def known_trees(self, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
        return await self._read(content_digests.select_trees, namespace, digests)

    async def policy(self, namespace: str) -> Policy:
        return await self._read(tasks.select_policy, namespace)

    async def quotas(self) -> list[QuotaRow]:
        return await self._read(quotas.select_quotas)

    async def task_state(self, namespace: str, task: str) -> dict[str, Any] | None:
        return await self._read(tasks.select_state, namespace, task)

    async def version(self) -> IndexVersion:
        """Return what identifies the index. Raises IndexDamaged if that is lost."""
        found = await self._read(tasks.select_version)
        if found is None:
            raise IndexDamaged(self.location, "it has lost its id")
        return found

    @asynccontextmanager
    async def try_lock(self, name: str) -> AsyncIterator[bool]:
        """Take a lock of the session that all locks of this process share. It is lost if that fails, so it may only save work."""
        self._connections.check()
        async with self._connections.locks.locked(name) as has_lock:
            yield has_lock

    async def uses(self, namespace: str, file_ids: Collection[str] | None = None) -> list[Use]:
        return await self._read(uses.select_uses, namespace, file_ids)

    async def token(self, token_digest: Digest) -> TokenRow | None:
        return await self._read(tokens.select_token, token_digest)

    async def tokens(self) -> list[TokenRow]:
        return await self._read(tokens.select_tokens)

    async def note_token_uses(self, digests: Sequence[Digest]) -> None:
        if self._read_only:
            raise ReadOnly(self.location)
        if not await self._read(tokens.update_used_at, digests, self._now(), ALL_NAMESPACES):
            raise Busy(self.location, "another process is writing to it")

    async def secret(self) -> bytes:
        kept = await self._read(tokens.select_secrets)
        if not kept and self._read_only:
            raise ReadOnly(self.location)
        if not kept:
            # Another process may make one at the same time. The first one stays.
            await self._read(tokens.insert_secret, secrets.token_bytes(SECRET_SIZE))
            kept = await self._read(tokens.select_secrets)
        return kept[0]

    async def signing_keys(self) -> SigningKeys:
        kept = await self._read(tokens.select_secrets) or [await self.secret()]
        return parse_keys(kept, path=self.location)

    async def compact(self) -> None:
        """Do nothing: the database itself frees what removed rows have left (autovacuum)."""

    async def frame_objects(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, FrameObject]:
        return merged(await self._look_up(object_map.select_frames, namespace, digests))

    async def manifest_object(self, namespace: str, digest: Digest) -> bytes | None:
        return await self._read(object_map.select_manifest, namespace, digest)

    async def unnamed_frames(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        return joined(await self._look_up(object_map.select_unnamed_frames, namespace, names))

    async def unnamed_manifests(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        return joined(await self._look_up(object_map.select_unnamed_manifests, namespace, names))

    async def row_page(self, table: Table, after: Row | None) -> list[Row]:
        """Return rows as `row_pages.RowSource` does."""
        return await self._read(row_pages.select_page, table, after)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[row_pages.Snapshot]:
        """Give all rows as they are at the beginning of the block, whatever is written meanwhile. No writer waits."""
        async with self._connections.lend_long() as connection:
            with postgres_errors(self.location):
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # If the block fails, the connection is closed, and the transaction with it.
            yield row_pages.Snapshot(connection, self.location)
            with postgres_errors(self.location):
                await connection.execute("COMMIT")

    async def replace_rows(self, table: Table, removed: Sequence[Row], added: Sequence[Row]) -> int:
        """Delete the rows with the keys `removed`, and then insert `added`, in one transaction. Nobody else may write.

        A row that contradicts one that is there is skipped. Return how many were inserted.
        """
        async with self._begun(None, self._deadline()) as connection:
            with postgres_errors(self.location):
                await row_pages.delete_rows(connection, table, removed)
                return await row_pages.insert_rows(connection, table, added)

    async def replace_secrets(self, keys: SigningKeys) -> None:
        """Replace the secret and the keys that sign URLs, in an index that no server has used."""
        async with self._begun(None, self._deadline()) as connection:
            with postgres_errors(self.location):
                await row_pages.replace_secrets(connection, keys)

    async def kept_manifests(self, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
        """Return those of `digests` whose manifest is an object."""
        return await self._read(row_pages.select_kept_manifests, namespace, digests)

    async def close(self) -> None:
        """Close all connections. The server rolls back an open transaction."""
        await self._connections.close()

    async def _read(self, function: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run statements that need no lock, each in a transaction of its own."""
        async with self._connections.lend() as connection:
            with postgres_errors(self.location):
                return await function(connection, *args, **kwargs)

    async def _look_up(
        self,
        function: Callable[Concatenate[Connection, str, Sequence[R], P], Awaitable[T]],
        namespace: str,
        rows: Sequence[R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """Run a read about any number of rows as `_read` does, in parts that have a connection each."""
        return await read_parts(lambda part: self._read(function, namespace, part, *args, **kwargs), rows)

    async def _refresh(self, namespace: str, old: dict[Digest, int]) -> dict[Digest, int]:
        """Set the last-seen times of live rows, if writing is allowed. Return the sizes of those that are still live."""
        if self._read_only or not old:
            return old
        async with self.transaction(namespace) as transaction:
            await transaction.refresh(namespace, list(old))
            # I9: a chunk that a collection condemned since it was read is reported missing.
            return await transaction.sizes(namespace, list(old))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._busy_seconds

    @asynccontextmanager
    async def _begun(self, namespace: str | None, deadline: float) -> AsyncIterator[Connection]:
        """Take the locks for writing to a namespace, or to all, in a transaction. At the end of the block it is committed.

        If the block fails or is cancelled, it is rolled back. Raises Busy if `deadline` passes first.
        """
        self._connections.check()
        async with self._writers.turn(namespace, deadline), self._connections.lend() as connection:
            try:
                await self._begin(connection, namespace, deadline)
                yield connection
                await shield_until_done(self._commit(connection))
            except BaseException:
                # Also after a cancel during the first statement, which may have begun, or during the commit.
                await shield_until_done(_roll_back(connection))
                raise

    async def _begin(self, connection: Connection, namespace: str | None, deadline: float) -> None:
        seconds = max(0.001, deadline - asyncio.get_running_loop().time())
        statement = _BEGIN.format(milliseconds=math.ceil(seconds * 1000), locking=locking(namespace))
        with postgres_errors(self.location):
            await connection.execute(statement, timeout=seconds + _ANSWER_SECONDS)

    async def _commit(self, connection: Connection) -> None:
        """Commit. If the connection fails meanwhile, nobody knows whether it was done: the caller may do it again."""
        self._connections.check()
        with postgres_errors(self.location):
            done = await connection.execute("COMMIT")
        if done != "COMMIT":
            # The server answers so if a statement had failed, and somebody went on after its error.
            raise Busy(self.location, "the transaction was rolled back, because a statement of it had failed")

    async def _commit_next(self, queue: deque[Waiter]) -> None:
        """Commit the first publications of a queue in one transaction, and end them.

        They are taken when the locks are there. So one that is cancelled before that ends at once.
        """
        loop = asyncio.get_running_loop()
        deadline, namespace = queue[0].deadline, queue[0].publication.namespace
        group = Group([])
        failure: BaseException | None = None
        try:
            async with self._begun(namespace, deadline) as connection:
                group.waiters = next_waiters(queue)
                if group.waiters:
                    with postgres_errors(self.location):
                        await group.write(connection, self._now())
        except BaseException as error:  # noqa: BLE001  # the waiters raise it
            failure = error
        try:
            await shield_until_done(group.close())
        except BaseException as error:  # noqa: BLE001  # as above
            failure = failure or error
        if failure is not None and not group.waiters:
            # Those that may wait longer for other writers do so. After any other failure, each caller decides itself.
            may_wait = isinstance(failure, Busy) and loop.time() >= deadline
            group.waiters = [waiter for waiter in queue if not may_wait or loop.time() >= waiter.deadline]
            for waiter in group.waiters:
                queue.remove(waiter)
        for waiter in group.waiters:
            waiter.end(failure)
        if failure is not None and not isinstance(failure, Exception):
            raise failure


async def open_index(
    url: str, *, makes_tables: bool, read_only: bool, busy_seconds: float, now: Callable[[], int], connections: int
) -> PostgresIndex:
    """Open an index as `open_postgres_index` says."""
    location = shown_location(url)
    pool = Connections(url, location, limit=connections)
    try:
        with postgres_errors(location, opening=True):
            await _prepare(url, location, makes_tables=makes_tables, read_only=read_only)
    except BaseException:
        await pool.close()
        raise
    return PostgresIndex(
        pool,
        location=location,
        busy_seconds=busy_seconds,
        now=now,
        read_only=read_only,
    )


async def _prepare(url: str, location: str, *, makes_tables: bool, read_only: bool) -> None:
    """Make or migrate the tables if they are not of this version."""
    found = await _revision(url, location)
    if found is None and (read_only or not makes_tables):
        raise NotARepository(
            location,
            "its database has no tables of an index",
            "check the name of the database, or make a repository (connect with create=True)",
            hint="create-repository",
        )
    if found not in (None, *KNOWN_REVISIONS) or (read_only and found != REVISION):
        raise UnknownFormat(location, str(found), REVISION)
    if found != REVISION:
        # It takes half a second to import, and a server that starts rarely needs it.
        from filestore.repository.index.postgres.migration import migrate  # noqa: PLC0415

        await migrate(url)


async def _revision(url: str, location: str) -> str | None:
    """Return the revision of the tables, or None if there are none. Raises UnknownFormat if there are others, InvalidUrl."""
    try:
        connection = await asyncpg.connect(url, timeout=_ANSWER_SECONDS)
    except ValueError as error:
        # The text of an error about a value of the URL may have the password. One about its options has only what is allowed.
        is_option = isinstance(error, asyncpg.ClientConfigurationError)
        raise InvalidUrl(location, str(error).partition("\n")[0] if is_option else "it has a value that cannot be used") from None
    try:
        tables = {table for (table,) in await connection.fetch(_TABLES)}
        if "alembic_version" in tables:
            found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
            return found
        if tables:
            raise UnknownFormat(location, "of another program", REVISION)
        return None
    finally:
        connection.terminate()


async def _roll_back(connection: Connection) -> None:
    """Roll back what was begun. A connection on which this fails is closed, which does the same."""
    try:
        if not connection.is_closed():
            await connection.execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
    except FAILURES:
        with suppress(asyncpg.InterfaceError):
            connection.terminate()


async def _select_stored_size(connection: Connection) -> int:
    return int(await connection.fetchval(_STORED_SIZE))


def _in_key_order(digests: Iterable[Digest]) -> list[Digest]:
    """Return each digest once, in the order of the table's key. Its pages are then read one after the other."""
    return sorted(set(digests))
