"""What opening an index in PostgreSQL needs, and what messages show of its location."""

from __future__ import annotations

import sys

import asyncpg
import pytest

from filestore.errors import Busy, IndexDamaged, InvalidUrl, MissingPackage, NotPermitted, StorageError, StorageFull
from filestore.repository.index.postgres.errors import postgres_errors
from filestore.repository.index.postgres.location import shown_location
from filestore.repository.index.postgres.locks import locking, namespace_key, task_key
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.index.rows import DamagedRow


async def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    for name in [name for name in sys.modules if name.startswith("filestore.repository.index.postgres.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingPackage, match="asyncpg is not installed"):
        await open_postgres_index("postgresql://127.0.0.1/test")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:word@db.example:5433/models?sslmode=require&password=word", "postgresql://db.example:5433/models"),
        ("postgres://db.example/models", "postgres://db.example/models"),
        ("postgresql://me:word@[::1]:5433/models", "postgresql://[::1]:5433/models"),
        ("postgresql:///models?host=/run/postgresql", "postgresql:///models"),
    ],
)
def test_a_location_is_shown_without_secrets(url: str, shown: str) -> None:
    """Neither the user, nor the password, nor the query, which may have one."""
    assert shown == shown_location(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:word@db/models",
        "postgresql://me:word@db:x/models",
        "postgresql://[me:word@db",
        "postgresql://me:word/x@db/models",
        "postgresql://me:word?x@db/models",
        "postgresql://me:word#x@db/models",
        "postgresql://me:1/word@db/models",
    ],
)
def test_a_location_that_is_none_is_refused(url: str) -> None:
    """The message has no secret either."""
    with pytest.raises(InvalidUrl) as caught:
        shown_location(url)
    assert "word" not in f"{caught.value!r} {caught.value}".replace("a password", "")


@pytest.mark.parametrize(
    ("options", "reason"), [("sslmode=sometimes", "`sslmode` parameter"), ("port=word", "it has a value that cannot be used")]
)
async def test_an_option_that_is_none_is_refused(options: str, reason: str) -> None:
    """In one sentence about the URL, and not about the content of the database."""
    with pytest.raises(InvalidUrl, match=reason):
        await open_postgres_index(f"postgresql://me:word@/models?{options}")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (asyncpg.LockNotAvailableError("canceling statement due to lock timeout"), Busy),
        (asyncpg.DeadlockDetectedError("deadlock detected"), Busy),
        (asyncpg.AdminShutdownError("terminating connection"), Busy),
        (asyncpg.TooManyConnectionsError("too many clients"), Busy),
        (asyncpg.ConnectionDoesNotExistError("connection was closed"), Busy),
        (asyncpg.InterfaceError("connection is closed"), Busy),
        (ConnectionResetError(104, "Connection reset by peer"), Busy),
        (TimeoutError(), Busy),
        (asyncpg.DiskFullError("could not extend file"), StorageFull),
        (asyncpg.InsufficientPrivilegeError("permission denied for table chunks"), NotPermitted),
        (asyncpg.UndefinedTableError('relation "chunks" does not exist'), IndexDamaged),
        (asyncpg.DataCorruptedError("invalid page"), IndexDamaged),
        (asyncpg.CharacterNotInRepertoireError("invalid byte sequence"), StorageError),
        (DamagedRow("the record 'x' is not valid"), StorageError),
    ],
)
def test_an_error_has_one_of_ours_that_means_the_same(raised: Exception, expected: type[Exception]) -> None:
    """What may pass can be retried. Nothing else can."""
    with pytest.raises(expected) as caught, postgres_errors("postgresql://db/models"):
        raise raised
    assert expected is type(caught.value)
    assert (expected is Busy) == caught.value.retryable  # type: ignore[attr-defined]  # an error of ours
    assert "postgresql://db/models" in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (asyncpg.InvalidPasswordError('password authentication failed for user "me"'), "check the user and the password"),
        (asyncpg.InvalidAuthorizationSpecificationError('role "me" does not exist'), "check the user"),
        (asyncpg.InvalidCatalogNameError('database "x" does not exist'), "make the database, or check its name"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), "Connection refused; check the address"),
    ],
)
def test_an_index_that_cannot_be_opened_says_what_to_do(raised: Exception, words: str) -> None:
    """Nothing of it names a call of Python."""
    with pytest.raises(StorageError) as caught, postgres_errors("postgresql://db/models", opening=True):
        raise raised
    assert words in str(caught.value)
    assert "call" not in str(caught.value)


def test_a_value_that_no_database_keeps_is_not_tried_again() -> None:
    """The message does not have the value, which may be secret."""

    class Refused(asyncpg.InterfaceError, ValueError):  # type: ignore[misc]  # as asyncpg's own, which has no public name
        pass

    with pytest.raises(StorageError) as caught, postgres_errors("postgresql://db/models"):
        raise Refused("invalid input for query argument $1: 'secret-word'")
    assert not caught.value.retryable
    assert "secret-word" not in str(caught.value)


def test_each_lock_has_a_number_of_its_own() -> None:
    """All hosts compute the same ones, also those of other versions of filestore: they never change."""
    keys = [namespace_key("a"), namespace_key("b"), task_key("a"), task_key("b")]
    assert len(keys) == len(set(keys))
    assert all(-(1 << 63) <= key < 1 << 63 for key in keys)
    assert locking("a") != locking(None)
    assert -272210905122088668 == namespace_key("a")
