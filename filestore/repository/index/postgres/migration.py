"""Make the tables of an index in PostgreSQL, or bring those of an older version to this one.

All revisions are applied in one transaction, so a process that is killed leaves the tables as they were. Two processes take turns
by a lock, and the second one finds nothing to do. A server of the version before goes on reading, and its next write is refused.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from filestore.repository.index.postgres import migrations
from filestore.repository.index.postgres.locks import MIGRATION
from filestore.repository.index.postgres.revisions import REVISION


async def migrate(url: str) -> None:
    """Apply the revisions that are missing. It waits for another process that does so. Raises errors of asyncpg, OSError."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION})")
            await connection.run_sync(_upgrade)
    except DBAPIError as error:
        # What asyncpg has raised is behind two errors that stand for it.
        raise getattr(error.orig, "__cause__", None) or error from None
    finally:
        await engine.dispose()


def _upgrade(connection: SyncConnection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, REVISION)
