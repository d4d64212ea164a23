"""An index that was lost, emptied or replaced by an older one is refused at the start, and nothing else is.

`test_repository_faults` opens what a push has left that was killed at any of its calls: that raises no alarm either.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from filestore.backends import connect, create_repository, open_backend
from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.errors import CollectionHeld, IndexDamaged, NotARepository
from filestore.repository.index.last_commit import LastCommit
from filestore.repository.index.protocol import IndexVersion
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.collection_plan import CollectionPlan, _collect_what_is_due
from filestore.repository.maintenance.hold import end_holds
from filestore.repository.maintenance.repair import repair
from filestore.repository.protocol import Repository
from tests.support.frames import contents, encoded, manifest

CHUNKS = contents(2, size=500)
NAMES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm")


async def push(repository: Repository, name: str) -> None:
    """Push a small file."""
    await repository.put([encoded(content) for content in CHUNKS])
    await repository.commit(manifest(CHUNKS).encoded, name=name)


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A repository with two records. `older` beside it has the index before the second one."""
    root = tmp_path / "root"
    (tmp_path / "older").mkdir()
    async with connect(root, create=True) as repository:
        await push(repository, "first")
    shutil.copy(root / "index.sqlite", tmp_path / "older")
    async with connect(root) as repository:
        await push(repository, "second")
    return root


def remove(root: Path) -> None:
    """Remove the index."""
    (root / "index.sqlite").unlink()


def empty(root: Path) -> None:
    """Leave a file without a byte."""
    (root / "index.sqlite").write_bytes(b"")


def put_older(root: Path) -> None:
    """Put a copy in its place that was made before."""
    shutil.copy(root.parent / "older/index.sqlite", root)


def put_much_older(root: Path) -> None:
    """Put a copy in its place that an earlier version made."""
    put_older(root)
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        for table in ("meta", "tasks", "policies", "bases"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 3")


def make_malformed(root: Path) -> None:
    """Overwrite the middle of each page but the first."""
    path = root / "index.sqlite"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for place in range(4096, size, 4096):
            file.seek(place)
            file.write(b"\xff" * 2000)


def make_foreign(root: Path) -> None:
    """Put a file in its place that is not a database."""
    (root / "index.sqlite").write_bytes(b"not a database" * 1000)


HARMS: dict[Callable[[Path], None], str] = {
    remove: "its index index.sqlite is missing",
    empty: "it is empty: it has no tables",
    put_older: "it is an older copy: it has 1 commits, and the last commit to this repository was number 2",
    put_much_older: "it is not the index with which this repository was last written",
    make_malformed: "malformed",
    make_foreign: "file is not a database",
}


@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only"])
@pytest.mark.parametrize("harm", HARMS)
async def test_a_wrong_index_is_refused_at_the_start(root: Path, harm: Callable[[Path], None], *, read_only: bool) -> None:
    """The error says what is wrong, and nothing is written, so that the index can still be restored."""
    harm(root)
    before = {name: (root / name).read_bytes() for name in NAMES if (root / name).exists()}
    with pytest.raises((IndexDamaged, NotARepository), match=HARMS[harm]):
        async with connect(root, read_only=read_only):
            pass
    assert before == {name: (root / name).read_bytes() for name in NAMES if (root / name).exists()}


async def test_a_new_index_is_not_accepted_beside_content(root: Path, tmp_path: Path) -> None:
    """It has tables, but it is not the one with which the repository was written."""
    await create_repository(tmp_path / "other")
    shutil.copy(tmp_path / "other/index.sqlite", root)
    with pytest.raises(IndexDamaged, match="it is not the index with which this repository was last written"):
        await open_backend(root)


@pytest.mark.parametrize("harm", [remove, empty, put_older])
async def test_a_repair_accepts_the_index(root: Path, harm: Callable[[Path], None]) -> None:
    """From then on everybody does, and commits count again."""
    harm(root)
    store, index = await open_backend(root, accepts_index=True)
    await index.close()
    await store.close()
    async with connect(root) as repository:
        await push(repository, "third")
    async with connect(root, read_only=True) as repository:
        assert "third" == (await repository.record("third")).name


@pytest.mark.parametrize("harm", [remove, empty, put_older])
async def test_what_has_lost_its_name_is_not_collected(root: Path, harm: Callable[[Path], None]) -> None:
    """It may be the only copy. A hold stays through collections of everybody until a person ends it."""
    async with connect(root) as repository:
        chunks = contents(2, size=700)
        await repository.put([encoded(content) for content in chunks])
        await repository.commit(manifest(chunks).encoded, name="third")
    harm(root)
    before = sorted((*root.glob("chunks/*/*/*/*"), *root.glob("manifests/*/*/*/*")))
    store, index = await open_backend(root, accepts_index=True)
    (hold,) = (await repair(store, index)).holds
    with pytest.raises(CollectionHeld, match="a repair accepted an index that was refused"):
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    await index.close()
    await store.close()

    # A second repair finds an index that nobody refuses, and leaves the hold.
    store, index = await open_backend(root, accepts_index=True)
    assert [hold] == (await repair(store, index)).holds
    assert before == sorted((*root.glob("chunks/*/*/*/*"), *root.glob("manifests/*/*/*/*")))
    assert [hold] == await end_holds(store, index)
    assert (await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()).freed.count
    await index.close()
    await store.close()


@pytest.mark.parametrize("text", ["no JSON", "[]", "", b"\xff", "[" * 100_000])
async def test_a_hold_that_cannot_be_read_is_a_hold(root: Path, text: object) -> None:
    """A damaged state does not free what may be the only copy."""
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        connection.execute("INSERT INTO tasks (namespace, task, state) VALUES ('default', 'hold', ?)", (text,))
        connection.commit()
    store, index = await open_backend(root)
    with pytest.raises(CollectionHeld, match="the reason is not known"):
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    assert 1 == len(await end_holds(store, index))
    await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    await index.close()
    await store.close()


async def test_a_server_logs_a_hold_once_per_pass(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It looks at the clock more often than that."""
    remove(root)
    store, index = await open_backend(root, accepts_index=True)
    await repair(store, index)
    plan = CollectionPlan(grace_seconds=0, rate=1_000_000)
    failed_at: dict[str, int] = {}
    moment = 1_000_000_000
    for later in (0, 1_000_000, 3_000_000):
        await _collect_what_is_due(store, index, plan, partial(int, moment + later), failed_at)
    assert 2 == caplog.text.count("the collection of the namespace default is held")
    assert await index.sizes(DEFAULT_NAMESPACE, [chunk_digest(content) for content in CHUNKS])
    await index.close()
    await store.close()


async def test_a_repair_of_a_healthy_index_holds_nothing(root: Path) -> None:
    """Content of a file that a user removed is collected as before."""
    async with connect(root) as repository:
        for record in await repository.records():
            await repository.remove(record.id)
    store, index = await open_backend(root, accepts_index=True)
    assert [] == (await repair(store, index)).holds
    await index.close()
    await store.close()


@pytest.mark.parametrize("text", [b"", b"\0" * 71, b"f" * 71, None])
async def test_a_file_that_a_power_cut_has_damaged_raises_no_alarm(root: Path, text: bytes | None) -> None:
    """It is not synced. What cannot be read says nothing, and the next start writes it again."""
    marker = root / "last-commit"
    before = marker.read_bytes()
    marker.unlink() if text is None else marker.write_bytes(text)
    async with connect(root, read_only=True) as repository:
        assert 2 == len(await repository.records())
    async with connect(root) as repository:
        assert 2 == len(await repository.records())
    assert before == marker.read_bytes()


async def test_a_commit_that_was_not_noted_raises_no_alarm(root: Path) -> None:
    """A process was killed after its commit, or two processes noted theirs in the wrong order."""
    kept = LastCommit(root / "last-commit").read()
    assert kept is not None
    assert 2 == kept.commits
    LastCommit(root / "last-commit").write(IndexVersion(kept.index_id, 1))
    async with connect(root) as repository:
        assert 2 == len(await repository.records())


async def test_a_push_that_was_killed_before_its_first_row_raises_no_alarm(tmp_path: Path) -> None:
    """Frames are there, and the index knows none of them (I2)."""
    async with connect(tmp_path / "root", create=True) as repository:
        await repository.put([encoded(b"content")])
    with closing(sqlite3.connect(tmp_path / "root/index.sqlite")) as connection:
        connection.execute("DELETE FROM chunks")
        connection.commit()
    async with connect(tmp_path / "root") as repository:
        digest = chunk_digest(b"content")
        assert [digest] == await repository.missing([digest])


async def test_a_repository_without_content_gets_another_index(tmp_path: Path) -> None:
    """Nothing is lost but tokens, and only `create` does it."""
    await create_repository(tmp_path / "root")
    (tmp_path / "root/index.sqlite").unlink()
    async with connect(tmp_path / "root", create=True) as repository:
        await push(repository, "first")
    async with connect(tmp_path / "root") as repository:
        assert 1 == len(await repository.records())
