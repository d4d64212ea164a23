"""The file of an index is damaged, or another program wrote to it. A check of the index says so."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.records import Kind
from filestore.errors import IndexDamaged
from filestore.repository.index.protocol import ChunkRow, IndexProblem
from filestore.repository.index.sqlite import open_index, open_index_for_reading

A = "a"


async def problems(path: Path) -> list[IndexProblem]:
    """Return the problems of the index in `path`."""
    index = await open_index(path)
    try:
        return await index.problems()
    finally:
        await index.close()


async def filled(path: Path, *, count: int = 3) -> Path:
    """Make an index with some rows and two records."""
    index = await open_index(path)
    rows = [ChunkRow(chunk_digest(b"%d" % number), 10, 18) for number in range(count)]
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, rows)
        for name in ("one", "two"):
            await transaction.add_record(A, name=name, digest=rows[0].digest, size=10, kind=Kind.FILE)
    await index.close()
    return path


def change(path: Path, statement: str) -> None:
    """Write to an index as another program."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM meta", "DELETE FROM meta WHERE key = 'commits'", "UPDATE meta SET value = 'x' WHERE key = 'commits'"],
)
async def test_an_index_without_its_id_is_damaged(tmp_path: Path, statement: str) -> None:
    """It is refused, whoever opens it."""
    path = await filled(tmp_path / "index.sqlite")
    change(path, statement)
    for opening in (open_index, open_index_for_reading):
        with pytest.raises(IndexDamaged, match="it has lost its id or its number of commits"):
            await opening(path)


async def test_foreign_rows_are_named(tmp_path: Path) -> None:
    """A row with a value that no chunk has is a problem of the index."""
    path = await filled(tmp_path / "index.sqlite")
    change(path, "UPDATE chunks SET size = 0 WHERE digest = (SELECT min(digest) FROM chunks)")
    change(path, "UPDATE chunks SET stored_size = 'many' WHERE digest = (SELECT max(digest) FROM chunks)")
    found = await problems(path)
    assert [A, A] == [problem.namespace for problem in found]
    assert all("values that no chunk has" in problem.detail for problem in found)


async def test_an_invalid_record_is_named_and_the_others_are_still_listed(tmp_path: Path) -> None:
    """One record with a bad name does not hide the others from a check."""
    path = await filled(tmp_path / "index.sqlite")
    change(path, "UPDATE records SET name = '../up' WHERE name = 'one'")
    (problem,) = await problems(path)
    assert problem.is_record
    index = await open_index(path)
    found = await index.records_after(A, 0, limit=1, only_valid=True)
    assert ["two"] == [record.name for _, record, _ in found]
    await index.close()


async def test_a_damaged_page_is_a_problem_and_no_failure(tmp_path: Path) -> None:
    """A page with other bytes is found by SQLite's own check; a check reports it and goes on."""
    path = await filled(tmp_path / "index.sqlite", count=2000)
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 3000] = bytes(3000)
    index = await open_index(path)
    path.write_bytes(content)
    try:
        found = await index.problems()
    finally:
        await index.close()
    assert found
    assert not any(problem.is_record for problem in found)
