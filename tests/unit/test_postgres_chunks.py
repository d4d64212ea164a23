"""What a look-up of digests in PostgreSQL costs: rows, of whatever the planner knows about the table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256

import asyncpg
import pytest

from filestore.core.digest import Digest
from filestore.core.object_names import ObjectName
from filestore.repository.index.postgres import chunks, connections, content_digests, object_map, statements

_ROWS = 5000
_FILL = (
    "INSERT INTO {} SELECT 'a', sha256(int8send(number)), {} FROM generate_series(0, {}) AS number",
    ("chunks", "1, 1, 0, false, NULL, ''"),
    ("lost_frames", "''"),
    ("bases", "sha256(int8send(number + 1))"),
)
_READ = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_xact_user_tables WHERE relname = ANY($1)"
_TABLES = ["chunks", "lost_frames", "bases", "content_digests"]


def digests(count: int) -> list[Digest]:
    """Return digests that have a row, far apart from each other."""
    return [Digest(sha256((number * (_ROWS // count)).to_bytes(8, "big")).digest()) for number in range(count)]


@pytest.fixture(params=["no statistics", "statistics"])
async def connection(request: pytest.FixtureRequest, postgres_index_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction in an index with many rows, on a connection like those of an index."""
    connection = await asyncpg.connect(postgres_index_url, server_settings=connections._SETTINGS)
    try:
        statement, *tables = _FILL
        for table, values in tables:
            await connection.execute(statement.format(table, values, _ROWS))
        if request.param == "statistics":
            await connection.execute("ANALYZE")
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("count", [1, 100])
async def test_a_look_up_reads_the_rows_of_its_digests(connection: asyncpg.Connection, count: int) -> None:
    """And no others, in the first statements of a connection and later."""
    asked = digests(count)
    for _ in range(7):
        start = int(await connection.fetchval(_READ, _TABLES))
        assert count == len(await chunks.select_live(connection, "a", asked))
        recent, old = await chunks.select_refreshed(connection, "a", asked, 0)
        assert (count, 0) == (len(recent), len(old))
        assert count == len(await chunks.select_sizes(connection, "a", asked))
        assert [] == await chunks.select_unknown(connection, "a", asked)
        assert [] == await chunks.select_condemned(connection, "a", asked)
        assert count == len(await object_map.select_frames(connection, "a", asked))
        assert [] == await object_map.select_unnamed_frames(connection, "a", [ObjectName(digest, b"") for digest in asked])
        assert {} == await content_digests.select_contents(connection, "a", asked)
        await chunks.update_last_seen(connection, "a", asked, 0)
        # Of the last frames, two tables are read.
        assert int(await connection.fetchval(_READ, _TABLES)) - start <= 9 * count


@pytest.mark.parametrize("count", [1, 100])
async def test_a_removal_reads_the_rows_of_its_digests(connection: asyncpg.Connection, count: int) -> None:
    """Also the edges to their bases."""
    asked = digests(count)
    start = int(await connection.fetchval(_READ, _TABLES))
    assert len(asked) == len(await chunks.update_condemned(connection, "a", asked, 1))
    assert len(asked) == len(await chunks.delete_chunks(connection, "a", asked))
    assert int(await connection.fetchval(_READ, _TABLES)) - start <= 4 * count


def test_digests_are_packed_once() -> None:
    """In their order. What has another size would shift those after it."""
    first, second = digests(2)
    assert [first + second] == list(statements.packed_batches([first, second, first]))
    assert [] == list(statements.packed_batches([]))
    with pytest.raises(ValueError, match="32 bytes"):
        list(statements.packed_batches([first, b"short"]))
