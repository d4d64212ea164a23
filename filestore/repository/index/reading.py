"""How a SQLite file in write-ahead mode is opened by who only reads it: nothing is made, and no claim is left behind.

SQLite's readers of such a file need its shared memory (`-shm`), which they make where it is absent. Where this user may
write, they do, and remove it at the end. Elsewhere there are two ways:

- The shared memory is there, because another process has the file open: `mode=ro`, which shares it.
- It is not there, so that nobody has the file open: `immutable=1`, which needs none. It also takes no lock and reads no log.
  That is right only as long as nobody writes, so each read is followed by a look at the `State` of the file; what was read
  is thrown away where that has changed.

No file is opened here but by SQLite: closing any descriptor of a file drops the locks that this process holds on it.
Source: https://www.sqlite.org/wal.html, section 7 (read-only databases); https://www.sqlite.org/howtocorrupt.html, section 2.2.
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
    """What tells whether a file was written to, or opened for that."""

    identity: tuple[int, int]
    size: int
    modified_at: int
    log_size: int
    is_open: bool
    """Whether it has shared memory: another process has it open, or was killed while it had."""


class ReadConnection(NamedTuple):
    """A connection that reads."""

    connection: sqlite3.Connection
    state: State | None
    """The state that holds as long as what it reads is right; None where SQLite itself sees to that."""


def state_of(path: str) -> State:
    """Look at the file, by its names only. Blocks. Raises OSError."""
    found = Path(path).stat()
    log_size = 0
    with suppress(FileNotFoundError):
        log_size = Path(path + LOG).stat().st_size
    is_open = Path(path + SHARED_MEMORY).exists()
    return State((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns, log_size, is_open)


def open_for_reading(path: str, *, timeout_seconds: float) -> ReadConnection:
    """A connection to the file at the absolute `path` by which nothing is changed. Blocks.

    Raises IndexUnreadable, NotPermitted, sqlite3.Error, OSError.
    """
    state = state_of(path)
    if not _may(path, os.R_OK):
        raise NotPermitted(path, os.strerror(errno.EACCES))
    is_fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    if not is_fixed and _may_write(path):
        # Not `mode=ro`: such a connection, where it is the last one to close, leaves its shared memory behind, and a log that
        # writers have filled meanwhile.
        connection = _connect(path, "mode=rw", timeout_seconds)
        connection.execute("PRAGMA query_only = ON")
        return ReadConnection(connection, None)
    if state.log_size and (is_fixed or not state.is_open):
        raise _unfinished(path, is_fixed=is_fixed)
    if state.is_open and not is_fixed:
        return ReadConnection(_connect(path, "mode=ro", timeout_seconds), None)
    return ReadConnection(_connect(path, "mode=ro&immutable=1", timeout_seconds), state)


def in_use_elsewhere(path: str, error: Exception) -> IndexUnreadable | None:
    """What a failure to read means, where it is that the file's shared memory cannot be shared from here."""
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


def _connect(path: str, how: str, timeout_seconds: float) -> sqlite3.Connection:
    # In bytes: a path may be no UTF-8, or have characters that mean something in a URL.
    url = f"file://{quote(os.fsencode(path))}?{how}"
    return sqlite3.connect(url, uri=True, timeout=timeout_seconds, isolation_level=None)


def _may_write(path: str) -> bool:
    """Whether this process may write to the file, and make the files that SQLite needs beside it."""
    return _may(path, os.W_OK) and _may(Path(path).parent, os.W_OK | os.X_OK)


def _may(path: str | Path, mode: int) -> bool:
    """Whether this process may do that, as the user that it acts for."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
