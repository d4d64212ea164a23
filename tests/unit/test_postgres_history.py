"""What the tables of the history in PostgreSQL cost to read: rows, of whatever the planner knows about them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from filestore.core.references import Reference
from filestore.repository.index.postgres import connections, history, names, records

_NAME = "team/n1"
_COMMITS = 4000
"""Commits of one name, alternately of two records."""
_NAMES = 3000
_ROWS = (
    f"""INSERT INTO records SELECT 'a', 'file_' || lpad(to_hex(n), 32, '0'), 'team/n' || n % {_NAMES}, 'file',
        sha256(n::text::bytea), 1, n, n, n, 100 FROM generate_series(1, {2 * _NAMES}) AS n""",
    f"""INSERT INTO commits SELECT 'a', '{_NAME}', n, substr(sha256(n::text::bytea), 1, 20), nullif(n - 1, 0), 'main',
        'file_' || lpad(to_hex(1 + {_NAMES} * (n % 2)), 32, '0'), '', '', n FROM generate_series(1, {_COMMITS}) AS n""",
    f"""INSERT INTO commits SELECT namespace, name, position, substr(digest, 1, 20), NULL, 'main', id, '', '', position
        FROM records WHERE name <> '{_NAME}'""",
    f"INSERT INTO labels SELECT namespace, name, 'v1', 'tag', number, 1 FROM commits WHERE parent IS NULL AND number < {_NAMES}",
)
_READ = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_xact_user_tables WHERE schemaname = 'public'"


@pytest.fixture(params=["no statistics", "statistics"])
async def connection(request: pytest.FixtureRequest, postgres_index_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction in an index with many names, one of which has many commits, on a connection like those of an index."""
    connection = await asyncpg.connect(postgres_index_url, server_settings=connections._SETTINGS)
    try:
        for statement in _ROWS:
            await connection.execute(statement)
        if request.param == "statistics":
            await connection.execute("ANALYZE")
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def rows_read(connection: asyncpg.Connection) -> int:
    """Return how many rows the transaction has read in tables."""
    return int(await connection.fetchval(_READ))


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, 1001])
async def test_a_page_of_a_history_reads_no_other_commits(connection: asyncpg.Connection, before: int | None) -> None:
    """Each commit is read with its record and its parent."""
    start = await rows_read(connection)
    page = await history.select_history(connection, "a", _NAME, None, limit=1000, before=before)
    assert page is not None
    assert list(range((before or _COMMITS + 1) - 1, (before or _COMMITS + 1) - 1001, -1)) == [commit.number for commit in page]
    assert await rows_read(connection) - start <= 5 * 1000


@pytest.mark.slow
async def test_a_page_of_names_reads_no_names_before_it(connection: asyncpg.Connection) -> None:
    """So all pages together take time for each name once. The commits of a name are passed over."""
    start = await rows_read(connection)
    found = await names.select_heads(connection, "a", search=None, owner="team", after="team/n0", limit=3, prefix="")
    assert [_NAME, "team/n10", "team/n100"] == [name for name, _ in found.heads]
    assert await rows_read(connection) - start <= 50


@pytest.mark.slow
async def test_a_record_of_many_commits_is_removed_by_looking_each_up(connection: asyncpg.Connection) -> None:
    """Not by reading all commits of its name for each one. The others follow each other then."""
    removed = f"file_{1:032x}"
    start = await rows_read(connection)
    assert await records.delete_record(connection, "a", removed) is not None
    assert await rows_read(connection) - start <= 5 * _COMMITS
    left = await history.select_history(connection, "a", _NAME, None, limit=_COMMITS, before=None)
    assert left is not None
    assert list(range(_COMMITS - 1, 0, -2)) == [commit.number for commit in left]
    assert [commit.id for commit in left[1:]] == [commit.parent for commit in left[:-1]]
    assert await records.select_record(connection, "a", Reference(id=removed)) is None
