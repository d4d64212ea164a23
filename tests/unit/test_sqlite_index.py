"""What only an index in SQLite can get wrong."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from filestore.core.commits import Label, LabelKind
from filestore.core.digest import chunk_digest
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.errors import StorageError, StorageFull, UnknownFormat
from filestore.repository.index.protocol import ChunkRow
from filestore.repository.index.records import select_records
from filestore.repository.index.sqlite import REFRESH_MICROSECONDS, SCHEMA_VERSION, open_index, system_now

DIGEST = chunk_digest(b"content")


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as SQLite's own tools see it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


async def test_file_is_not_readable_for_other_users(tmp_path: Path) -> None:
    """It names files and holds digests of tokens; SQLite gives its log the same mode."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    async with index.transaction() as transaction:
        await transaction.add_token(DIGEST, namespace="a", label="")
    assert {0o600} == {stat.S_IMODE(found.stat().st_mode) for found in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) > 1
    await index.close()


async def test_file_of_another_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    """One sentence that names both versions."""
    path = tmp_path / "index.sqlite"
    with raw(path) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(UnknownFormat, match=f"format 99, this program knows {SCHEMA_VERSION}"):
        await open_index(path)
    assert before == path.read_bytes()


async def test_file_of_another_program_is_refused_and_not_touched(tmp_path: Path) -> None:
    """Whether it is a database or not."""
    database, text = tmp_path / "database", tmp_path / "text"
    with raw(database) as connection:
        connection.execute("CREATE TABLE other (x)")
    text.write_bytes(b"no database" * 1000)
    for path, error in ((database, UnknownFormat), (text, StorageError)):
        before = path.read_bytes()
        with pytest.raises(error):
            await open_index(path)
        assert before == path.read_bytes()


async def test_folder_that_is_not_there(tmp_path: Path) -> None:
    """Said with the path."""
    path = tmp_path / "nowhere" / "index.sqlite"
    with pytest.raises(StorageError, match=str(path)):
        await open_index(path)


async def test_chunk_marked_while_missing_is_answered_is_missing(tmp_path: Path) -> None:
    """I9: between reading a row and refreshing it, a collection may have marked it; it is then not reported present."""
    path = tmp_path / "index.sqlite"
    to_mark = iter([True])

    def now() -> int:
        # `missing` looks at the clock after it has read the row, and before it writes.
        if next(to_mark, False):
            with raw(path) as connection:
                connection.execute("UPDATE chunks SET going = 1")
        return system_now() + 2 * REFRESH_MICROSECONDS

    index = await open_index(path)
    async with index.transaction() as transaction:
        await transaction.add_chunks("a", [ChunkRow(DIGEST, 10, 5)])
    assert [] == await index.missing("a", [DIGEST])
    await index.close()
    later = await open_index(path, now=now)
    assert [DIGEST] == await later.missing("a", [DIGEST])
    await later.close()


async def test_full_disk_is_said_and_rolls_back(tmp_path: Path) -> None:
    """Nothing of the transaction stays, and the next one that fits succeeds."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)

    def limit(connection: sqlite3.Connection, pages: int) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    async def add(count: int) -> None:
        rows = [ChunkRow(chunk_digest(b"%d" % number), 1, 1) for number in range(count)]
        async with index.transaction() as transaction:
            await transaction.add_chunks("a", rows)

    await index._writer.run(limit, 20)
    with pytest.raises(StorageFull, match=str(path)):
        await add(5000)
    await add(1)
    assert [chunk_digest(b"1")] == await index.missing("a", [chunk_digest(b"0"), chunk_digest(b"1")])
    await index.close()


async def test_commit_reaches_the_disk(tmp_path: Path) -> None:
    """WAL with NORMAL would lose the last commits with the power."""
    index = await open_index(tmp_path / "index.sqlite")

    def pragmas(connection: sqlite3.Connection) -> tuple[str, int]:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        return mode, synchronous

    assert ("wal", 2) == await index._writer.run(pragmas)
    await index.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "../escaped"),
        ("name", "/tmp/x/y"),
        ("id", "../../x"),
        ("kind", "link"),
        ("digest", b"short"),
        ("size", -1),
    ],
)
async def test_record_that_cannot_be_one_is_an_error_of_the_index(tmp_path: Path, column: str, value: object) -> None:
    """A folder may be another user's, and names and ids become paths: no row is believed."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    async with index.transaction() as transaction:
        record = await transaction.add_record("a", name="name", digest=DIGEST, size=1, kind=Kind.FILE)
    await index.close()
    with raw(path) as connection:
        connection.execute(f"UPDATE records SET {column} = ?", (value,))
    index = await open_index(path)
    with pytest.raises(StorageError, match=str(path)):
        await index.records("a", limit=10)
    if column != "id":
        with pytest.raises(StorageError, match=str(path)):
            await index.record("a", Reference(id=record.id))
    await index.close()


async def test_the_file_becomes_smaller(tmp_path: Path) -> None:
    """What removed rows took is returned to the file system."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    digests = [chunk_digest(b"%d" % number) for number in range(10_000)]
    async with index.transaction() as transaction:
        await transaction.add_chunks("a", [ChunkRow(digest, 1, 1) for digest in digests])
    await index.close()
    before = path.stat().st_size

    index = await open_index(path)
    async with index.transaction() as transaction:
        await transaction.forget_chunks("a", digests)
    await index.compact()
    await index.close()
    assert path.stat().st_size < before / 4


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ("DELETE FROM commits", "its record '{id}' of 'team/m' has no commit, so only its id finds it"),
        ("DELETE FROM records", "the commit 1 of 'team/m' has no record"),
        ("UPDATE labels SET number = 7", "the label 'v1' of 'team/m' has no commit"),
    ],
)
async def test_a_check_tells_of_a_history_that_is_not_whole(tmp_path: Path, change: str, detail: str) -> None:
    """Records, commits and labels belong together."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    async with index.transaction() as transaction:
        record = await transaction.add_record("a", name="team/m", digest=DIGEST, size=1, kind=Kind.FILE)
    commit = await index.commit("a", "team/m")
    assert commit is not None
    async with index.transaction() as transaction:
        await transaction.set_label("a", "team/m", Label("v1", LabelKind.TAG, commit.id, 0))
    assert [] == await index.problems()
    with raw(path) as connection:
        connection.execute(change)
    assert ("a", detail.format(id=record.id)) in [(found.namespace, found.detail) for found in await index.problems()]
    await index.close()


@pytest.mark.parametrize("change", ["scope = 'all'", "prefix = x'00'", "expires_at = 'never'", "created_at = 0.5"])
async def test_a_token_with_values_that_are_not_valid_permits_nothing(tmp_path: Path, change: str) -> None:
    """A later version may know it. A check tells of it, and the other tokens work."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    other = chunk_digest(b"other")
    async with index.transaction() as transaction:
        await transaction.add_token(DIGEST, namespace="a", label="")
        await transaction.add_token(other, namespace="a", label="")
    with raw(path) as connection:
        connection.execute(f"UPDATE access_tokens SET {change} WHERE digest = ?", (DIGEST,))  # constants
    assert await index.token(DIGEST) is None
    assert [other] == [row.digest for row in await index.tokens()]
    (found,) = await index.problems()
    assert ("a", f"its token {str(DIGEST)[:16]} has values that are not valid, so it permits nothing") == (
        found.namespace,
        found.detail,
    )
    await index.close()


async def test_a_page_of_records_costs_what_it_has(tmp_path: Path) -> None:
    """The place where it begins is looked up, however many newer records there are."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    async with index.transaction() as transaction:
        for number in range(3000):
            digest = chunk_digest(b"%d" % number)
            await transaction.add_record("a", name=f"{number}", digest=digest, size=1, kind=Kind.FILE)
    last = (await index.records("a", limit=1000))[-1]
    await index.close()
    steps = [0]
    with raw(path) as connection:
        connection.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 100)
        assert ["1999", "1998"] == [record.name for record in select_records(connection, "a", 2, last.updated_at)]
    assert steps[0] < 10
