"""SQLite in the simulation. SQLite itself runs, on its real files.

Each statement is a step. A statement that finds the database locked gives the control away, and is tried again until the
time limit of the connection is over in virtual time. A committed transaction counts as durable: what SQLite does for that is
its own, and the prefix replay looks at its system calls.

All simulated processes are one process of the operating system. SQLite lets its own connections exclude each other, and keeps one
set of POSIX locks for all of them. A process that opens and closes a file of the database beside SQLite drops these locks. Nobody
here would notice it, so `check_locks` asks the kernel whether the locks are held.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from tests.simulation.kernel import real
from tests.simulation.kernel.scheduler import Scheduler, Thread

if TYPE_CHECKING:
    from tests.simulation.kernel.process import Process

T = TypeVar("T")

F_OFD_GETLK = 36
_FLOCK = struct.Struct("hhqqi4x")
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510
"""The bytes of the database file of which each open connection locks one for reading. Source: sqlite3, os.h."""
_WRITE_LOCK = 120
"""The byte of the shared memory that a writer locks. Source: sqlite3, wal.c, WAL_WRITE_LOCK."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PAUSE_SECONDS = 0.01
_READING = ("SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN IMMEDIATE")
"""Statements after which a connection in write-ahead mode holds its lock for reading."""
REAL_CONNECT = sqlite3.connect


class Databases:
    """The databases of a simulation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.waiters: dict[str, list[Thread]] = {}
        self.connections: list[SimulatedConnection] = []
        self.lost_locks: list[str] = []
        """What `check_locks` has found."""
        self._probes: dict[tuple[str, int], int] = {}

    def connect(self, database: Any, timeout: float = 5.0, *arguments: Any, **options: Any) -> SimulatedConnection:
        """Open a connection for the current process."""
        current = self.scheduler.current
        assert current is not None
        self.scheduler.step("sqlite open")
        options["factory"] = SimulatedConnection
        connection = REAL_CONNECT(database, 0.0, *arguments, **options)
        assert isinstance(connection, SimulatedConnection)
        connection.join(self, current.process, _path_of(database), timeout)
        self.connections.append(connection)
        self.waiters.setdefault(connection.path, [])
        return connection

    def is_open_elsewhere(self, path: str, process: Process) -> bool:
        """Return whether a path is a file of a database that other processes have open, and this process does not."""
        users = [each.process for each in self.connections if path in {each.path, f"{each.path}-wal", f"{each.path}-shm"}]
        return bool(users) and process not in users

    def paths(self) -> set[str]:
        """Return the paths of all databases that a process has ever opened."""
        return set(self.waiters)

    def check_locks(self) -> None:
        """Note each database whose locks the kernel does not hold, although SQLite has it open."""
        # SQLite holds the locks of all connections of a database together.
        for connection in {each.path: each for each in self.connections if each.has_read}.values():
            is_shared = _exists(f"{connection.path}-shm")
            if is_shared and not self._is_locked(connection.path, _SHARED_FIRST, _SHARED_SIZE):
                self.lost_locks.append(f"{connection.process.name} has {Path(connection.path).name} open without a lock")
        for connection in self.connections:
            is_writing = connection.is_writing and connection.in_transaction
            if is_writing and not self._is_locked(f"{connection.path}-shm", _WRITE_LOCK, 1):
                self.lost_locks.append(f"{connection.process.name} writes to {Path(connection.path).name} without a lock")

    def end_process(self, process: Process) -> None:
        """Close the connections of a process that has ended, as the end of a process does: nothing is committed or tidied up."""
        ended = [connection for connection in self.connections if connection.process is process]
        for path in sorted({connection.path for connection in ended}):
            keeper = None
            # The last connection to close would move the log into the database. One that only reads does not.
            if path != ":memory:" and _exists(path):
                keeper = REAL_CONNECT(f"file:{path}?mode=ro", uri=True, timeout=0.0)
                _try(keeper, "PRAGMA schema_version")
            for connection in ended:
                if connection.path == path:
                    connection.drop()
            if keeper is not None:
                keeper.close()
            self.changed(path)

    def close_probes(self, path: str) -> None:
        """Close what asks for the locks of a database, if nobody has it open. While somebody has, that would drop them."""
        if not any(connection.path == path for connection in self.connections):
            for place in [place for place in self._probes if place[0] in {path, f"{path}-shm"}]:
                real.close(self._probes.pop(place))

    def changed(self, path: str) -> None:
        """Wake those who wait for a database."""
        self.scheduler.wake_all(self.waiters.setdefault(path, []))

    def close(self) -> None:
        """Close everything at the end of the simulation."""
        for connection in list(self.connections):
            connection.drop()
        for descriptor in self._probes.values():
            real.close(descriptor)
        self._probes.clear()

    def _is_locked(self, path: str, start: int, size: int) -> bool:
        try:
            found = real.stat(path)
        except FileNotFoundError:
            return True
        probe = self._probes.get((path, found.st_ino))
        if probe is None:
            # It stays open: to close it would drop the locks.
            probe = self._probes[path, found.st_ino] = real.os_open(path, os.O_RDWR | os.O_CLOEXEC)
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(probe, F_OFD_GETLK, question))[0] != fcntl.F_UNLCK)


class SimulatedConnection(sqlite3.Connection):
    """A connection of a simulated process."""

    _databases: Databases | None = None
    process: Process
    path: str
    has_read = False
    is_writing = False

    def join(self, databases: Databases, process: Process, path: str, timeout: float) -> None:
        """Set what belongs to the simulation."""
        self._databases = databases
        self._timeout = timeout
        self.process = process
        self.path = path

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement."""
        if sql.startswith("PRAGMA synchronous"):
            # The folder may be on a real disk, and what SQLite syncs there takes time and proves nothing here.
            sql = "PRAGMA synchronous = OFF"
        return self._run(sql, lambda: super(SimulatedConnection, self).execute(sql, *arguments))

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement for several sets of values."""
        return self._run(sql, lambda: super(SimulatedConnection, self).executemany(sql, *arguments))

    def executescript(self, sql: str) -> sqlite3.Cursor:
        """Run several statements."""
        return self._run(sql, lambda: super(SimulatedConnection, self).executescript(sql))

    def commit(self) -> None:
        """Commit the transaction."""
        self._run("COMMIT", super().commit)

    def rollback(self) -> None:
        """Roll the transaction back."""
        self._run("ROLLBACK", super().rollback)

    def close(self) -> None:
        """Close it."""
        if self._databases is not None:
            self._databases.scheduler.step("sqlite close")
        self.drop()

    def drop(self) -> None:
        """Close it without a step."""
        databases, self._databases = self._databases, None
        super().close()
        if databases is not None:
            databases.connections.remove(self)
            databases.close_probes(self.path)
            databases.changed(self.path)

    def _run(self, sql: str, call: Callable[[], T]) -> T:
        databases = self._databases
        if databases is None or databases.scheduler.current is None:
            return call()
        scheduler = databases.scheduler
        scheduler.step("sqlite", " ".join(sql.split())[:60])
        deadline = scheduler.now + self._timeout
        while True:
            try:
                result = call()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY or scheduler.now >= deadline:
                    raise
                waiters = databases.waiters.setdefault(self.path, [])
                scheduler.wait("sqlite lock", waiters, min(_PAUSE_SECONDS, deadline - scheduler.now))
                continue
            self.has_read = self.has_read or sql.startswith(_READING)
            if sql.startswith("BEGIN IMMEDIATE"):
                self.is_writing = True
            elif not self.in_transaction:
                self.is_writing = False
                databases.changed(self.path)
            databases.check_locks()
            return result


def _exists(path: str) -> bool:
    try:
        real.stat(path)
    except FileNotFoundError:
        return False
    return True


def _path_of(database: Any) -> str:
    text = os.fsdecode(database)
    if text.startswith("file:"):
        text = unquote(text.removeprefix("file:").partition("?")[0])
        text = text.removeprefix("//") if text.startswith("///") else text
    return text if text == ":memory:" or not text else str(Path(text).absolute())


def _try(connection: sqlite3.Connection, sql: str) -> None:
    with suppress(sqlite3.Error):
        connection.execute(sql).fetchall()
