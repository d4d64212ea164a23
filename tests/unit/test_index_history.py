"""What the tables of the history cost to read, and what damage in them does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from filestore.core.commits import Commit
from filestore.repository.index import history, schema
from filestore.repository.index.names import select_heads
from tests.support.migration_crashes import make_older_index

_NAMES = 3000
_STEPS = 10_000
"""Instructions of SQLite. To read all names takes many more."""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An index with many names. Each has a version with a tag."""
    with closing(sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)) as connection:
        schema.prepare(connection)
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO records VALUES ('a', ?, ?, 'file', ?, 1, ?, ?, ?, 100)",
            (
                (_file_id(number), f"team/n{number:04}", number.to_bytes(32), number, number, number)
                for number in range(1, _NAMES + 1)
            ),
        )
        history.commit_all_records(connection)
        connection.execute("INSERT INTO labels SELECT namespace, name, 'v1', 'tag', number, 1 FROM commits")
        connection.execute("COMMIT")
        yield connection


def _file_id(number: int) -> str:
    return f"file_{number:032x}"


def _limit_steps(connection: sqlite3.Connection) -> None:
    """Let statements fail that take more instructions."""
    connection.set_progress_handler(lambda: 1, _STEPS)


def _page(connection: sqlite3.Connection, *, after: str | None = None, prefix: str = "", limit: int = 3) -> list[str]:
    found = select_heads(connection, "a", search=None, owner=None, after=after, limit=limit, prefix=prefix)
    return [name for name, _ in found.heads]


@pytest.mark.parametrize("prefix", ["", "team/", "team/n29"])
def test_a_page_of_names_reads_no_names_before_it(connection: sqlite3.Connection, prefix: str) -> None:
    """So all pages together take time for each name once."""
    _limit_steps(connection)
    assert ["team/n2901", "team/n2902", "team/n2903"] == _page(connection, after="team/n2900", prefix=prefix)


def test_names_begin_at_the_prefix(connection: sqlite3.Connection) -> None:
    """A name that is the prefix itself is one of them, and a place before the prefix is passed over."""
    _limit_steps(connection)
    for after in (None, "a", "team/n1999"):
        assert ["team/n2000", "team/n2001", "team/n2002"] == _page(connection, after=after, prefix="team/n200")
    assert ["team/n2000"] == _page(connection, prefix="team/n2000")
    assert [] == _page(connection, after="team/n2000", prefix="team/n2000")


def test_the_graph_of_a_pipeline_is_not_among_the_names(connection: sqlite3.Connection) -> None:
    """It is not among the records either."""
    connection.execute("INSERT INTO uses VALUES ('a', ?, 'pipeline', 'name', 1)", (_file_id(2),))
    assert ["team/n0001", "team/n0003", "team/n0004"] == _page(connection)


def test_the_labels_of_a_record_are_read_without_those_of_others(connection: sqlite3.Connection) -> None:
    """A removal and a policy ask this for each record."""
    _limit_steps(connection)
    assert ["v1"] == history.select_labels_of_record(connection, "a", _file_id(2000))


def test_a_page_of_a_history_reads_no_commits_before_it(connection: sqlite3.Connection) -> None:
    """Wherever it is on `main`, and also where another branch begins there."""
    connection.execute(
        "INSERT INTO commits SELECT namespace, 'long', position, substr(digest, 13), nullif(position - 1, 0), 'main', id,"
        " '', '', 1 FROM records"
    )
    connection.execute("UPDATE commits SET branch = 'dev' WHERE name = 'long' AND number > ?", (_NAMES - 5,))
    connection.execute("INSERT INTO labels VALUES ('a', 'long', 'dev', 'branch', ?, 1)", (_NAMES,))
    _limit_steps(connection)
    for revision in ("main", "dev"):
        for before in (2, 1000, _NAMES - 5):
            found = history.select_history(connection, "a", "long", revision, limit=3, before=before)
            assert list(range(before - 1, max(before - 4, 0), -1)) == _numbers(found or [])
    found = history.select_history(connection, "a", "long", "dev", limit=7, before=None)
    assert list(range(_NAMES, _NAMES - 7, -1)) == _numbers(found or [])


def test_a_circle_of_parents_ends(connection: sqlite3.Connection) -> None:
    """A damaged index must not keep a thread busy without end."""
    connection.execute("UPDATE commits SET parent = number WHERE name = 'team/n0001'")
    _limit_steps(connection)
    found = history.select_history(connection, "a", "team/n0001", None, limit=10, before=None)
    assert found is not None
    assert [1] == _numbers(found)
    assert [] == history.select_history(connection, "a", "team/n0001", None, limit=10, before=1)


def _numbers(commits: list[Commit]) -> list[int]:
    return [commit.number for commit in commits]


@pytest.mark.parametrize("digest", [b"short", "a text", 5])
def test_a_damaged_record_does_not_stop_the_migration(tmp_path: Path, digest: object) -> None:
    """Other records can be read, and a check of the repository names the damaged one."""
    path = tmp_path / "index.sqlite"
    make_older_index(path, 5)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO records VALUES ('b', 'file_1', X'ff', 'file', ?, 1, 1, 1, 1, 100)", (digest,))
        schema.prepare(connection)
        assert schema.has_version(connection, schema.SCHEMA_VERSION)
        (count,) = connection.execute("SELECT count(*) FROM commits WHERE namespace = 'b'").fetchone()
        assert 1 == count
