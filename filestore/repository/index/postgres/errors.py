"""Translate the errors of PostgreSQL and of the connection to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from filestore.errors import Busy, FilestoreError, IndexDamaged, NotPermitted, StorageError, StorageFull, UnknownFormat
from filestore.repository.index.postgres.revisions import REVISION, REVISION_CHECK_STATE
from filestore.repository.index.rows import DamagedRow

_RETRYABLE_CLASSES = (
    "08",  # the connection failed
    "40",  # the transaction was rolled back, such as after a deadlock
    "53",  # no memory, no free connection
    "57",  # an operator ended it, or the server stops or starts
    "58",  # the server had an error of its system
)
_REFUSED_CLASS = "28"  # the server does not accept the user
_RETRYABLE = (
    "0A000",  # a plan that was made before a change of the tables
    "25P02",  # the transaction has failed already
    "25P03",  # the transaction was idle for too long
    "55P03",  # a lock was held for too long
)
_DAMAGED = (
    "42P01",  # a table is missing
    "42703",  # a column is missing
    "42883",  # a function is missing
    "XX001",  # data are damaged
    "XX002",  # an index of a table is damaged
)

BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""After these, a connection is in a state that nobody knows. After an error of the server it is not."""
FAILURES = (asyncpg.PostgresError, *BROKEN)
"""What asyncpg raises about a connection. Its pool raises an internal error if one ends at the moment that it is given back."""


@contextmanager
def postgres_errors(where: str, *, opening: bool = False) -> Iterator[None]:
    """Raise each error of asyncpg and each OSError of the block as a FilestoreError about the index at `where`.

    What may pass is Busy: a lock that is held, and a connection that fails. Only while the index is opened, a server that cannot
    be reached is a StorageError, which is retryable. Also raises StorageFull, NotPermitted, IndexDamaged, UnknownFormat.
    """
    try:
        yield
    except DamagedRow as damage:
        raise StorageError(where, f"{damage}; restore the index from a backup") from damage
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError) as error:
        raise translated(error, where, opening=opening) from error


def translated(error: Exception, where: str, *, opening: bool = False) -> FilestoreError:
    """Return the error that means the same."""
    reason = _reason(error)
    if isinstance(error, ValueError):
        return StorageError(where, "a value cannot be stored in the database")
    if not isinstance(error, asyncpg.PostgresError):
        if opening and isinstance(error, OSError):
            away = StorageError(
                where, f"the database cannot be reached: {reason}; check the address, and that PostgreSQL runs there"
            )
            away.retryable = True
            return away
        return Busy(where, f"the connection to the database failed: {reason}")
    return _of_state(error.sqlstate or "", where, reason)


def _of_state(state: str, where: str, reason: str) -> FilestoreError:
    """Return the error of a SQLSTATE."""
    if state == REVISION_CHECK_STATE:
        return UnknownFormat(where, reason, REVISION)
    if state == asyncpg.LockNotAvailableError.sqlstate:
        return Busy(where, "another process is writing to it")
    if state == asyncpg.DiskFullError.sqlstate:
        return StorageFull(where, reason, hint="free-repository")
    if state in _RETRYABLE or state[:2] in _RETRYABLE_CLASSES:
        return Busy(where, reason)
    if state in _DAMAGED:
        return IndexDamaged(where, reason)
    return _lasting(state, where, reason)


def _lasting(state: str, where: str, reason: str) -> StorageError:
    """Return the error of a SQLSTATE that somebody has to end."""
    if state.startswith(_REFUSED_CLASS):
        return StorageError(where, f"{reason}; check the user and the password", hint="give-password")
    if state == asyncpg.InvalidCatalogNameError.sqlstate:
        return StorageError(where, f"{reason}; make the database, or check its name")
    return (NotPermitted if state == asyncpg.InsufficientPrivilegeError.sqlstate else StorageError)(where, reason)


def _reason(error: Exception) -> str:
    """Return what an error says, in one line. Details are left out: they have values of rows."""
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ConnectionError) and error.errno:
        # The text of asyncio's own errors is about a call.
        return os.strerror(error.errno)
    text = getattr(error, "message", None) or (error.strerror if isinstance(error, OSError) else None) or str(error)
    return str(text).strip().partition("\n")[0] or type(error).__name__
