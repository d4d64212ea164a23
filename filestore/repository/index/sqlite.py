"""An index in one SQLite file, on a local file system.

It uses a write-ahead log with `synchronous=FULL`. Readers and the one writer do not wait for each other, and committed
data survives a power cut. Every write begins with BEGIN IMMEDIATE, because a read transaction that becomes a write
fails at once, with any timeout. Needs SQLite 3.24.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record, checked_record
from filestore.core.references import Reference
from filestore.errors import (
    Busy,
    FilestoreError,
    IndexUnreadable,
    ReadOnly,
    StorageError,
    UnknownFormat,
    UsedAfterFork,
)
from filestore.repository.index import uses
from filestore.repository.index.protocol import ChunkRow, TokenRow, Use
from filestore.repository.index.reading import State, in_use_elsewhere, open_for_reading, state_of
from filestore.system.metrics import Stage, span
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.threads import abandon, in_thread, shield_until_done, tell_of_forks

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA_VERSION = 3
_OLDEST_VERSION = 2
BUSY_SECONDS = 60.0
REFRESH_MICROSECONDS = 3600 * 1_000_000
"""The last-seen time of a chunk is not updated more often than this, because a write is expensive."""

SECRET_SIZE = 32

_PARAMETERS = 500
"""The largest number of digests in one statement. SQLite before 3.32 allows 999 parameters."""
_SLICE_SECONDS = 0.1
_CACHE_KIBIBYTES = 16384
_READ_ATTEMPTS = 10
"""How often a read without locks is tried while another process writes."""
_LOG_LIMIT = 64 << 20
"""After a large commit, the log is shortened to this size in bytes."""

_SCHEMA = (
    """CREATE TABLE chunks (
        namespace TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        stored_size INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        going INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID""",
    """CREATE TABLE records (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id),
        UNIQUE (namespace, name, kind, digest)
    ) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX records_by_time ON records (namespace, updated_at)",
    "CREATE INDEX records_by_name ON records (namespace, name, updated_at)",
    "CREATE INDEX records_by_digest ON records (namespace, digest, updated_at)",
    # The last `updated_at`. Later ones are larger, even if the clock is set back or that record is removed.
    "CREATE TABLE clocks (namespace TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE tokens (
        digest BLOB NOT NULL PRIMARY KEY,
        namespace TEXT NOT NULL,
        label TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # At most one row.
    "CREATE TABLE secrets (secret BLOB NOT NULL)",
    *uses.TABLE,
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_MIGRATIONS = {2: (*uses.TABLE, "PRAGMA user_version = 3")}
"""The statements that lead from each older version to the next one, in one transaction."""

_NEWEST_RECORDS = (
    "SELECT id, name, digest, size, kind, namespace, created_at, updated_at FROM records"
    " WHERE namespace = ?{} ORDER BY {}updated_at DESC LIMIT ?"
)


def system_now() -> int:
    """Return the time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class SqliteIndex:
    """An index with two connections, one for writing and one for reading. Each has its own thread.

    Open it with `open_index` or `open_index_for_reading`.
    """

    def __init__(
        self, writer: _Connection, reader: _Connection, *, busy_seconds: float, now: Callable[[], int], read_only: bool = False
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._busy_seconds = busy_seconds
        self._now = now
        self._read_only = read_only
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqliteTransaction]:
        """Begin a transaction by BEGIN IMMEDIATE. It waits for other writers in short steps, so that a cancel works."""
        deadline = asyncio.get_running_loop().time() + self._busy_seconds
        await self._acquire(deadline)
        try:
            await _run_when_free(self._writer, _begin, deadline)
            yield SqliteTransaction(self._writer, self._now)
            await shield_until_done(self._writer.run(_commit))
        except BaseException:
            # Also after a cancel during BEGIN, which may have begun, or during COMMIT, which may have committed.
            if not self._writer.closed:
                await shield_until_done(self._writer.run(_roll_back))
            raise
        finally:
            self._writing.release()

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests without a live row. This writes only if a last-seen time is old and writing is allowed."""
        distinct = list(dict.fromkeys(digests))
        last_seen = await self._reader.run(_select_last_seen, namespace, distinct)
        if self._read_only:
            return [digest for digest in distinct if digest not in last_seen]
        horizon = self._now() - REFRESH_MICROSECONDS
        old = [digest for digest, seen in last_seen.items() if seen < horizon]
        if old:
            async with self.transaction() as transaction:
                await transaction.refresh(namespace, old)
                # I9: a chunk that a collection condemned since the read above is reported missing.
                still_live = await transaction.sizes(namespace, old)
            for digest in old:
                if digest not in still_live:
                    del last_seen[digest]
        return [digest for digest in distinct if digest not in last_seen]

    async def record(self, namespace: str, reference: Reference) -> Record | None:
        return await self._reader.run(_select_record, namespace, reference)

    async def ids_of_content(self, namespace: str, digest: Digest) -> list[str]:
        return await self._reader.run(_select_ids_of_content, namespace, digest)

    async def records(self, namespace: str, *, limit: int, before: int | None = None, with_graphs: bool = False) -> list[Record]:
        return await self._reader.run(_select_records, namespace, limit, before, with_graphs=with_graphs)

    async def uses(self, namespace: str) -> list[Use]:
        return await self._reader.run(uses.select_uses, namespace)

    async def token_namespace(self, token_digest: Digest) -> str | None:
        return await self._reader.run(_select_token_namespace, token_digest)

    async def tokens(self) -> list[TokenRow]:
        return await self._reader.run(_select_tokens)

    async def secret(self) -> bytes:
        kept = await self._reader.run(_select_secrets)
        if not kept and self._read_only:
            raise ReadOnly(self._writer.path)
        if not kept:
            async with self.transaction():
                # Another process may have made one since.
                await self._writer.run(_insert_secret, secrets.token_bytes(SECRET_SIZE))
                kept = await self._writer.run(_select_secrets)
        return kept[0]

    async def close(self) -> None:
        """Close both connections. SQLite rolls back an open transaction."""
        await shield_until_done(self._writer.close())
        await shield_until_done(self._reader.close())

    async def _acquire(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._writing.acquire()
        except TimeoutError:
            raise Busy(self._writer.path, f"another write of this process took more than {self._busy_seconds:g} s") from None


class SqliteTransaction:
    """Runs the writes of a transaction on the connection for writing."""

    def __init__(self, writer: _Connection, now: Callable[[], int]) -> None:
        self._writer = writer
        self._now = now

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return await self._writer.run(_select_sizes, namespace, digests)

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        await self._writer.run(_insert_chunks, namespace, rows, self._now())

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        await self._writer.run(_update_last_seen, namespace, digests, self._now())

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> None:
        await self._writer.run(_delete_chunks, namespace, digests)

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        return await self._writer.run(_update_condemned, namespace, digests, unseen_since)

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._writer.run(_select_condemned, namespace, digests)

    async def add_record(self, namespace: str, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
        record = Record(
            id=f"file_{secrets.token_hex(16)}",
            name=name,
            digest=digest,
            size=size,
            kind=kind,
            namespace=namespace,
            created_at=0,
            updated_at=0,
        )
        return await self._writer.run(_insert_record, record, self._now())

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        return await self._writer.run(_delete_record, namespace, file_id)

    async def add_uses(self, namespace: str, added: Sequence[Use]) -> None:
        await self._writer.run(uses.insert_uses, namespace, added)

    async def remove_uses(self, namespace: str, pipeline_id: str) -> None:
        await self._writer.run(uses.delete_uses, namespace, pipeline_id)

    async def uses_of(self, namespace: str, file_id: str) -> list[Use]:
        return await self._writer.run(uses.select_uses_of, namespace, file_id)

    async def add_token(self, token_digest: Digest, *, namespace: str, label: str) -> None:
        await self._writer.run(_insert_token, TokenRow(token_digest, namespace, label, self._now()))

    async def remove_token(self, token_digest: Digest) -> bool:
        return await self._writer.run(_delete_token, token_digest)


async def open_index(path: Path, *, busy_seconds: float = BUSY_SECONDS, now: Callable[[], int] = system_now) -> SqliteIndex:
    """Open the index in the file `path`, and make the file if it does not exist. Its folder must exist.

    `busy_seconds` is how long a write waits for other writers. Raises UnknownFormat, StorageError, StorageFull, Busy.
    """
    # The connection for writing waits in slices, see `_run_when_free`. The other waits only while SQLite recovers from
    # a crash.
    writer = _Connection(path, timeout_seconds=_SLICE_SECONDS)
    reader = _Connection(path, timeout_seconds=busy_seconds)
    index = SqliteIndex(writer, reader, busy_seconds=busy_seconds, now=now)
    try:
        deadline = asyncio.get_running_loop().time() + busy_seconds
        await _run_when_free(writer, _prepare, deadline)
    except BaseException:
        await index.close()
        raise
    return index


async def open_index_for_reading(
    path: Path, *, busy_seconds: float = BUSY_SECONDS, now: Callable[[], int] = system_now
) -> SqliteIndex:
    """Open the existing index in the file `path` for reading. No file is made.

    Only `transaction` writes, so that a reader can report damage. It fails if this user may not write. Raises
    UnknownFormat, StorageError, Busy.
    """
    writer = _Connection(path, timeout_seconds=_SLICE_SECONDS)
    reader = _ReadingConnection(path, timeout_seconds=busy_seconds)
    index = SqliteIndex(writer, reader, busy_seconds=busy_seconds, now=now, read_only=True)
    try:
        if not await reader.run(_has_tables, str(path)):
            raise StorageError(str(path), "it is empty, because its making was interrupted")
    except BaseException:
        await index.close()
        raise
    return index


_inherited: dict[tuple[int, int], int] = {}
"""The indexes that were open in the parent at a fork: device and inode, and the id of the parent process."""


class _Connection:
    """A connection with its own thread. It is opened at its first use."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self.path = str(path)
        self.closed = False
        self._pid = os.getpid()
        self._timeout_seconds = timeout_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="filestore-index")
        self._connection: sqlite3.Connection | None = None
        self._may_be_open = False
        """True from just before the connection is opened until it is closed."""
        tell_of_forks(self)

    async def run(self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(connection, ...)` on the thread. Raises Busy, StorageError, StorageFull, UsedAfterFork."""
        if self._pid != os.getpid():
            raise UsedAfterFork(self.path, self._pid)
        return await in_thread(self._thread, self._call, lambda connection: function(connection, *args, **kwargs))

    async def close(self) -> None:
        """Close the connection. It cannot be used afterwards."""
        if not self.closed and self._pid == os.getpid():
            self.closed = True
            await in_thread(self._thread, self._close)
            self._thread.shutdown(wait=False)

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with sqlite_errors(self.path), span(Stage.COMMIT):
            if self._connection is None:
                self._may_be_open = True
                self._connection = _connect(self.path, self._timeout_seconds)
            return function(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._may_be_open = False

    def after_fork(self) -> None:
        """Keep the parent's connection open in a child, even at the end of the child.

        SQLite keeps its record of locks by process and file in memory. A child inherits that memory, but holds none of
        the locks.

        Source: sqlite.org/howtocorrupt.html, section 2.6.
        """
        if self._may_be_open:
            abandon(self._connection)
            with suppress(OSError):
                _inherited[_file_id(self.path)] = self._pid


class _ReadingConnection(_Connection):
    """A connection that only reads. A function that runs on it must return complete results, and no open cursor."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self._state: State | None = None
        super().__init__(path.absolute(), timeout_seconds=timeout_seconds)

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with sqlite_errors(self.path), span(Stage.COMMIT):
            for attempt in range(1, _READ_ATTEMPTS + 1):
                before = state_of(self.path)
                try:
                    found = function(self._open_connection())
                except Exception as error:
                    # Any error can occur: a torn page may give a value of any type, and an invalid record.
                    unshared = in_use_elsewhere(self.path, error)
                    # A torn read shows nothing about the file. Shared memory that cannot be used, or a log, may stay
                    # for long.
                    may_last = unshared is not None or isinstance(error, IndexUnreadable)
                    may_change = self._state is not None or (may_last and attempt < _READ_ATTEMPTS)
                    # The connection may hold pages from before this read.
                    since = self._state or before
                    self._close()
                    if may_change and state_of(self.path) != since:
                        # The file was opened, closed or written to meanwhile, so another way to open it may be right
                        # now.
                        continue
                    if unshared is not None:
                        raise unshared from error
                    raise
                if self._state is None or self._state == state_of(self.path):
                    return found
                self._close()
        raise Busy(self.path, "another process writes to it, and this user can only read it between two writes")

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            _check_process(self.path)
            self._may_be_open = True
            self._connection, self._state = open_for_reading(self.path, timeout_seconds=self._timeout_seconds)
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        return self._connection

    def _close(self) -> None:
        super()._close()
        self._connection = self._state = None


async def _run_when_free(connection: _Connection, function: Callable[[sqlite3.Connection], T], deadline: float) -> T:
    """Run `function`, and try again while another process writes. Raises Busy when `deadline` is over.

    The wait inside SQLite cannot be cancelled, so each try waits only a tenth of a second.
    """
    while True:
        try:
            return await connection.run(function)
        except Busy:
            if asyncio.get_running_loop().time() >= deadline:
                raise


def _file_id(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _make_file(path: str) -> None:
    """Make an empty index file that only its owner can read, if the file does not exist.

    SQLite alone would make it readable for everyone.

    Closing any descriptor of a file drops all POSIX locks that this process holds on it. Another process then believes
    that it is the last one, and deletes the log. So only SQLite opens a file of the index. The new file is closed
    before it gets its name, because a second thread may open it by that name at once.

    Source: sqlite.org/howtocorrupt.html, section 2.2.
    """
    if Path(path).exists():
        return
    staging = f"{path}.{secrets.token_hex(8)}"
    try:
        os.close(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with suppress(FileExistsError):
            os.link(staging, path)
    finally:
        with suppress(FileNotFoundError):
            Path(staging).unlink()


def _check_process(path: str) -> None:
    """Raise UsedAfterFork if the parent of this process had the index open at the fork.

    SQLite would believe that this process has the locks of its parent, and another process would delete the log.
    """
    parent = _inherited.get(_file_id(path))
    if parent is not None:
        raise UsedAfterFork(path, parent)


def _connect(path: str, timeout_seconds: float) -> sqlite3.Connection:
    _make_file(path)
    _check_process(path)
    connection = sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS only: its fsync leaves the bytes in the drive's own memory
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables if they do not exist, or bring those of an older version to this one.

    If the file has another version or belongs to another program, raise UnknownFormat and change nothing.
    """
    _, _, path = connection.execute("PRAGMA database_list").fetchone()
    _has_tables(connection, path)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageError(path, "its file system cannot share memory between processes, which SQLite's log needs")
    while (version := _version(connection, path)) != SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version == _version(connection, path):  # another process may have been faster
                for statement in _MIGRATIONS[version] if version else _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        finally:
            _roll_back(connection)


def _has_tables(connection: sqlite3.Connection, path: str) -> bool:
    return _version(connection, path) != 0


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return the version of the tables, or 0 if there are none. Raises UnknownFormat."""
    # In this order, because another process may make the tables, and with them the version, in between.
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0 and count == 0:
        return 0
    if not _OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise UnknownFormat(path, str(version), str(SCHEMA_VERSION))
    return int(version)


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _batches(digests: Iterable[Digest]) -> Iterator[list[Digest]]:
    # In the order of the table, so that each page is visited once, even with many millions of rows.
    ordered = sorted(digests)
    for start in range(0, len(ordered), _PARAMETERS):
        yield ordered[start : start + _PARAMETERS]


def _read(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...], digests: Iterable[Digest]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `statement` for all `digests`. The digests replace `{}` in it, and follow `parameters`."""
    for batch in _batches(digests):
        yield from connection.execute(statement.format(",".join("?" * len(batch))), (*parameters, *batch))


def _write(connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...], digests: Iterable[Digest]) -> None:
    """Execute `statement` for all `digests`, as `_read` does."""
    for batch in _batches(digests):
        connection.execute(statement.format(",".join("?" * len(batch))), (*parameters, *batch))


def _select_last_seen(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
    statement = "SELECT digest, last_seen FROM chunks WHERE namespace = ? AND going = 0 AND digest IN ({})"
    return {Digest(digest): seen for digest, seen in _read(connection, statement, (namespace,), digests)}


def _select_sizes(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
    statement = "SELECT digest, size FROM chunks WHERE namespace = ? AND going = 0 AND digest IN ({})"
    return {Digest(digest): size for digest, size in _read(connection, statement, (namespace,), digests)}


def _insert_chunks(connection: sqlite3.Connection, namespace: str, rows: Sequence[ChunkRow], now: int) -> None:
    connection.executemany(
        "INSERT INTO chunks (namespace, digest, size, stored_size, last_seen, going) VALUES (?, ?, ?, ?, ?, 0)"
        " ON CONFLICT (namespace, digest) DO UPDATE SET"
        " size = excluded.size, stored_size = excluded.stored_size, last_seen = excluded.last_seen, going = 0",
        [(namespace, *row, now) for row in rows],
    )


def _update_last_seen(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest], now: int) -> None:
    statement = "UPDATE chunks SET last_seen = ? WHERE namespace = ? AND going = 0 AND last_seen < ? AND digest IN ({})"
    parameters = (now, namespace, now - REFRESH_MICROSECONDS)
    _write(connection, statement, parameters, digests)


def _delete_chunks(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> None:
    statement = "DELETE FROM chunks WHERE namespace = ? AND digest IN ({})"
    _write(connection, statement, (namespace,), digests)


def _update_condemned(
    connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest], unseen_since: int
) -> list[Digest]:
    reading = "SELECT digest FROM chunks WHERE namespace = ? AND going = 0 AND last_seen < ? AND digest IN ({})"
    writing = "UPDATE chunks SET going = 1 WHERE namespace = ? AND going = 0 AND last_seen < ? AND digest IN ({})"
    parameters = (namespace, unseen_since)
    marked = {digest for (digest,) in _read(connection, reading, parameters, digests)}
    _write(connection, writing, parameters, digests)
    return [digest for digest in digests if digest in marked]


def _select_condemned(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    statement = "SELECT digest FROM chunks WHERE namespace = ? AND going = 1 AND digest IN ({})"
    condemned = {digest for (digest,) in _read(connection, statement, (namespace,), digests)}
    return [digest for digest in digests if digest in condemned]


def _insert_record(connection: sqlite3.Connection, record: Record, now: int) -> Record:
    connection.execute(
        "INSERT INTO clocks (namespace, last) VALUES (?, ?)"
        " ON CONFLICT (namespace) DO UPDATE SET last = max(excluded.last, clocks.last + 1)",
        (record.namespace, now),
    )
    (moment,) = connection.execute("SELECT last FROM clocks WHERE namespace = ?", (record.namespace,)).fetchone()
    connection.execute(
        "INSERT INTO records (namespace, id, name, kind, digest, size, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (namespace, name, kind, digest) DO UPDATE SET updated_at = excluded.updated_at",
        (record.namespace, record.id, record.name, record.kind.value, record.digest, record.size, moment, moment),
    )
    # The record with the latest time is the one that was just inserted or updated.
    return _select_records(connection, record.namespace, 1, None, with_graphs=True)[0]


def _delete_record(connection: sqlite3.Connection, namespace: str, file_id: str) -> Record | None:
    record = _select_record(connection, namespace, Reference(id=file_id))
    if record is not None:
        connection.execute("DELETE FROM records WHERE namespace = ? AND id = ?", (namespace, file_id))
        uses.delete_uses_of(connection, namespace, file_id)
    return record


def _select_record(connection: sqlite3.Connection, namespace: str, reference: Reference) -> Record | None:
    given = {"id = ?": reference.id, "digest = ?": reference.digest, "name = ?": reference.name}
    conditions = {condition: value for condition, value in given.items() if value is not None}
    is_by_digest = reference.digest is not None and reference.id is None
    first = f"kind = '{Kind.DIRECTORY.value}' DESC, " if is_by_digest else ""
    records = _newest_records(connection, namespace, conditions, limit=1, first=first)
    return records[0] if records else None


def _select_ids_of_content(connection: sqlite3.Connection, namespace: str, digest: Digest) -> list[str]:
    rows = connection.execute(
        "SELECT id FROM records WHERE namespace = ? AND digest = ? ORDER BY updated_at DESC", (namespace, digest)
    )
    return [record_id for (record_id,) in rows]


def _select_records(
    connection: sqlite3.Connection, namespace: str, limit: int, before: int | None, *, with_graphs: bool = False
) -> list[Record]:
    conditions = {} if before is None else {"updated_at < ?": before}
    more = "" if with_graphs or not uses.has_uses(connection) else f" AND {uses.IS_LISTED}"
    return _newest_records(connection, namespace, conditions, limit=limit, more=more)


def _newest_records(
    connection: sqlite3.Connection,
    namespace: str,
    conditions: Mapping[str, object],
    *,
    limit: int,
    first: str = "",
    more: str = "",
) -> list[Record]:
    """Return the newest records that meet `conditions` and the conditions of the SQL text `more`.

    `first` is an SQL order with priority over the time.
    """
    statement = _NEWEST_RECORDS.format("".join(f" AND {condition}" for condition in conditions) + more, first)
    return [_record(connection, row) for row in connection.execute(statement, (namespace, *conditions.values(), limit))]


def _record(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Record:
    """Convert a row to a record, and check it. Raises StorageError if it is not valid.

    It is checked because the folder may belong to another user, and names become parts of paths (I4).
    """
    file_id, name, digest, size, kind, namespace, created_at, updated_at = row
    try:
        return checked_record(
            Record(
                id=file_id,
                name=name,
                digest=Digest(digest),
                size=size,
                kind=Kind(kind),
                namespace=namespace,
                created_at=created_at,
                updated_at=updated_at,
            )
        )
    except (TypeError, ValueError, AttributeError, FilestoreError) as error:
        _, _, path = connection.execute("PRAGMA database_list").fetchone()
        raise StorageError(path, f"its record {file_id!r} is not valid ({error}); restore the index from a backup") from None


def _select_token_namespace(connection: sqlite3.Connection, token_digest: Digest) -> str | None:
    row = connection.execute("SELECT namespace FROM tokens WHERE digest = ?", (token_digest,)).fetchone()
    return None if row is None else str(row[0])


def _select_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    rows = connection.execute("SELECT digest, namespace, label, created_at FROM tokens ORDER BY created_at, digest")
    return [TokenRow(Digest(digest), namespace, label, created_at) for digest, namespace, label, created_at in rows]


def _select_secrets(connection: sqlite3.Connection) -> list[bytes]:
    return [bytes(secret) for (secret,) in connection.execute("SELECT secret FROM secrets")]


def _insert_secret(connection: sqlite3.Connection, secret: bytes) -> None:
    connection.execute("INSERT INTO secrets (secret) SELECT ? WHERE NOT EXISTS (SELECT * FROM secrets)", (secret,))


def _insert_token(connection: sqlite3.Connection, token: TokenRow) -> None:
    connection.execute(
        "INSERT INTO tokens (digest, namespace, label, created_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET namespace = excluded.namespace, label = excluded.label",
        token,
    )


def _delete_token(connection: sqlite3.Connection, token_digest: Digest) -> bool:
    return connection.execute("DELETE FROM tokens WHERE digest = ?", (token_digest,)).rowcount > 0
