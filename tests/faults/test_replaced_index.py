"""A file of an open index is replaced or removed. The process that has it open notices, and stops writing."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import IndexReplaced
from filestore.repository.index.sqlite import open_index
from filestore.repository.protocol import Repository
from tests.support.frames import contents, encoded, manifest
from tests.support.server import running_server

CHUNKS = contents(2, size=500)


def remove_index(index: Path) -> None:
    """Remove the file by hand."""
    index.unlink()


def empty_index(index: Path) -> None:
    """Put an empty file in its place."""
    index.unlink()
    index.touch()


def replace_index(index: Path) -> None:
    """Put a copy in its place, as a tool that restores files does."""
    copy = index.with_name("copy")
    shutil.copy(index, copy)
    copy.rename(index)


def remove_log(index: Path) -> None:
    """Remove the log, which looks like a temporary file."""
    index.with_name("index.sqlite-wal").unlink()


def remove_memory(index: Path) -> None:
    """Remove the shared memory."""
    index.with_name("index.sqlite-shm").unlink()


HARMS = (remove_index, empty_index, replace_index, remove_log, remove_memory)


async def push(repository: Repository, name: str) -> str:
    """Push a small file; return its id."""
    await repository.put([encoded(content) for content in CHUNKS])
    return (await repository.commit(manifest(CHUNKS).encoded, name=name)).id


@pytest.mark.parametrize("harm", HARMS)
async def test_a_replaced_file_stops_writes_and_not_reads(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Each write fails with an error that says so. Records that were read before can still be read."""
    root = tmp_path / "root"
    async with connect(root, create=True) as repository:
        kept = await push(repository, "kept")
        harm(root / "index.sqlite")
        for _ in range(2):
            with pytest.raises(IndexReplaced, match=r"(removed|replaced by another file) while this process had it open"):
                await push(repository, "lost")
        assert kept == (await repository.record("kept")).id


async def test_a_file_that_is_replaced_during_a_transaction_gets_no_commit(tmp_path: Path) -> None:
    """The transaction is rolled back."""
    index = await open_index(tmp_path / "index.sqlite")
    with pytest.raises(IndexReplaced):
        async with index.transaction():
            replace_index(tmp_path / "index.sqlite")
    await index.close()


async def test_closing_a_replaced_index_leaves_the_log_of_the_new_one(tmp_path: Path) -> None:
    """SQLite removes a log by its name. A process that closes the old file must not remove that of the new file."""
    path = tmp_path / "index.sqlite"
    index = await open_index(path)
    await index.tokens()
    path.rename(tmp_path / "aside")
    for part in ("-wal", "-shm"):
        (tmp_path / f"index.sqlite{part}").rename(tmp_path / f"aside{part}")
    with closing(sqlite3.connect(path, isolation_level=None)) as new:
        new.execute("PRAGMA journal_mode = WAL")
        new.execute("CREATE TABLE t (value)")
        before = path.with_name("index.sqlite-wal").stat().st_ino
        await index.close()
        assert before == path.with_name("index.sqlite-wal").stat().st_ino
        new.execute("INSERT INTO t VALUES (1)")
    with closing(sqlite3.connect(path)) as new:
        assert [(1,)] == new.execute("SELECT * FROM t").fetchall()


async def test_a_process_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a repository that was opened by a relative path are still found."""
    monkeypatch.chdir(tmp_path)
    async with connect("root", create=True) as repository:
        await repository.records()
        writer = await open_index(Path("root/index.sqlite"))
        async with writer.transaction():
            monkeypatch.chdir(tmp_path / "root")
        await writer.close()


@pytest.mark.slow
def test_a_server_whose_index_is_replaced_only_reads(tmp_path: Path) -> None:
    """An upload fails with an error that says why, files are still served, and the server can be stopped."""
    with running_server(tmp_path / "root", check=False) as server:
        kept = server.upload("kept.txt", b"kept").json
        replace_index(server.root / "index.sqlite")
        answer = server.upload("lost.txt", b"lost")
        assert (500, "index-replaced") == (answer.status, answer.slug)
        assert b"kept" == server.ask("GET", f"/{kept['path']}").body
        status, log = server.stop()
    assert 0 == status
    assert "index.sqlite is not written to any more: it was replaced by another file" in log
    with running_server(tmp_path / "root") as server:
        names = [record["name"] for record in server.ask("GET", "/native/v1/files").json["files"]]
        assert ["kept.txt"] == names
