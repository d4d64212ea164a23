"""A repository in an object store and PostgreSQL is backed up to a folder, and restored from one, whatever happens."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestore.core.object_location import ObjectLocation
from filestore.errors import NotABackup, StorageFull
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.tasks import MOVED
from filestore.repository.maintenance.backup import Backup, back_up, back_up_objects, backups_in
from filestore.repository.maintenance.migrate import MigrationTarget
from filestore.repository.maintenance.restore import restore
from filestore.repository.maintenance.restore_objects import RestoredObjects, restore_objects
from filestore.repository.object_repository import open_target
from filestore.system.files import free_space
from tests.support.ceph import Bucket, Gateway
from tests.support.commands import SCRIPTS, Home
from tests.support.disks import small_disk
from tests.support.frames import contents, encoded
from tests.support.migrations import PREFIX, Opened, differences, everything, fill, location_in, opened, push

pytestmark = pytest.mark.slow


@pytest.fixture
def place(bucket: Bucket, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectLocation:
    """An empty object store and an empty database."""
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return location_in(bucket, postgres_url)


@pytest.fixture
async def filled(place: ObjectLocation) -> ObjectLocation:
    """A repository with something of every kind."""
    async with opened(place, create=True) as parts:
        await fill(parts)
    return place


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    return home


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 1 MiB, with a function that changes its size."""
    with small_disk(tmp_path / "small", "size=1m") as change:
        yield tmp_path / "small", change


async def backed_up(parts: Opened, target: Path, *, full: bool = True, kept: int = 7) -> Backup:
    """Back up a repository that is open."""
    assert isinstance(parts.index, PostgresIndex)
    return await back_up_objects(parts.store, parts.index, target, location="here", full=full, kept=kept)


def environ_of(place: ObjectLocation, home: Home) -> dict[str, str]:
    """The environment of a command on the repository itself."""
    return {**os.environ, **home.environ, "FILESTORE_STORE": place.store, "FILESTORE_INDEX": place.index}


async def test_everything_is_in_the_backup(filled: ObjectLocation, tmp_path: Path) -> None:
    """All that any verb says, and all bytes. What is restored from it to a folder is the same repository."""
    async with opened(filled) as old:
        made = await backed_up(old, tmp_path / "backup")
        assert ([], True) == (made.damaged, made.has_content)
        restored = await restore(tmp_path / "backup", tmp_path / "root")
        assert [] == restored.damaged
        async with opened(tmp_path / "root") as new:
            assert {} == differences(await everything(old), await everything(new))
            assert [] == await new.index.problems()
            await push(new, "goes on", contents(1, seed=5))


async def test_a_backup_copies_only_what_the_target_lacks(filled: ObjectLocation, tmp_path: Path) -> None:
    """What no backup needs any more is removed from the target."""
    async with opened(filled) as parts:
        first = await backed_up(parts, tmp_path / "backup", kept=1)
        again = await backed_up(parts, tmp_path / "backup", kept=1)
        record = await push(parts, "more", contents(2, seed=555))
        more = await backed_up(parts, tmp_path / "backup", kept=1)
        assert (0, 3) == (again.counts.copied_count, more.counts.copied_count)
        assert first.counts.copied_count > first.counts.chunk_count
        async with parts.index.transaction("default") as transaction:
            await transaction.remove_record("default", record.id)
            await transaction.forget_chunks("default", [encoded(chunk).digest for chunk in contents(2, seed=555)])
        await backed_up(parts, tmp_path / "backup", kept=1)
        assert [] == [path for chunk in contents(2, seed=555) for path in frames_of(chunk, tmp_path / "backup")]


def frames_of(chunk: bytes, target: Path) -> list[Path]:
    """The files that a target has of a chunk."""
    return list(target.glob(f"chunks/*/*/*/{encoded(chunk).digest}"))


async def test_the_copy_of_the_index_is_synced_once(
    filled: ObjectLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything else, before the backup gets its name. Until then, records may be removed from it."""
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    async with opened(filled) as old:
        await backed_up(old, tmp_path / "backup")
    assert 1 == synced.count("index.sqlite")


async def test_names_alone(filled: ObjectLocation, tmp_path: Path) -> None:
    """Without content, a backup has all rows."""
    async with opened(filled) as parts:
        made = await backed_up(parts, tmp_path / "backup", full=False)
        count = sum([await parts.index.record_count(name) for name in await parts.index.namespaces()])
    assert (count, 0, False) == (made.counts.record_count, made.counts.copied_count, made.has_content)


async def test_it_is_one_moment_during_pushes_and_removals(filled: ObjectLocation, tmp_path: Path) -> None:
    """Each backup restores to a repository in which every file reads back."""
    is_over = asyncio.Event()

    async def use() -> None:
        async with opened(filled) as parts:
            number = 0
            while not is_over.is_set():
                record = await push(parts, f"file {number}", contents(2, seed=1000 + number))
                if number % 2:
                    async with parts.index.transaction("default") as transaction:
                        await transaction.remove_record("default", record.id)
                number += 1

    using = asyncio.create_task(use())
    async with opened(filled) as parts:
        for _ in range(3):
            assert [] == (await backed_up(parts, tmp_path / "backup")).damaged
    is_over.set()
    await using
    for number, backup in enumerate(backups_in(tmp_path / "backup")):
        restored = await restore(backup, tmp_path / f"root{number}")
        assert [] == restored.damaged
        async with opened(tmp_path / f"root{number}") as new:
            await everything(new)
            assert [] == await new.index.problems()


async def test_damage_is_named_and_an_earlier_copy_is_used(filled: ObjectLocation, bucket: Bucket, tmp_path: Path) -> None:
    """What the target has stays. Of what it has not, the files are named, and all else is copied."""
    chunks = contents(2, seed=4321)

    def hurt(chunk: bytes) -> None:
        digest = str(encoded(chunk).digest)
        (key,) = bucket.list_keys(f"{PREFIX}/frames/default/{digest[:2]}/{digest}")
        bucket.put(key, bytes(len(bucket.read(key))))

    async with opened(filled) as parts:
        await push(parts, "kept.bin", contents(1, seed=9))
        assert [] == (await backed_up(parts, tmp_path / "backup")).damaged
        await push(parts, "hurt.bin", chunks)
        hurt(contents(1, seed=9)[0])
        hurt(chunks[0])
        made = await backed_up(parts, tmp_path / "backup")
        assert [("hurt.bin", 1)] == [(each.record.name, each.missing_count) for each in made.damaged]
        await push(parts, "hurt.bin", chunks)
    restored = await restore(tmp_path / "backup", tmp_path / "root")
    assert ["hurt.bin"] == [each.record.name for each in restored.damaged]


async def test_wrong_targets_are_refused(filled: ObjectLocation, tmp_path: Path) -> None:
    """A folder with other things, and one with backups of another repository. Nothing is written there."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.jpg").write_bytes(b"1")
    async with opened(tmp_path / "root", create=True) as another:
        await push(another, "mine", contents(1))
    await back_up(tmp_path / "root", tmp_path / "foreign", full=True)
    async with opened(filled) as parts:
        for name, reason in (("other", "holds other things"), ("foreign", "backups of another repository")):
            with pytest.raises(NotABackup, match=reason):
                await backed_up(parts, tmp_path / name)
    assert ["photo.jpg"] == [path.name for path in (tmp_path / "other").iterdir()]
    assert 1 == len(backups_in(tmp_path / "foreign"))


@pytest.mark.parametrize("full", [False, True], ids=["names", "full"])
async def test_the_disk_of_the_target_is_full(
    filled: ObjectLocation, small: tuple[Path, Callable[[str], None]], *, full: bool
) -> None:
    """The error names the target, and the earlier backup stays. With more space, the same command completes."""
    folder, change = small
    target = folder / "backup"
    async with opened(filled) as parts:
        earlier = await backed_up(parts, target, full=False)
        await push(parts, "large", contents(1, size=300_000))
        (folder / "other").write_bytes(bytes(max(0, free_space(folder) - (20_000 if not full else 400_000))))
        with pytest.raises(StorageFull, match=str(folder)):
            await backed_up(parts, target, full=full)
        assert [earlier.path] == backups_in(target)
        assert 1 == len(list((target / "backups").iterdir()))
        change("size=16m")
        assert [] == (await backed_up(parts, target, full=full)).damaged


async def test_a_missing_permission_is_an_error_and_no_damage(
    filled: ObjectLocation, bucket: Bucket, gateway: Gateway, home: Home, tmp_path: Path
) -> None:
    """Otherwise a backup without content would take the place of a good one. Who may only read can make a backup."""
    async with opened(filled) as parts:
        await backed_up(parts, tmp_path / "backup")
        await push(parts, "more", contents(2, seed=555))
    strange = gateway.permit(bucket, gateway.new_user(), "s3:ListBucket")
    command = ("backup", tmp_path / "backup", "--full")
    said = home.failure(*command, environ={**environ_of(filled, home), **strange.environ})
    assert "check the credentials" in said
    assert 1 == len(backups_in(tmp_path / "backup"))
    before = bucket.list_keys()
    reader = gateway.permit(bucket, gateway.new_user(), "s3:ListBucket", "s3:GetObject")
    assert 11 == home.result(*command, environ={**environ_of(filled, home), **reader.environ})["records"]
    assert before == bucket.list_keys()


async def test_it_is_killed_at_any_moment_and_goes_on(filled: ObjectLocation, home: Home, tmp_path: Path) -> None:
    """SIGKILL at moments of a fixed seed, and then once more to the end. What was copied is not copied again."""
    environ = environ_of(filled, home)
    command: list[str | Path] = [SCRIPTS / "filestore", "backup", tmp_path / "backup", "--full", "--json"]
    rng = random.Random(2026)
    for _ in range(4):
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=rng.uniform(0.5, 3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    told = home.result("backup", tmp_path / "backup", "--full", environ=environ)
    assert ([], str(filled)) == (told["damaged"], told["root"])
    for path in (tmp_path / "backup/backups").iterdir():
        assert (path / "backup.json").is_file(), "what was cut off is gone"
    await restore(tmp_path / "backup", tmp_path / "root")
    async with opened(filled) as old, opened(tmp_path / "root") as new:
        assert {} == differences(await everything(old), await everything(new))
    shutil.rmtree(tmp_path / "root")


# Restore.


async def restored_to(place: ObjectLocation, backup: Path) -> RestoredObjects:
    """Restore a backup to an object store."""
    store, index = await open_target(place)
    try:
        assert isinstance(index, PostgresIndex)
        return await restore_objects(backup, MigrationTarget(store=store, index=index, location=str(place)))
    finally:
        await index.close()
        await store.close()


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """A backup of a folder with something of every kind, which is there too."""
    async with opened(tmp_path / "root", create=True) as parts:
        await fill(parts)
    await back_up(tmp_path / "root", tmp_path / "backup", full=True)
    return tmp_path / "backup"


async def test_a_backup_becomes_a_repository_in_an_object_store(backup: Path, place: ObjectLocation, tmp_path: Path) -> None:
    """With its id, so that clients go on. A backup of it is one of the same repository, and needs no content again."""
    restored = await restored_to(place, backup)
    assert ([], True) == (restored.counts.damaged, restored.has_content)
    async with opened(tmp_path / "root") as old, opened(place) as new:
        there = await everything(new)
        assert {} == differences(await everything(old), there)
        assert [] == await new.index.problems()
        assert restored.chunk_count == sum(usage.chunk_count for usage in there["", "usages"])
        await push(new, "goes on", contents(1, seed=5))
        assert 2 == (await backed_up(new, backup)).counts.copied_count
    assert 2 == len(backups_in(backup))


async def test_a_restore_has_no_tasks_of_the_backup(backup: Path, place: ObjectLocation, tmp_path: Path) -> None:
    """A folder that has moved since may be restored from a backup that says so."""
    async with opened(tmp_path / "root") as parts, parts.index.transaction() as transaction:
        await transaction.set_task_state("", MOVED, {"to": "s3://elsewhere"})
    await back_up(tmp_path / "root", backup, full=True)
    await restored_to(place, backup)
    async with opened(place) as new:
        await push(new, "goes on", contents(1, seed=5))


async def test_what_the_backup_lacks_is_named(backup: Path, place: ObjectLocation, home: Home, tmp_path: Path) -> None:
    """A damaged frame, and one that is gone. A push of the file sends them."""
    chunks = contents(2, seed=4321)
    async with opened(tmp_path / "root") as parts:
        await push(parts, "hurt.bin", chunks)
    await back_up(tmp_path / "root", backup, full=True)
    (flipped,), (gone,) = (frames_of(chunk, backup) for chunk in chunks)
    flipped.chmod(0o600)
    flipped.write_bytes(bytes(flipped.stat().st_size))
    gone.unlink()
    done = home.run("restore", backup, environ=environ_of(place, home))
    assert (1, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert "hurt.bin" in done.stdout
    assert "2 chunks are missing" in done.stdout
    assert "push these files again" in done.stderr
    async with opened(place) as new:
        await push(new, "hurt.bin", chunks)
        await everything(new)


async def test_what_was_lost_before_the_backup_is_named(place: ObjectLocation, tmp_path: Path) -> None:
    """Such a backup has no rows of the chunks that it lacks."""
    chunks = contents(2, seed=4321)
    async with opened(tmp_path / "root", create=True) as parts:
        await push(parts, "hurt.bin", chunks)
        await push(parts, "whole.bin", contents(1, seed=5))
    (gone,) = frames_of(chunks[0], tmp_path / "root")
    gone.unlink()
    made = await back_up(tmp_path / "root", tmp_path / "backup", full=True)
    assert [("hurt.bin", 1)] == [(each.record.name, each.missing_count) for each in made.damaged]
    restored = await restored_to(place, tmp_path / "backup")
    assert [("hurt.bin", 1)] == [(each.record.name, each.missing_count) for each in restored.counts.damaged]


async def test_a_backup_of_names_alone(backup: Path, place: ObjectLocation, home: Home, tmp_path: Path) -> None:
    """It is restored, and no file is whole."""
    await back_up(tmp_path / "root", tmp_path / "names")
    done = home.run("restore", tmp_path / "names", environ=environ_of(place, home))
    assert 1 == done.returncode
    assert "which was made without --full; push these files again" in done.stderr
    async with opened(place) as new:
        assert [] == await new.index.problems()


async def test_places_that_have_something_are_refused(backup: Path, place: ObjectLocation, home: Home) -> None:
    """Of another repository, of this one, and a database beside content. In one sentence, and nothing is changed."""
    async with opened(place, create=True) as parts:
        await push(parts, "mine", contents(1))
        before = await everything(parts)
    said = home.failure("restore", backup, environ=environ_of(place, home))
    assert "it has the repository" in said
    assert "give an empty database and a new bucket or prefix" in said
    async with opened(place) as parts:
        assert {} == differences(before, await everything(parts))


async def test_a_restored_repository_is_not_restored_again(backup: Path, place: ObjectLocation, home: Home) -> None:
    """Servers may have written to it since."""
    environ = environ_of(place, home)
    told = home.result("restore", backup, environ=environ)
    assert (str(place), []) == (told["root"], told["damaged"])
    assert "the repository is there already" in home.failure("restore", backup, environ=environ)
    assert "has neither" in home.failure("restore", home.folder, environ=environ)


async def test_a_restore_is_killed_at_any_moment_and_goes_on(
    backup: Path, place: ObjectLocation, home: Home, tmp_path: Path
) -> None:
    """SIGKILL at moments of a fixed seed, and then once more to the end. Until then, nobody can open the place."""
    environ = environ_of(place, home)
    command: list[str | Path] = [SCRIPTS / "filestore", "restore", backup, "--json"]
    rng = random.Random(2027)
    for _ in range(4):
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=rng.uniform(0.5, 2.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    done = home.run("restore", backup, environ=environ)
    assert done.returncode == 0 or "there already" in done.stderr, done.stderr
    async with opened(tmp_path / "root") as old, opened(place) as new:
        assert {} == differences(await everything(old), await everything(new))


async def test_a_restore_that_was_cut_off_is_not_opened(backup: Path, postgres_url: str, gateway: Gateway, home: Home) -> None:
    """Here, because the store is full for a time. The same restore goes on."""
    bucket = gateway.new_bucket(gateway.new_user())
    gateway.limit(bucket.credentials, max_objects=10)
    environ = {**environ_of(location_in(bucket, postgres_url), home), **bucket.environ}
    assert "is full" in home.failure("restore", backup, environ=environ)
    assert "has not ended, or a restore; do the same again until it ends" in home.failure("ls", environ=environ)
    gateway.limit(bucket.credentials, max_objects=10_000)
    assert [] == home.result("restore", backup, environ=environ)["damaged"]
    gateway.remove_bucket(bucket)
