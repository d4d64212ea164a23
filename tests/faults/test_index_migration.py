"""An index that an earlier version of filestore made is migrated in one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from filestore.repository.index.protocol import Use
from filestore.repository.index.sqlite import open_index, open_index_for_reading
from tests.support.commands import start_module
from tests.support.migration_crashes import NAME, NAMESPACE, make_older_index


async def check_migrated(path: Path) -> None:
    """Check that the record is there and can be used."""
    index = await open_index(path)
    (record,) = await index.records(NAMESPACE, limit=10)
    assert NAME == record.name
    used = Use(record.id, "p", "p:v1", is_graph=False)
    async with index.transaction() as transaction:
        await transaction.add_uses(NAMESPACE, [used])
    assert [used] == await index.uses(NAMESPACE)
    await index.close()


async def test_an_older_index_is_read_without_a_migration(tmp_path: Path) -> None:
    """A reader writes nothing: it finds the records, and no uses."""
    await make_older_index(tmp_path / "index")

    index = await open_index_for_reading(tmp_path / "index")
    assert [NAME] == [record.name for record in await index.records(NAMESPACE, limit=10)]
    assert [] == await index.uses(NAMESPACE)
    await index.close()
    with closing(sqlite3.connect(tmp_path / "index")) as connection:
        assert (2,) == connection.execute("PRAGMA user_version").fetchone()


async def test_two_processes_migrate_at_once(tmp_path: Path) -> None:
    """One of them does it, and the other finds it done."""
    await make_older_index(tmp_path / "index")

    for index in await asyncio.gather(*(open_index(tmp_path / "index") for _ in range(4))):
        await index.close()
    await check_migrated(tmp_path / "index")


@pytest.mark.slow
async def test_a_migration_is_killed_at_any_call(tmp_path: Path) -> None:
    """The next program that writes to the index completes it. Nothing is lost."""
    with start_module("tests.support.migration_crashes", tmp_path) as process:
        killed = int(process.communicate()[0])

    assert (0, True) == (process.returncode, killed > 10)
    for place in range(1, killed + 1):
        await check_migrated(tmp_path / str(place))
