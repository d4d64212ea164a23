"""A repository is moved from a folder to an object store and a database, while it is used, and whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from filestore.core.object_location import ObjectLocation
from filestore.errors import NotARepository, RepositoryMoved, StoreRefused
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.sqlite import SqliteIndex
from filestore.repository.index.tasks import MOVED
from filestore.repository.maintenance.migrate import MigrationCounts, MigrationSource, MigrationTarget, migrate
from filestore.repository.object_repository import open_target
from tests.support.ceph import Bucket, Gateway
from tests.support.commands import SCRIPTS, Home
from tests.support.frames import contents, encoded
from tests.support.migrations import differences, everything, fill, location_in, opened, push

pytestmark = pytest.mark.slow


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A folder with something of every kind."""
    root = tmp_path / "root"
    async with opened(root, create=True) as parts:
        await fill(parts)
    return root


@pytest.fixture
def place(bucket: Bucket, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectLocation:
    """An empty object store and an empty database."""
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return location_in(bucket, postgres_url)


async def moved(root: Path, place: ObjectLocation, *, dry_run: bool = False) -> MigrationCounts:
    """Move the repository in a folder."""
    async with opened(root) as parts:
        store, index = await open_target(place)
        try:
            assert isinstance(parts.index, SqliteIndex)
            assert isinstance(index, PostgresIndex)
            return await migrate(
                MigrationSource(store=parts.store, index=parts.index, location=str(root)),
                MigrationTarget(store=store, index=index, location=str(place)),
                dry_run=dry_run,
            )
        finally:
            await index.close()
            await store.close()


def arguments(root: Path, place: ObjectLocation) -> list[str | Path]:
    """The command."""
    return ["migrate", "--from", f"file://{root}", "--to", place.store]


async def test_everything_is_the_same_afterwards(root: Path, place: ObjectLocation) -> None:
    """All that any verb says, and all bytes. Then the folder takes nothing new, and can still be read."""
    counts = await moved(root, place)
    assert counts.lost_count == 0
    assert counts.copied_count > 0
    async with opened(root) as old, opened(place) as new:
        there = await everything(new)
        assert {} == differences(await everything(old), there)
        with pytest.raises(RepositoryMoved, match="has moved to s3://"):
            await push(old, "too late", contents(1, seed=5))
        await push(new, "in time", contents(1, seed=5))
        assert [] == await new.index.problems()
    with pytest.raises(NotARepository, match="there already"):
        await moved(root, place)


async def test_a_dry_run_says_what_would_be_copied(root: Path, place: ObjectLocation, bucket: Bucket) -> None:
    """It writes no object, and the folder goes on."""
    would = await moved(root, place, dry_run=True)
    assert [] == bucket.list_keys()
    async with opened(root) as parts:
        await push(parts, "plain name", contents(2, seed=90))
    done = await moved(root, place)
    assert (would.copied_count, would.copied_size) == (done.copied_count, done.copied_size)


async def test_what_is_pushed_meanwhile_is_there_in_the_end(root: Path, place: ObjectLocation) -> None:
    """Each push is either there, or was refused."""
    stored: list[str] = []

    async def push_on() -> None:
        async with opened(root) as parts:
            for number in range(100_000):
                try:
                    await push(parts, f"file {number}", contents(2, seed=1000 + number))
                except RepositoryMoved:
                    return
                stored.append(f"file {number}")

    pushing = asyncio.create_task(push_on())
    while len(stored) < 2:
        await asyncio.sleep(0.01)
    await moved(root, place)
    await pushing
    async with opened(root) as old, opened(place) as new:
        there = await everything(new)
        assert {} == differences(await everything(old), there)
        assert set(stored) <= {record.name for record in there["default", "listed"]}


async def test_what_is_removed_meanwhile_is_not_there_in_the_end(root: Path, place: ObjectLocation) -> None:
    """A migration was cut off after its first pass, and the folder has changed since."""
    async with opened(root) as parts:
        store, index = await open_target(place)
        source = MigrationSource(store=parts.store, index=parts.index, location=str(root))  # type: ignore[arg-type]
        migration = asyncio.ensure_future(
            migrate(source, MigrationTarget(store=store, index=index, location=str(place)), counts=(counts := MigrationCounts()))
        )
        while not counts.row_count:
            await asyncio.sleep(0.001)
        migration.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migration
        await index.close()
        await store.close()
        record = (await parts.index.records("default", limit=1))[0]
        async with parts.index.transaction("default") as transaction:
            await transaction.remove_record("default", record.id)
        # The same name, kind and digest, with another id.
        again = await push(parts, record.full_name, contents(4, size=3000, seed=0))
        async with parts.index.transaction("default") as transaction:
            await transaction.forget_chunks("default", [encoded(contents(4, size=3000, seed=1)[0]).digest])
            await transaction.remove_token((await parts.index.tokens())[0].digest)
    with pytest.raises(NotARepository, match="a migration to it has not ended"):
        async with opened(place):
            pass
    await moved(root, place)
    async with opened(root) as old, opened(place) as new:
        assert await old.index.records("default", limit=100) == await new.index.records("default", limit=100)
        assert await old.index.tokens() == await new.index.tokens()
        assert await old.index.usages() == await new.index.usages()
        assert again.id in {each.id for each in await new.index.records("default", limit=100)}


async def test_a_migration_that_ended_between_its_last_two_commits_goes_on(root: Path, place: ObjectLocation) -> None:
    """The folder says already that it has moved, and the target is not a repository yet. No other target is accepted."""
    async with opened(root) as parts:
        await parts.index.secret()
        async with parts.index.transaction() as transaction:
            await transaction.set_task_state("", MOVED, {"to": "s3://another"})
    with pytest.raises(RepositoryMoved, match="s3://another"):
        await moved(root, place)
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        connection.execute("UPDATE tasks SET state = ? WHERE task = ?", (json.dumps({"to": str(place)}), MOVED))
        connection.commit()
    await moved(root, place)
    async with opened(root) as old, opened(place) as new:
        assert {} == differences(await everything(old), await everything(new))


def test_clients_go_on_at_the_new_servers(place: ObjectLocation, tmp_path: Path) -> None:
    """A server of the folder runs all the time. With the same token, the new one has all; the old one only reads."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    engines = {**os.environ, "HOME": str(home.folder), "FILESTORE_STORE": place.store, "FILESTORE_INDEX": place.index}
    (tmp_path / "model.bin").write_bytes(bytes(range(251)) * 9000)
    with home.server(root=tmp_path / "root", complains=None) as old:
        token = {"FILESTORE_TOKEN": old.token}
        home.result("push", tmp_path / "model.bin", environ={**token, "FILESTORE_URL": old.url})
        told = home.result(*arguments(tmp_path / "root", place), environ=engines)
        assert (told["records"], told["lost"], told["damaged"]) == (1, 0, [])
        (tmp_path / "more.bin").write_bytes(bytes(90_000))
        failure = home.failure("push", tmp_path / "more.bin", environ={**token, "FILESTORE_URL": old.url})
        assert "the repository has moved to another place" in failure
        home.result("fetch", "model.bin", "--output", tmp_path / "old.bin", environ={**token, "FILESTORE_URL": old.url})
        with home.server(root=tmp_path / "scratch", environ=engines, complains=None) as new:
            home.result("fetch", "model.bin", "--output", tmp_path / "new.bin", environ={**token, "FILESTORE_URL": new.url})
            home.result("push", tmp_path / "more.bin", environ={**token, "FILESTORE_URL": new.url})
    for name in ("old.bin", "new.bin"):
        assert (tmp_path / "model.bin").read_bytes() == (tmp_path / name).read_bytes()


async def test_a_migration_is_killed_at_any_moment_and_goes_on(root: Path, place: ObjectLocation, tmp_path: Path) -> None:
    """SIGKILL at moments of a fixed seed, and then once more to the end. Nothing is lost, and little is copied twice."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    environ = home.environ | {**os.environ, "FILESTORE_INDEX": place.index}
    rng = random.Random(2026)
    for _ in range(4):
        process = subprocess.Popen(
            [SCRIPTS / "filestore", *arguments(root, place)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            process.wait(timeout=rng.uniform(0.5, 3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    done = home.run(*arguments(root, place), environ=environ)
    assert done.returncode == 0 or "there already" in done.stderr, done.stderr
    async with opened(root) as old, opened(place) as new:
        assert {} == differences(await everything(old), await everything(new))


async def test_a_damaged_frame_is_named_and_all_else_is_there(root: Path, place: ObjectLocation, tmp_path: Path) -> None:
    """Exit status 1, with the files. The target has no row for the frame, so a push sends it again."""
    chunks = contents(2, seed=4321)
    async with opened(root) as parts:
        await push(parts, "hurt.bin", chunks)
    (path,) = root.glob(f"chunks/*/*/*/{encoded(chunks[0]).digest}")
    path.chmod(0o600)
    path.write_bytes(bytes(len(path.read_bytes())))
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    done = home.run(*arguments(root, place), environ={**os.environ, "FILESTORE_INDEX": place.index, "HOME": str(home.folder)})
    assert 1 == done.returncode
    assert "hurt.bin" in done.stdout
    assert "1 chunk is missing" in done.stdout
    assert "all else was copied" in done.stderr
    async with opened(place) as new:
        missing = await new.index.missing("default", [encoded(chunk).digest for chunk in chunks])
        assert [encoded(chunks[0]).digest] == missing
        await push(new, "hurt.bin", chunks)
        await everything(new)


async def test_the_target_of_another_repository_is_refused(root: Path, place: ObjectLocation, tmp_path: Path) -> None:
    """Whether it is whole, or only begun."""
    async with opened(place, create=True) as parts:
        await push(parts, "mine", contents(1))
    with pytest.raises(NotARepository, match="it has the repository"):
        await moved(root, place)
    async with opened(root) as parts:
        await push(parts, "still written to", contents(1))


async def test_a_missing_permission_is_one_sentence(
    root: Path, place: ObjectLocation, bucket: Bucket, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes on, and the migration does when the permission is there."""
    reader = gateway.permit(bucket, gateway.new_user(), "s3:ListBucket", "s3:GetObject")
    with monkeypatch.context() as patched:
        for name, value in reader.environ.items():
            patched.setenv(name, value)
        with pytest.raises(StoreRefused, match="check the credentials"):
            await moved(root, place)
    async with opened(root) as parts:
        await push(parts, "still written to", contents(1))
    await moved(root, place)
