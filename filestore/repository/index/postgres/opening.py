"""Open an index in PostgreSQL, without importing what it needs before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from filestore.errors import MissingPackage
from filestore.system.clock import system_now

if TYPE_CHECKING:
    from filestore.repository.index.postgres.index import PostgresIndex

BUSY_SECONDS = 60.0
CONNECTIONS = 12
"""The most connections of one process: 9 for requests, 2 for long reads, and one that has the locks."""
LEAST_CONNECTIONS = 4
"""One for a write, one for what is read meanwhile, one for a long read, and one for locks."""
_PACKAGES = frozenset({"alembic", "asyncpg", "sqlalchemy"})


async def open_postgres_index(
    url: str,
    *,
    makes_tables: bool = True,
    read_only: bool = False,
    busy_seconds: float = BUSY_SECONDS,
    now: Callable[[], int] = system_now,
    connections: int = CONNECTIONS,
) -> PostgresIndex:
    """Open the index in the database at `url`, such as `postgresql://USER@HOST/DATABASE`.

    Tables are made if there are none and `makes_tables` is set; those of an older version are migrated. With `read_only`, neither
    is done, and reads write nothing. `busy_seconds` is how long a write waits for other writers. `connections` is the
    most that this process has to the database, at least 4. They are made when they are needed.

    Raises InvalidUrl, MissingPackage, NotARepository if there are no tables, UnknownFormat if a newer version or another
    program has made them, StorageError, Busy. No message has the password of the URL.
    """
    try:
        from filestore.repository.index.postgres.index import open_index  # noqa: PLC0415  # the package may be missing

        return await open_index(
            url, makes_tables=makes_tables, read_only=read_only, busy_seconds=busy_seconds, now=now, connections=connections
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _PACKAGES:
            raise
        raise MissingPackage(error.name.partition(".")[0], "an index in PostgreSQL", "postgres") from None
