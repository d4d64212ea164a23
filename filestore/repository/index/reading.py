"""Open a SQLite file in write-ahead mode for reading, without making files that stay.

SQLite's readers of such a file need its shared memory (`-shm`), and make it if it is absent. If this user may write,
they do so and remove it at the end. Otherwise there are two ways:

- The shared memory exists, because another process has the file open. `mode=ro` shares it. - The shared memory does not
exist, so no process has the file open. `immutable=1` works without it, but takes no lock and reads no log. The result
is right only if no process writes meanwhile. So the `State` of the file is compared after each read, and a result is
discarded if the state has changed.

Only SQLite opens the file, because closing any descriptor of it drops the locks that this process holds on it.

Source: https://www.sqlite.org/wal.html, section 7 (read-only databases); https://www.sqlite.org/howtocorrupt.html,
section 2.2.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from filestore.errors import IndexUnreadable, NotPermitted

LOG = "-wal"
SHARED_MEMORY = "-shm"

_UNSHARED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})


class State(NamedTuple):
    """The state of a SQLite file. If it is the same before and after a read, nobody wrote to the file meanwhile."""

    identity: tuple[int, int]
    size: int
    modified_at: int
    log_size: int
    is_open: bool
    """Whether the file of the shared memory exists. Then another process has the file open, or was killed meanwhile."""


class ReadConnection(NamedTuple):
    """A connection for reading, with the state of the file when it was opened."""

    connection: sqlite3.Connection
    state: State | None
    """Reads are valid only while the file has this state. None if SQLite itself ensures that reads are valid."""


def state_of(path: str) -> State:
    """Return the state of the SQLite file at `path`, without opening it. Blocks. Raises OSError."""
    found = Path(path).stat()
    log_size = 0
    with suppress(FileNotFoundError):
        log_size = Path(path + LOG).stat().st_size
    is_open = Path(path + SHARED_MEMORY).exists()
    return State((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns, log_size, is_open)


def open_for_reading(path: str, *, timeout_seconds: float) -> ReadConnection:
    """Open a connection that only reads the SQLite file at `path`, which must be absolute. Blocks.

    Raises IndexUnreadable, NotPermitted, sqlite3.Error, OSError.
    """
    state = state_of(path)
    if not _may(path, os.R_OK):
        raise NotPermitted(path, os.strerror(errno.EACCES))
    is_fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    if not is_fixed and _may_write(path):
        # `mode=ro` is wrong here: if such a connection is the last one to close, it leaves its shared memory, and a log
        # that writers have filled meanwhile.
        connection = connect_to_existing(path, "mode=rw", timeout_seconds)
        connection.execute("PRAGMA query_only = ON")
        return ReadConnection(connection, None)
    if state.log_size and (is_fixed or not state.is_open):
        raise _unfinished(path, is_fixed=is_fixed)
    if state.is_open and not is_fixed:
        return ReadConnection(connect_to_existing(path, "mode=ro", timeout_seconds), None)
    return ReadConnection(connect_to_existing(path, "mode=ro&immutable=1", timeout_seconds), state)


def in_use_elsewhere(path: str, error: Exception) -> IndexUnreadable | None:
    """Return an IndexUnreadable if `error` means that this process cannot use the shared memory, or None."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte: the primary code
    if code not in _UNSHARED or _may_write(path):
        return None
    return IndexUnreadable(
        path,
        f"a process of another user has it open, and does not share its memory with this user ({error})",
        "read it through the URL of that user's server",
    )


def _unfinished(path: str, *, is_fixed: bool) -> IndexUnreadable:
    log = Path(path + LOG).name
    why = "its file system is read-only" if is_fixed else "this user may not write there"
    return IndexUnreadable(
        path,
        f"its log {log} is not empty: it holds changes that SQLite still has to move into the index, and {why}",
        "stop the server that writes to it, or start and stop one where it can be written; or read it through that server's URL",
        hint="start-server",
    )


def connect_to_existing(path: str, how: str, timeout_seconds: float) -> sqlite3.Connection:
    """Open a SQLite file. It is not made if it does not exist."""
    # In bytes, because a path may not be UTF-8, or may hold characters with a meaning in a URL.
    url = f"file://{quote(os.fsencode(Path(path).absolute()))}?{how}"
    return sqlite3.connect(url, uri=True, timeout=timeout_seconds, isolation_level=None)


def may_be_written(path: str) -> bool:
    """Return whether this process may write to the SQLite file at `path`, or another process has it open. Blocks."""
    return _may_write(path) or Path(path + SHARED_MEMORY).exists()


def _may_write(path: str) -> bool:
    """Return whether this process may write to the SQLite file and may make files in its folder."""
    return _may(path, os.W_OK) and _may(Path(path).parent, os.W_OK | os.X_OK)


def _may(path: str | Path, mode: int) -> bool:
    """Return whether the effective user of this process has the access `mode` to `path`."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
