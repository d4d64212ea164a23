"""An index that an earlier version of filestore made is migrated in one transaction for each version."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest, token_digest
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.errors import RepositoryMoved, UnknownFormat
from filestore.repository.index.protocol import ChunkRow, NamespaceUsage, Policy, TokenRow, Use
from filestore.repository.index.sqlite import SCHEMA_VERSION, open_index, open_index_for_reading
from tests.support.commands import start_module
from tests.support.migration_crashes import NAME, NAMESPACE, OLDER_VERSIONS, TOKEN, make_older_index

FIRST, SECOND = (f"file_{number:032x}" for number in range(2))
CHUNK = chunk_digest(b"chunk")
ROW = ChunkRow(CHUNK, 1, 9)
TOKEN_ROW = TokenRow(token_digest(TOKEN), NAMESPACE, "laptop", 4_000_000, Scope.ADMIN)
"""A token that was made before scopes existed keeps all of them."""

USAGE = NamespaceUsage(NAMESPACE, record_count=2, name_count=1, size=2, chunk_count=1, stored_size=9)


async def check_migrated(path: Path) -> None:
    """Check that the records are there in their order, and that every table can be used."""
    index = await open_index(path)
    assert [SECOND, FIRST] == [record.id for record in await index.records(NAMESPACE, limit=10)]
    assert [ROW] == [state.row for state in await index.chunk_rows(NAMESPACE, limit=10)]
    assert USAGE == await index.usage(NAMESPACE)
    assert [] == await index.problems()
    commits = await index.history(NAMESPACE, NAME, limit=10) or []
    assert [(SECOND, commits[1].id), (FIRST, None)] == [(commit.file_id, commit.parent) for commit in commits]
    used = Use(FIRST, "p", "p:v1", is_graph=False)
    async with index.transaction() as transaction:
        await transaction.add_uses(NAMESPACE, [used])
        stored = await transaction.add_record(NAMESPACE, name=NAME, digest=chunk_digest(b""), size=0, kind=Kind.FILE)
        await transaction.set_task_state(NAMESPACE, "task", {"cursor": 1})
        await transaction.set_policy(NAMESPACE, Policy(keep_last=1))
    assert [used] == await index.uses(NAMESPACE)
    positions = [(found.position, found.record.id) for found in await index.records_after(NAMESPACE, 0, limit=10)]
    assert [(1_000_000, FIRST), (2_000_000, SECOND)] == positions[:2]
    assert stored.id == positions[2][1]
    version = await index.version()
    assert (32, 1) == (len(version.index_id), version.commits) if version else None
    assert [TOKEN_ROW] == await index.tokens()
    await index.close()


@pytest.mark.parametrize("version", OLDER_VERSIONS)
async def test_an_older_index_is_read_without_a_migration(tmp_path: Path, version: int) -> None:
    """A reader writes nothing: it finds the records in their order, and nothing of what the version did not have."""
    make_older_index(tmp_path / "index", version)

    index = await open_index_for_reading(tmp_path / "index")
    assert [SECOND, FIRST] == [record.id for record in await index.records(NAMESPACE, limit=10)]
    assert [FIRST] == [record.id for record in await index.records(NAMESPACE, limit=10, before=2_000_000)]
    assert [FIRST, SECOND] == [found.record.id for found in await index.records_after(NAMESPACE, 0, limit=10)]
    newest = await index.record(NAMESPACE, Reference(name=NAME))
    assert SECOND == (newest.id if newest else None)
    assert [ROW] == [state.row for state in await index.chunk_rows(NAMESPACE, limit=10)]
    assert [NAMESPACE] == await index.namespaces()
    older = await index.record(NAMESPACE, Reference(name=NAME, revision="~1"))
    assert FIRST == (older.id if older else None)
    assert (None, None, []) == (
        await index.commit(NAMESPACE, NAME),
        await index.history(NAMESPACE, NAME, limit=10),
        await index.labels(NAMESPACE, NAME),
    )
    assert ([], None, Policy()) == (
        await index.uses(NAMESPACE),
        await index.task_state(NAMESPACE, "task"),
        await index.policy(NAMESPACE),
    )
    assert (version >= 4) == (await index.version() is not None)
    assert [TOKEN_ROW] == await index.tokens()
    assert TOKEN_ROW == await index.token(TOKEN_ROW.digest)
    assert [USAGE] == [await index.usage(NAMESPACE)] == await index.usages()
    await index.close()
    with closing(sqlite3.connect(tmp_path / "index")) as connection:
        assert (version,) == connection.execute("PRAGMA user_version").fetchone()


@pytest.mark.parametrize("version", OLDER_VERSIONS)
async def test_two_processes_migrate_at_once(tmp_path: Path, version: int) -> None:
    """One of them does it, and the other finds it done."""
    make_older_index(tmp_path / "index", version)

    for index in await asyncio.gather(*(open_index(tmp_path / "index") for _ in range(4))):
        await index.close()
    await check_migrated(tmp_path / "index")


@pytest.mark.parametrize("version", OLDER_VERSIONS)
async def test_a_process_of_an_older_version_adds_no_record_after_a_migration(tmp_path: Path, version: int) -> None:
    """It had the index open. A record without a position would be in no mark, and a collection would remove its content."""
    path = tmp_path / "index"
    make_older_index(path, version)
    with closing(sqlite3.connect(path)) as older:
        older.execute("SELECT * FROM records").fetchall()
        await check_migrated(path)
        index = await open_index(path)
        before = await index.records(NAMESPACE, limit=10)
        for name, digest in (("new", CHUNK), (NAME, chunk_digest(b"0"))):  # and the first version again
            values = (NAMESPACE, f"file_{2:032x}", name, "file", digest, 1, 4_000_000, 4_000_000)
            with pytest.raises(sqlite3.IntegrityError, match="newer version of filestore"), older:
                older.execute(
                    "INSERT INTO records (namespace, id, name, kind, digest, size, created_at, updated_at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (namespace, name, kind, digest) DO UPDATE SET updated_at = excluded.updated_at",
                    values,
                )
        assert before == await index.records(NAMESPACE, limit=10)
        await index.close()


async def test_a_newer_version_migrates_an_open_index(tmp_path: Path) -> None:
    """From then on this process writes nothing: it does not know what the new tables need."""
    path = tmp_path / "index"
    index = await open_index(path)
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    with pytest.raises(UnknownFormat, match=f"format {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}"):
        async with index.transaction() as transaction:
            await transaction.add_chunks(NAMESPACE, [ROW])
    assert [] == await index.chunk_rows(NAMESPACE, limit=10)
    await index.close()


async def test_an_index_whose_repository_has_moved_is_newer_than_earlier_versions_know(tmp_path: Path) -> None:
    """They do not know the note, and refuse to write as above. This version reads on, and says where the repository is."""
    path = tmp_path / "index"
    index = await open_index(path)
    async with index.transaction() as transaction:
        await transaction.add_chunks(NAMESPACE, [ROW])
    async with index.transaction() as transaction:
        await transaction.set_moved("s3://models")
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert version > SCHEMA_VERSION
    for opened in (index, await open_index(path), await open_index_for_reading(path)):
        assert [ROW] == [state.row for state in await opened.chunk_rows(NAMESPACE, limit=10)]
        assert "s3://models" == await opened.moved_to()
        with pytest.raises(RepositoryMoved, match="s3://models"):
            async with opened.transaction():
                raise AssertionError
        await opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("version", OLDER_VERSIONS)
async def test_a_migration_is_killed_at_any_call(tmp_path: Path, version: int) -> None:
    """The next program that writes to the index completes it. Nothing is lost."""
    with start_module("tests.support.migration_crashes", tmp_path, str(version)) as process:
        killed = int(process.communicate()[0])

    assert (0, True) == (process.returncode, killed > 10)
    for place in range(1, killed + 1):
        await check_migrated(tmp_path / str(place))


async def test_a_token_that_is_changed_is_unknown_to_servers_of_earlier_versions(tmp_path: Path) -> None:
    """They would not know that it is limited. They read a table of their own, from which it is removed."""
    path = tmp_path / "index"
    make_older_index(path, OLDER_VERSIONS[-1])

    def known_before() -> list[bytes]:
        with closing(sqlite3.connect(path)) as connection:
            return [digest for (digest,) in connection.execute("SELECT digest FROM tokens")]

    index = await open_index(path)
    assert [TOKEN_ROW.digest] == known_before()
    async with index.transaction() as transaction:
        await transaction.add_token(TOKEN_ROW.digest, namespace=NAMESPACE, label="laptop", scope=Scope.READ)
        await transaction.add_token(token_digest("new"), namespace=NAMESPACE, label="")
    assert [] == known_before()
    assert [Scope.READ, Scope.ADMIN] == [row.scope for row in await index.tokens()]
    await index.close()
