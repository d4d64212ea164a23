"""What is recorded: small amounts of work by the product's own code.

Each scenario works in a folder: `disk` is recorded, and what a power cut leaves of it is checked. `beside` is not
recorded; what is there survives.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect, open_backend
from filestore.cache.cache import Cache
from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key
from filestore.core.records import Record
from filestore.core.references import Directory, File
from filestore.repository.maintenance.backup import back_up
from filestore.repository.maintenance.check import ReadPlan
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.repair import RepositoryDonor, repair
from filestore.repository.maintenance.restore import restore
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from tests.replay.promises import digest_of, digest_of_path, mark, mark_stored
from tests.support.frames import contents, encoded, manifest
from tests.support.generator import prose

DISK = "disk"
BESIDE = "beside"
CHUNK_SIZE = 3000
FIRST, SECOND, THIRD, SHARED = contents(4, size=CHUNK_SIZE)
TEXT = prose(1, 9000)
TREE = {"large.bin": contents(1, size=5000, seed=2)[0], "folder/packed.txt": TEXT, "folder/empty": b""}
OLD_TREE = {"large.bin": b"old", "gone.txt": b"of an older version"}


class Scenario(NamedTuple):
    """Work that is recorded. `prepare` makes what is there before."""

    prepare: Callable[[Path], Awaitable[None]]
    run: Callable[[Path], Awaitable[None]]


async def put(repository: Repository, name: str, *chunks: bytes) -> Record:
    """Send chunks, commit a file of them, and mark it as stored."""
    await repository.put([encoded(chunk) for chunk in chunks])
    record = await repository.commit(manifest(chunks).encoded, name=name)
    mark_stored(record, b"".join(chunks))
    return record


async def remove(repository: Repository, record: Record, *, with_chunks: bool) -> None:
    """Remove a record, and mark it as removed."""
    mark("removing", id=record.id)
    await repository.remove(record.id, with_chunks=with_chunks)
    mark("removed", id=record.id)


async def mark_all(repository: Repository) -> None:
    """Mark everything that a repository holds from the beginning."""
    async for record in repository.iter_records():
        mark_stored(record, KNOWN[record.name])


KNOWN = {"first": FIRST + SHARED, "second": SECOND + SHARED, "third": THIRD}
"""The content of the files that scenarios prepare."""


async def _make_nothing(folder: Path) -> None:
    (folder / DISK).mkdir()


async def _make_first(folder: Path) -> None:
    async with connect(folder / DISK, create=True, min_free=0) as repository:
        await put(repository, "first", FIRST, SHARED)


async def _make_several(folder: Path) -> None:
    """Make a repository with two files that are kept, one that was removed, and a push that was abandoned."""
    async with connect(folder / DISK, create=True, min_free=0) as repository:
        await put(repository, "first", FIRST, SHARED)
        await put(repository, "second", SECOND, SHARED)
        record = await put(repository, "removed", *contents(1, size=CHUNK_SIZE, seed=3), SHARED)
        await repository.put([encoded(content) for content in contents(1, size=CHUNK_SIZE, seed=4)])
        await repository.remove(record.id)


async def _make_and_push(folder: Path) -> None:
    mark("opening", is_made=False, is_clean=True)
    async with connect(folder / DISK, create=True, min_free=0) as repository:
        mark("made")
        await put(repository, "first", FIRST)


async def _push(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=True)
    async with connect(folder / DISK, min_free=0) as repository:
        await mark_all(repository)
        await put(repository, "second", SECOND, SHARED, TEXT[:4000])
        await asyncio.gather(put(repository, "third", THIRD), put(repository, "first", SECOND, THIRD))
        # The same content again: nothing is sent, and the record is acknowledged again.
        await put(repository, "third", THIRD)
    async with connect(folder / DISK, min_free=0) as repository:
        source = folder / BESIDE / "model"
        source.mkdir(parents=True)
        (source / "weights.bin").write_bytes(FIRST)
        (source / "README").write_bytes(TEXT)
        await push(repository, source)
        result = await push(repository, source / "README")
        mark_stored(result.record, TEXT)


async def _remove(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=True)
    async with connect(folder / DISK, min_free=0) as repository:
        await mark_all(repository)
        first, second = await repository.record("first"), await repository.record("second")
        await remove(repository, second, with_chunks=True)
        await put(repository, "second", SECOND, SHARED)
        await remove(repository, first, with_chunks=False)


async def _collect(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=True)
    store, index = await open_backend(folder / DISK, min_free=0)
    async with connect(folder / DISK, min_free=0) as repository:
        await mark_all(repository)
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
        await put(repository, "third", THIRD, *contents(1, size=CHUNK_SIZE, seed=3))
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    await index.close()
    await store.close()


async def _make_damaged(folder: Path) -> None:
    """Make a repository that has lost a frame, has a short one, and lacks the row of a third one."""
    await _make_several(folder)
    root = folder / DISK
    async with connect(root, min_free=0) as repository:
        await put(repository, "third", THIRD)
    shutil.copytree(root, folder / BESIDE)
    (root / chunk_key(DEFAULT_NAMESPACE, chunk_digest(SECOND))).unlink()
    third = root / chunk_key(DEFAULT_NAMESPACE, chunk_digest(THIRD))
    third.write_bytes(third.read_bytes()[:100])
    with closing(sqlite3.connect(root / "index.sqlite")) as connection, connection:
        connection.execute("DELETE FROM chunks WHERE digest = ?", (chunk_digest(FIRST),))


async def _repair(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=False)
    store, index = await open_backend(folder / DISK, min_free=0)
    async with connect(folder / BESIDE, read_only=True) as donor:
        await repair(store, index, donors=[RepositoryDonor(donor)], read=ReadPlan())
    mark("clean")
    async with connect(folder / DISK, min_free=0) as repository:
        await mark_all(repository)
    await index.close()
    await store.close()


_DOWNGRADE = """
    DROP TABLE commits; DROP TABLE labels; DROP TABLE owners; DROP TABLE content_digests; DROP TABLE tree_digests;
    DROP TABLE access_tokens; DROP TABLE usage; DROP TABLE quotas;
    ALTER TABLE records DROP COLUMN manifest_size;
    DROP INDEX records_by_position; DROP INDEX records_by_time; DROP INDEX records_by_name; DROP INDEX records_by_digest;
    ALTER TABLE records DROP COLUMN position;
    ALTER TABLE chunks DROP COLUMN frame_digest;
    CREATE UNIQUE INDEX records_by_time ON records (namespace, updated_at);
    CREATE INDEX records_by_name ON records (namespace, name, updated_at);
    CREATE INDEX records_by_digest ON records (namespace, digest, updated_at);
    DROP TABLE bases; DROP TABLE tasks; DROP TABLE policies; DROP TABLE meta; DROP TABLE uses;
    PRAGMA user_version = 2;
"""
"""Makes the tables of version 2, as migrations expect them."""


async def _make_older(folder: Path) -> None:
    await _make_several(folder)
    with closing(sqlite3.connect(folder / DISK / "index.sqlite")) as connection, connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.executescript(_DOWNGRADE)
    (folder / DISK / "last-commit").unlink()


async def _migrate(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=True)
    async with connect(folder / DISK, read_only=True) as repository:
        await mark_all(repository)
    async with connect(folder / DISK, min_free=0) as repository:
        await put(repository, "third", THIRD)


async def _make_fetched(folder: Path) -> None:
    """Make a repository beside the disk with a file and two trees, and a folder with older content to fetch to."""
    for name, tree in ("tree", TREE), ("old", OLD_TREE):
        for path, content in tree.items():
            target = folder / BESIDE / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    async with connect(folder / BESIDE / "repository", create=True, min_free=0) as repository:
        await put(repository, "file", FIRST, SECOND, TEXT)
        await push(repository, folder / BESIDE / "tree")
    (folder / DISK).mkdir()
    (folder / DISK / "replaced").write_bytes(THIRD + SECOND)
    shutil.copytree(folder / BESIDE / "old", folder / DISK / "forced")


FETCHES = {"new": "file", "replaced": "file", "unpacked": "tree.zip", "forced": "tree.zip"}
"""What is fetched to each path."""


async def fetch_to(repository: Repository, root: Path, path: str) -> None:
    """Fetch what belongs to a path of the disk, over what is there."""
    if FETCHES[path] == "file":
        await fetch(repository, "file", target=root / path, force=True)
    else:
        await fetch_tree(repository, FETCHES[path], target=root / path, force=True)


async def _fetch(folder: Path) -> None:
    tree = digest_of_path(folder / BESIDE / "tree")
    for path in ("replaced", "forced"):
        mark("fetched", path=path, content=digest_of_path(folder / DISK / path))
    async with connect(folder / BESIDE / "repository", read_only=True) as repository:
        for path, name in FETCHES.items():
            content = digest_of(FIRST + SECOND + TEXT) if name == "file" else tree
            mark("fetching", path=path, content=content)
            if path == "forced":
                mark("replacing-tree", path=path)
            await fetch_to(repository, folder / DISK, path)
            mark("fetched", path=path, content=content)


async def _make_cached(folder: Path) -> None:
    await _make_fetched(folder)
    shutil.rmtree(folder / DISK)
    (folder / DISK).mkdir()


async def resolve_all(repository: Repository, root: Path) -> list[Path]:
    """Resolve the file and the tree by a cache. Return their paths."""
    file, tree = await repository.record("file"), await repository.record("tree.zip")
    async with Cache(root / "cache", repository) as cache:
        return [await cache.resolve(File(id=file.id)), await cache.resolve(Directory(id=tree.id))]


async def _resolve(folder: Path) -> None:
    async with connect(folder / BESIDE / "repository", read_only=True) as repository:
        for path in await resolve_all(repository, folder / DISK):
            mark("cached", path=path.relative_to(folder / DISK).as_posix(), content=digest_of_path(path))
        await resolve_all(repository, folder / DISK)


def cached_contents(beside: Path) -> list[str | None]:
    """Return the digests of the file and the tree."""
    return [digest_of(FIRST + SECOND + TEXT), digest_of_path(beside / "tree")]


async def _make_source(folder: Path) -> None:
    """Make a repository beside the disk, and an empty disk."""
    async with connect(folder / BESIDE, create=True, min_free=0) as repository:
        await put(repository, "first", FIRST, SHARED)
        await put(repository, "second", SECOND, SHARED)
    (folder / DISK).mkdir()


async def _back_up(folder: Path) -> None:
    async with connect(folder / BESIDE, min_free=0) as repository:
        await back_up(folder / BESIDE, folder / DISK / "backups", full=True)
        await mark_all(repository)
        mark("backed-up")
        record = await repository.commit(manifest([FIRST, SECOND]).encoded, name="third")
        await back_up(folder / BESIDE, folder / DISK / "backups", full=True, kept=1)
        mark_stored(record, FIRST + SECOND)


async def _make_backup(folder: Path) -> None:
    """Make a repository on the disk, a backup beside it, and changes since."""
    async with connect(folder / DISK, create=True, min_free=0) as repository:
        await put(repository, "first", FIRST, SHARED)
        await back_up(folder / DISK, folder / BESIDE, full=True)
        await put(repository, "second", SECOND, SHARED)


async def _restore(folder: Path) -> None:
    mark("opening", is_made=True, is_clean=True)
    async with connect(folder / DISK, read_only=True) as repository:
        first, second = await repository.record("first"), await repository.record("second")
    mark_stored(first, KNOWN["first"])
    await restore(folder / BESIDE, folder / DISK)
    mark("removed", id=second.id)
    async with connect(folder / DISK, min_free=0) as repository:
        await put(repository, "third", THIRD)


async def _lose_index(folder: Path) -> None:
    await _make_several(folder)
    (folder / DISK / "index.sqlite").unlink()


async def repair_index(root: Path) -> None:
    """Accept an index that is lost or too old, and make its rows from the frames."""
    store, index = await open_backend(root, accepts_index=True, min_free=0)
    await repair(store, index)
    await index.close()
    await store.close()


async def _repair_index(folder: Path) -> None:
    mark("opening", is_made=False, is_clean=True)
    await repair_index(folder / DISK)
    mark("made")
    async with connect(folder / DISK, min_free=0) as repository:
        await put(repository, "third", THIRD)


SCENARIOS = {
    "make": Scenario(_make_nothing, _make_and_push),
    "push": Scenario(_make_first, _push),
    "remove": Scenario(_make_several, _remove),
    "collect": Scenario(_make_several, _collect),
    "repair": Scenario(_make_damaged, _repair),
    "lost-index": Scenario(_lose_index, _repair_index),
    "migrate": Scenario(_make_older, _migrate),
    "fetch": Scenario(_make_fetched, _fetch),
    "cache": Scenario(_make_cached, _resolve),
    "backup": Scenario(_make_source, _back_up),
    "restore": Scenario(_make_backup, _restore),
}
