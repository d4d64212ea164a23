"""Check the values in the rows of an index in PostgreSQL, which itself checks its files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import CHUNK_LIMIT
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.index import problems
from filestore.repository.index.postgres import records, usage
from filestore.repository.index.postgres.chunks import select_namespaces
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.content_digests import select_invalid
from filestore.repository.index.postgres.tokens import select_invalid_tokens
from filestore.repository.index.protocol import IndexProblem
from filestore.repository.index.rows import Row

_ROWS_AT_ONCE = 500
_FOREIGN_ROWS = (
    f"SELECT namespace, encode(digest, 'hex') FROM chunks WHERE NOT (length(digest) = {DIGEST_SIZE}"
    f" AND size BETWEEN 1 AND {CHUNK_LIMIT} AND stored_size BETWEEN 1 AND {FRAME_LIMIT}"
    f" AND (frame_digest IS NULL OR length(frame_digest) = {DIGEST_SIZE})) LIMIT {problems.LIMIT}"
)


async def find_problems(connection: Connection) -> list[IndexProblem]:
    """Return what is wrong in the index, at most 100 problems of each kind, as it is at one moment. Reads all rows."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = [*problems.of_namespaces(await select_namespaces(connection))]
        found += [problems.of_chunk(*row) for row in await connection.fetch(_FOREIGN_ROWS)]
        found += [problem async for problem in _invalid_records(connection)]
        found += problems.of_counts(await usage.select_usages(connection), await usage.count_again(connection))
        found += problems.without_commit(await _some(connection, problems.WITHOUT_COMMIT))
        found += problems.without_record(await _some(connection, problems.WITHOUT_RECORD))
        found += problems.without_target(await _some(connection, problems.WITHOUT_TARGET))
        found += [IndexProblem(*each) async for each in select_invalid(connection, problems.LIMIT)]
        found += [problems.of_token(*token) for token in await select_invalid_tokens(connection, problems.LIMIT)]
    return found


async def _some(connection: Connection, statement: str) -> Iterable[Row]:
    return map(tuple, await connection.fetch(f"{statement} LIMIT {problems.LIMIT}"))


async def _invalid_records(connection: Connection) -> AsyncIterator[IndexProblem]:
    count = 0
    async for row in connection.cursor(f"SELECT {records.COLUMNS} FROM records", prefetch=_ROWS_AT_ONCE):
        problem = problems.of_record(tuple(row))
        if problem is not None:
            count += 1
            yield problem
            if count == problems.LIMIT:
                return
