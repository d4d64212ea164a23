"""The connections of an index to its SQLite file. Each has its own thread."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from filestore.core.unlocked import unlocked
from filestore.errors import Busy, IndexDamaged, IndexUnreadable, UsedAfterFork
from filestore.repository.index.reading import State, connect_to_existing, in_use_elsewhere, open_for_reading, state_of
from filestore.repository.index.replaced import OpenFiles
from filestore.system.metrics import Stage, span
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.threads import abandon, in_stoppable_thread, in_thread, tell_of_forks

P = ParamSpec("P")
T = TypeVar("T")

_CACHE_KIBIBYTES = 16384
_READ_ATTEMPTS = 10
"""How often a read without locks is tried while another process writes."""
_LOG_LIMIT = 64 << 20
"""After a large commit, the log is shortened to this size in bytes."""

_inherited: dict[tuple[int, int], int] = {}
"""The indexes that were open in the parent at a fork: device and inode, and the id of the parent process."""


class Connection:
    """A connection with its own thread. It is opened at its first use."""

    def __init__(self, path: Path, *, timeout_seconds: float, makes_file: bool = False) -> None:
        self.path = str(path)
        self.closed = False
        self._makes_file = makes_file
        self._pid = os.getpid()
        self._timeout_seconds = timeout_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="filestore-index")
        self._connection: sqlite3.Connection | None = None
        self._files: OpenFiles | None = None
        self._may_be_open = False
        """True from just before the connection is opened until it is closed."""
        tell_of_forks(self)

    async def run(self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(connection, ...)` on the thread. Raises Busy, StorageError, StorageFull, UsedAfterFork."""
        if self._pid != os.getpid():
            raise UsedAfterFork(self.path, self._pid)
        return await in_thread(self._thread, self._call, lambda connection: function(connection, *args, **kwargs))

    async def run_long(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function as `run` does. If it is cancelled, SQLite is interrupted, so that the wait is short."""
        return await in_stoppable_thread(self._thread, self._interrupt, self._call, function)

    def _interrupt(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    async def close(self) -> None:
        """Close the connection. It cannot be used afterwards."""
        if not self.closed and self._pid == os.getpid():
            self.closed = True
            await in_thread(self._thread, self._close)
            self._thread.shutdown(wait=False)

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that excludes all other writers. Call it by `run`.

        Raises Busy, also if another program holds the lock of SQLite, and IndexReplaced if another one has replaced a file of the
        index.
        """
        with self._errors():
            unlocked(connection.execute, "BEGIN IMMEDIATE")
        self._check_files()

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit the transaction. Call it by `run`. Raises IndexReplaced as `begin` does."""
        self._check_files()
        unlocked(connection.execute, "COMMIT")

    def _errors(self) -> AbstractContextManager[None]:
        return sqlite_errors(self.path, full_hint="free-repository", damaged=IndexDamaged)

    def _check_files(self) -> None:
        assert self._files is not None  # noqa: S101  # the connection is open
        self._files.check()

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with self._errors(), span(Stage.COMMIT):
            if self._connection is None:
                self._may_be_open = True
                if self._makes_file:
                    _make_file(self.path)
                self._connection = _connect(self.path, self._timeout_seconds)
                self._files = OpenFiles(self.path)
            return function(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            if self._is_replaced():
                # The last connection to close removes the log by its name, and this is now the log of the new index.
                abandon(self._connection)
            else:
                self._connection.close()
        self._may_be_open = False

    def _is_replaced(self) -> bool:
        with suppress(OSError):
            return self._files is not None and self._files.is_index_replaced()
        return False

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


class ReadingConnection(Connection):
    """A connection that only reads. A function that runs on it must return complete results, and no open cursor."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self._state: State | None = None
        super().__init__(path.absolute(), timeout_seconds=timeout_seconds)

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with self._errors(), span(Stage.COMMIT):
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
            self._files = OpenFiles(self.path)
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        return self._connection

    def _close(self) -> None:
        super()._close()
        self._connection = self._state = None


async def run_when_free(connection: Connection, function: Callable[[sqlite3.Connection], T], deadline: float) -> T:
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
    _check_process(path)
    connection = connect_to_existing(path, "mode=rw", timeout_seconds)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS only: its fsync leaves the bytes in the drive's own memory
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back the transaction, if one is open."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
