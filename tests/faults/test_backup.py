"""Backups are made while a repository is used, and restored after its index, or all of it, was lost."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import token_digest
from filestore.core.manifest import Manifest
from filestore.core.scopes import Scope
from filestore.errors import (
    Busy,
    CollectionHeld,
    IndexDamaged,
    InvalidInput,
    NotABackup,
    NotARepository,
    StorageFull,
)
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance import backup as backups
from filestore.repository.maintenance import content
from filestore.repository.maintenance import restore as restores
from filestore.repository.maintenance.backup import back_up, backups_in
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.restore import restore
from filestore.repository.protocol import Repository
from filestore.runtime.database import open_database
from filestore.system.files import free_space, remove_if_possible, sync_path
from filestore.system.locks import FileLock
from filestore.system.sqlite_copy import copy_database
from tests.support.commands import Home, start_module
from tests.support.disks import small_disk
from tests.support.frames import contents, encoded, manifest
from tests.support.server import running_server

CHUNKS = contents(3, size=5000)
INDEX_FILES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm")


async def push(repository: Repository, name: str, chunks: list[bytes]) -> str:
    """Push a file of these chunks; return its id."""
    await repository.put([encoded(chunk) for chunk in chunks])
    return (await repository.commit(manifest(chunks).encoded, name=name)).id


async def read(repository: Repository, name: str) -> list[bytes]:
    """Return the frames of a file, none of them damaged."""
    record = await repository.record(name)
    chunks = Manifest.parse(await repository.manifest(record.digest)).chunks
    digests = [chunk.digest for chunk in chunks]
    assert [] == await repository.missing(digests)
    assert [] == await repository.verify_chunks(digests)
    frames = await repository.get(digests, memoryview(bytearray(sum(chunk.size + 8 for chunk in chunks))))
    return [bytes(frame) for frame in frames if frame is not None]


def frame_of(chunk: bytes, root: Path) -> Path:
    """Return the path of the frame of a chunk."""
    (path,) = root.glob(f"chunks/*/*/*/{encoded(chunk).digest}")
    return path


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A repository with the files `first` and `second`, which share a chunk."""
    async with connect(tmp_path / "root", create=True) as repository:
        await push(repository, "first", CHUNKS[:2])
        await push(repository, "second", CHUNKS[1:])
    return tmp_path / "root"


async def test_a_full_backup_becomes_a_new_repository(root: Path, tmp_path: Path) -> None:
    """Records, tokens and the secret are the same, every byte reads back, and pushes go on."""
    made = await back_up(root, tmp_path / "backup", full=True)
    assert (2, 3, []) == (made.counts.record_count, made.counts.chunk_count, made.damaged)
    restored = await restore(tmp_path / "backup", tmp_path / "new")
    assert (2, []) == (restored.counts.record_count, restored.damaged)
    async with connect(root) as old, connect(tmp_path / "new") as new:
        assert await old.records() == await new.records()
        assert await old.identity() == await new.identity()
        for name in ("first", "second"):
            assert await read(old, name) == await read(new, name)
        # The signature is of the same secret.
        path = await old.sign((await old.record("first")).id)
        assert path.split("/")[:2] == (await new.sign((await new.record("first")).id)).split("/")[:2]
        await push(new, "third", CHUNKS)
    assert not (tmp_path / "new/restoring").exists()


async def test_tokens_come_back_with_their_limits(root: Path, tmp_path: Path) -> None:
    """A restored token permits what it permitted at the backup, until the same time."""
    store, index = await open_backend(root)
    async with index.transaction() as transaction:
        limited = token_digest("limited")
        await transaction.add_token(
            limited, namespace="default", label="web", scope=Scope.READ, prefix="logs-", expires_at=1 << 52
        )
        await transaction.add_token(token_digest("whole"), namespace="default", label="")
    await index.note_token_uses([limited])
    before = await index.tokens()
    await index.close()
    await store.close()
    await back_up(root, tmp_path / "backup", full=True)
    await restore(tmp_path / "backup", tmp_path / "new")
    store, index = await open_backend(tmp_path / "new")
    assert before == await index.tokens()
    assert {Scope.READ, Scope.ADMIN} == {row.scope for row in before}
    await index.close()
    await store.close()


async def test_names_are_restored_over_a_store(root: Path, tmp_path: Path) -> None:
    """The folder has lost its index. Afterwards everything is whole, and what was left of the index was renamed."""
    await back_up(root, tmp_path / "backup")
    (root / "index.sqlite").unlink()
    (root / "index.sqlite-wal").write_bytes(b"left")
    with pytest.raises(NotARepository):
        await open_backend(root)
    restored = await restore(tmp_path / "backup", root)
    assert (2, 3, []) == (restored.counts.record_count, restored.counts.chunk_count, restored.damaged)
    assert [b"left"] == [path.read_bytes() for path in restored.set_aside]
    async with connect(root) as repository:
        assert 2 == len(await read(repository, "first"))
        assert 2 == len(await read(repository, "second"))


async def test_files_stored_after_the_backup_are_not_collected(root: Path, tmp_path: Path) -> None:
    """The restored index has no names for them. How many manifests have none is told, and collection is held."""
    await back_up(root, tmp_path / "backup")
    async with connect(root) as repository:
        await push(repository, "third", CHUNKS)
    restored = await restore(tmp_path / "backup", root)
    assert [("default", 1)] == [(hold.namespace, hold.manifest_count) for hold in restored.holds]
    store, index = await open_backend(root)
    with pytest.raises(CollectionHeld, match=r"a backup of .* was restored"):
        await Collection(store, index, "default", grace_seconds=0).run()
    await index.close()
    await store.close()


async def test_a_removal_keeps_the_chunks_of_a_held_namespace(root: Path, tmp_path: Path) -> None:
    """A file that was stored after the backup has no name, and may need these chunks. Only the record is removed."""
    await back_up(root, tmp_path / "backup")
    async with connect(root) as repository:
        await push(repository, "third", CHUNKS)
    await restore(tmp_path / "backup", root)
    before = sorted((*root.glob("chunks/*/*/*/*"), *root.glob("manifests/*/*/*/*")))
    async with connect(root) as repository:
        await repository.remove((await repository.record("first")).id, with_chunks=True)
        assert ["second"] == [record.name for record in await repository.records()]
        assert before == sorted((*root.glob("chunks/*/*/*/*"), *root.glob("manifests/*/*/*/*")))
        assert [] == await repository.missing([encoded(chunk).digest for chunk in CHUNKS])


async def test_a_restored_repository_hands_out_only_what_it_has(root: Path, tmp_path: Path) -> None:
    """Rows without frames are removed, files that are not whole are named, and a push makes them whole."""
    await back_up(root, tmp_path / "backup")
    frame_of(CHUNKS[0], root).unlink()
    frame_of(CHUNKS[2], root).write_bytes(b"short")
    restored = await restore(tmp_path / "backup", root)
    assert [("first", 1), ("second", 1)] == [(each.record.name, each.missing_count) for each in restored.damaged]
    async with connect(root) as repository:
        lost = [encoded(CHUNKS[0]).digest, encoded(CHUNKS[2]).digest]
        assert lost == await repository.missing([encoded(chunk).digest for chunk in CHUNKS])
        await push(repository, "first", CHUNKS[:2])
        assert 2 == len(await read(repository, "first"))


async def test_a_backup_without_content_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    """Restored to a new folder, it has all names and no file. The content can be copied there, and it is restored again."""
    await back_up(root, tmp_path / "backup")
    restored = await restore(tmp_path / "backup", tmp_path / "new")
    assert {"first", "second"} == {each.record.name for each in restored.damaged}
    for name in ("chunks", "manifests"):
        shutil.copytree(root / name, tmp_path / "new" / name)
    assert [] == (await restore(tmp_path / "backup", tmp_path / "new")).damaged
    async with connect(tmp_path / "new") as repository:
        assert 2 == len(await read(repository, "second"))


async def test_a_backup_copies_only_what_the_target_lacks(root: Path, tmp_path: Path) -> None:
    """A second one copies nothing; a frame that is short there is copied again."""
    await back_up(root, tmp_path / "backup", full=True)
    assert 0 == (await back_up(root, tmp_path / "backup", full=True)).counts.copied_count
    frame_of(CHUNKS[0], tmp_path / "backup").write_bytes(b"short")
    assert 1 == (await back_up(root, tmp_path / "backup", full=True)).counts.copied_count
    assert [] == (await restore(tmp_path / "backup", tmp_path / "new")).damaged


async def test_old_backups_and_their_content_go(root: Path, tmp_path: Path) -> None:
    """Content stays as long as a backup that was kept needs it."""
    await back_up(root, tmp_path / "backup", full=True)
    async with connect(root) as repository:
        assert isinstance(repository, LocalRepository)
        await repository.remove((await repository.record("first")).id, with_chunks=True)
    kept = await back_up(root, tmp_path / "backup", full=True, kept=2)
    assert frame_of(CHUNKS[0], tmp_path / "backup").exists()
    made = await back_up(root, tmp_path / "backup", full=True, kept=2)
    assert [made.path, kept.path] == backups_in(tmp_path / "backup")
    assert ["000001"] == [name[:6] for name in made.removed]
    assert 2 == len(list((tmp_path / "backup").glob("chunks/*/*/*/*")))
    assert 1 == len(list((tmp_path / "backup").glob("manifests/*/*/*/*")))
    restored = await restore(kept.path, tmp_path / "new")
    assert (1, []) == (restored.counts.record_count, restored.damaged)


async def test_the_files_of_an_older_backup_go_after_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not leave a backup that has its name and no index: no other backup could be made."""
    durable: set[str] = set()
    removed: list[str] = []

    def sync_and_note(path: Path) -> None:
        sync_path(path)
        if path.name == "backups":
            durable.clear()
            durable.update(each.name for each in path.iterdir())

    def note_and_remove(path: Path) -> None:
        assert path.name in durable
        removed.append(path.name)
        remove_if_possible(path)

    monkeypatch.setattr(backups, "sync_path", sync_and_note)
    monkeypatch.setattr(backups, "remove_if_possible", note_and_remove)
    for _ in range(3):
        made = await back_up(root, tmp_path / "backup", full=True, kept=1)
    assert 2 == len(removed)
    assert {made.path.name} == durable - set(removed)


async def test_a_record_that_is_removed_meanwhile_is_not_in_the_backup(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content went after the index was copied. The other records are whole."""
    complete = content.complete

    async def remove_first(*arguments: object, **named: object) -> None:
        async with connect(root) as repository:
            assert isinstance(repository, LocalRepository)
            await repository.remove((await repository.record("first")).id, with_chunks=True)
        await complete(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backups, "complete", remove_first)
    made = await back_up(root, tmp_path / "backup", full=True)
    assert (1, []) == (made.counts.record_count, made.damaged)
    restored = await restore(tmp_path / "backup", tmp_path / "new")
    assert (1, []) == (restored.counts.record_count, restored.damaged)


async def test_damage_in_the_repository_is_reported_and_healed_from_an_earlier_backup(root: Path, tmp_path: Path) -> None:
    """A lost frame is named by its file, if no earlier backup has it. A flipped bit does not replace a good copy."""
    await back_up(root, tmp_path / "early", full=True)
    path = frame_of(CHUNKS[0], root)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert [] == (await back_up(root, tmp_path / "early", full=True)).damaged
    late = await back_up(root, tmp_path / "late", full=True)
    assert ["first"] == [each.record.name for each in late.damaged]
    async with connect(root) as repository:
        assert 1 == len(await repository.verify_chunks([encoded(CHUNKS[0]).digest]))
    # Now the row is gone too.
    path.write_bytes(b"short")
    assert [] == (await back_up(root, tmp_path / "early", full=True, kept=1)).damaged
    assert [] == (await restore(tmp_path / "early", root)).damaged
    assert [encoded(CHUNKS[0]).data] == [frame_of(CHUNKS[0], root).read_bytes()]


async def test_pipelines_are_backed_up(root: Path, tmp_path: Path) -> None:
    """The database of a runtime is copied while it is open, and restored."""
    folder = root / "runtime/default"
    folder.mkdir(parents=True)
    database = open_database(folder)
    with database.write() as connection:
        connection.execute("INSERT INTO names VALUES ('doubler', 1)")
    await back_up(root, tmp_path / "backup")
    # As a runtime that runs has it.
    with FileLock.of_file(folder / "lock", is_required=True) as lock:
        assert lock.try_acquire()
        with pytest.raises(Busy, match="has the repository open"):
            await restore(tmp_path / "backup", root)
    with database.write() as connection:
        connection.execute("INSERT INTO names VALUES ('later', 1)")
    database.close()
    await restore(tmp_path / "backup", root)
    restored = open_database(folder)
    with restored.read() as connection:
        assert [("doubler", 1)] == connection.execute("SELECT * FROM names").fetchall()
    restored.close()


@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only"])
async def test_an_open_repository_is_not_restored(root: Path, tmp_path: Path, *, read_only: bool) -> None:
    """A process that has it open, also for reading, would go on with the old index. Nothing is changed."""
    await back_up(root, tmp_path / "backup")
    program = (
        "import asyncio, sys\n"
        "from filestore.backends import connect\n"
        "async def main():\n"
        f"    async with connect(sys.argv[1], read_only={read_only}) as repository:\n"
        "        await repository.records()\n"
        "        print('open', flush=True)\n"
        "        sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        before = (root / "index.sqlite").stat().st_ino
        with pytest.raises(Busy, match="has the repository open; stop all servers and commands"):
            await restore(tmp_path / "backup", root)
        assert (before, False) == ((root / "index.sqlite").stat().st_ino, (root / "restoring").exists())
        user.communicate()
    await restore(tmp_path / "backup", root)
    assert before != (root / "index.sqlite").stat().st_ino


async def test_an_interrupted_restore_is_not_used(root: Path, tmp_path: Path) -> None:
    """Until the restore is done again, the folder is refused by everybody else, also as a new repository."""
    await back_up(root, tmp_path / "backup", full=True)
    (root / "restoring").touch()
    for read_only in (False, True):
        with pytest.raises(NotARepository, match="a restore of it has not ended"):
            await open_backend(root, read_only=read_only)
    with pytest.raises(NotARepository, match="a restore of it has not ended"):
        await open_backend(root, create=True)
    with pytest.raises(NotARepository, match="a restore of it has not ended"):
        await back_up(root, tmp_path / "other")
    await restore(tmp_path / "backup", root)
    async with connect(root) as repository:
        assert 2 == len(await repository.records())


async def test_the_first_backup_was_cut_off_before_its_mark_had_a_name(root: Path, tmp_path: Path) -> None:
    """The next backup uses the folder, and removes what is left there."""
    left = tmp_path / "backup" / f".{'0123456789abcdef' * 2}"
    left.parent.mkdir()
    left.write_bytes(b'{"version"')

    await back_up(root, tmp_path / "backup")

    assert not left.exists()


async def test_wrong_folders_are_refused(root: Path, tmp_path: Path) -> None:
    """Backups do not go among other files or those of another repository, and are not restored over them."""
    await back_up(root, tmp_path / "backup")
    other = tmp_path / "other"
    async with connect(other, create=True) as repository:
        await push(repository, "first", CHUNKS)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").touch()
    with pytest.raises(NotABackup, match="has backups of another repository"):
        await back_up(other, tmp_path / "backup")
    with pytest.raises(NotABackup, match=r"holds other things \('thesis.txt'\)"):
        await back_up(root, tmp_path / "home")
    with pytest.raises(NotABackup, match="holds other things"):
        await back_up(root, other)
    with pytest.raises(InvalidInput, match="is inside the repository"):
        await back_up(root, root / "backup")
    with pytest.raises(NotARepository, match="and the backup is of"):
        await restore(tmp_path / "backup", other)
    with pytest.raises(NotARepository, match="holds other things"):
        await restore(tmp_path / "backup", tmp_path / "home")
    with pytest.raises(NotABackup, match="it has neither"):
        await restore(root, tmp_path / "new")
    with pytest.raises(NotABackup, match="such a folder does not exist"):
        await restore(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_two_backups_at_once_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is made."""
    complete = content.complete

    async def back_up_again(*arguments: object, **named: object) -> None:
        with pytest.raises(Busy, match="makes a backup there"):
            await back_up(root, tmp_path / "backup")
        await complete(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backups, "complete", back_up_again)
    assert [(await back_up(root, tmp_path / "backup", full=True)).path] == backups_in(tmp_path / "backup")


async def test_a_backup_does_not_change_its_target_during_a_restore(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that keeps one would remove the content that the restore reads. A restore does not begin during a backup."""
    target = tmp_path / "backup"
    first = (await back_up(root, target, full=True)).path
    complete = content.complete

    async def back_up_meanwhile(*arguments: object, **named: object) -> None:
        with pytest.raises(Busy, match="makes a backup there, or restores one"):
            await back_up(root, target, full=True, kept=1)
        await complete(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(restores, "complete", back_up_meanwhile)
    for number, source in enumerate((target, first)):
        assert [] == (await restore(source, tmp_path / f"new{number}")).damaged
    with FileLock.of_file(target / "lock", is_required=True) as lock:
        assert lock.try_acquire()
        with pytest.raises(Busy, match="makes a backup there; wait until it ends"):
            await restore(target, tmp_path / "late")


@pytest.mark.parametrize("harm", ["empty", "malformed"])
async def test_a_damaged_index_replaces_no_backup(root: Path, tmp_path: Path, harm: str) -> None:
    """The backup fails, and the earlier one stays the newest."""
    made = await back_up(root, tmp_path / "backup", kept=1)
    path = root / "index.sqlite"
    if harm == "empty":
        path.write_bytes(b"")
    else:
        with path.open("r+b") as file:
            for place in range(4096, path.stat().st_size, 4096):
                file.seek(place)
                file.write(b"\xff" * 2000)
    with pytest.raises(IndexDamaged):
        await back_up(root, tmp_path / "backup", kept=1)
    assert [made.path] == backups_in(tmp_path / "backup")
    await restore(tmp_path / "backup", root)
    async with connect(root) as repository:
        assert 2 == len(await read(repository, "first"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 512 KiB, with a function that changes its size."""
    with small_disk(tmp_path / "small", "size=512k") as change:
        yield tmp_path / "small", change


@pytest.mark.parametrize("full", [False, True], ids=["names", "full"])
async def test_the_disk_of_the_target_is_full(root: Path, small: tuple[Path, Callable[[str], None]], *, full: bool) -> None:
    """The error names the target, and the earlier backup stays. With more space, the same command completes."""
    folder, change = small
    target = folder / "backup"
    earlier = await back_up(root, target, kept=1)
    async with connect(root) as repository:
        await push(repository, "large", contents(1, size=300_000))
    (folder / "other").write_bytes(bytes(max(0, free_space(folder) - (20_000 if not full else 250_000))))
    with pytest.raises(StorageFull, match=str(folder)):
        await back_up(root, target, full=full, kept=1)
    assert [earlier.path] == backups_in(target)
    assert 1 == len(list((target / "backups").iterdir()))
    change("size=16m")
    made = await back_up(root, target, full=full, kept=1)
    assert (3, [made.path]) == (made.counts.record_count, backups_in(target))


@pytest.mark.slow
async def test_backups_during_pushes_are_whole(tmp_path: Path) -> None:
    """A server takes and removes files all the time. Each backup restores to a repository in which every file reads back."""
    root, target = tmp_path / "root", tmp_path / "backup"
    with running_server(root) as server:
        count = 0
        for turn in range(3):
            uploading = asyncio.create_task(asyncio.to_thread(upload_and_remove, server.upload, server.ask, turn))
            while not uploading.done():
                made = await back_up(root, target, full=True, kept=2)
                count += 1
                assert [] == made.damaged
            await uploading
        restored = await restore(target, tmp_path / "new")
    assert (True, []) == (count >= 3, restored.damaged)
    async with connect(tmp_path / "new") as repository:
        records = await repository.records()
        assert made.counts.record_count == len(records)
        for record in records:
            assert await read(repository, record.id)


def upload_and_remove(upload: Callable[..., object], ask: Callable[..., object], turn: int) -> None:
    """Upload files, and remove every second one."""
    for number in range(15):
        made = upload(f"file-{turn}-{number}", b"%d %d " % (turn, number) * 500).json  # type: ignore[attr-defined]
        if number % 2:
            assert 200 == ask("DELETE", f"/native/v1/files/{made['id']}").status  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["backup", "restore", "restore-over"])
async def test_it_is_killed_at_any_call(tmp_path: Path, what: str) -> None:
    """The same command then completes. A backup that was there before stays whole, and no repository is half restored."""
    with start_module("tests.support.backup_crashes", what, tmp_path) as process:
        answer = process.communicate()
        killed = int(answer[0])
    assert killed > 10, answer
    for place in range(1, killed + 1):
        folder = tmp_path / str(place)
        source, root = folder / "backup", folder / "new"
        if what == "backup":
            for _ in range(2):
                restored = await restore(source, root)
                assert (min(2, len(backups_in(source))), []) == (restored.counts.record_count, restored.damaged)
                shutil.rmtree(root)
                await back_up(folder / "root", source, full=True)
            continue
        try:
            store, index = await open_backend(root, read_only=True)
        except (NotARepository, IndexDamaged):
            pass
        else:
            assert 2 == len(await index.records("default", limit=10))
            await index.close()
            await store.close()
        assert [] == (await restore(source, root)).damaged
        async with connect(root) as repository:
            assert {"first", "second"} == {record.name for record in await repository.records()}


@pytest.mark.slow
def test_the_commands_say_what_they_did(home: Home, tmp_path: Path) -> None:
    """A backup beside a server, its restore, a restore that is not whole, and the URL of a server."""
    root, target = tmp_path / "root", tmp_path / "backup"
    (tmp_path / "file.txt").write_text("content")
    with home.server(root=root) as server:
        home.result("push", tmp_path / "file.txt", environ=server.environ)
        made = home.result("backup", target, "--full", "--root", root)
        assert (1, 1, True, []) == (made["records"], made["chunks"], made["has_content"], made["damaged"])
        assert f"{root} is busy: process" in home.failure("restore", target, "--root", root)
        assert "run it on the machine of that server, with --root" in home.failure("backup", target, "--url", server.url)
    restored = home.result("restore", target, "--root", tmp_path / "new")
    assert (1, 7, []) == (restored["records"], restored["stored_size"] - 8, restored["damaged"])
    home.result("fetch", "file.txt", "--url", tmp_path / "new", "-o", tmp_path / "back.txt")
    assert "content" == (tmp_path / "back.txt").read_text()
    home.result("backup", tmp_path / "names", "--root", root, "--keep", "1", "--rate", "100MB")
    done = home.run("restore", tmp_path / "names", "--root", tmp_path / "empty")
    assert 1 == done.returncode
    assert "file.txt  (its manifest is missing or damaged)" in done.stdout
    assert "1 of 1 file is not whole" in done.stderr
    (root / "index.sqlite").unlink()
    said = home.failure("ls", "--url", root)
    assert "; `filestore restore` does it from a backup; without one, move the file away if it is damaged, and " in said
    assert "`filestore check --repair` finds the content again, but no names and tokens" in said


async def test_a_restore_that_was_killed_at_the_format_file_is_completed(root: Path, tmp_path: Path) -> None:
    """The folder then has the staging file of the format file, and no format file."""
    await back_up(root, tmp_path / "target", full=True)
    staging = tmp_path / f"new/.{'5c' * 16}"
    staging.parent.mkdir()
    staging.touch()
    (tmp_path / "new/restoring").touch()
    await restore(tmp_path / "target", tmp_path / "new")
    assert not staging.exists()


async def test_a_restore_makes_the_file_of_the_last_commit_again(root: Path, tmp_path: Path) -> None:
    """It is not synced. After a power cut, the text of the old index in the same file would refuse the new index."""
    await back_up(root, tmp_path / "target", full=True)
    old = tmp_path / "old"
    old.hardlink_to(root / "last-commit")
    before = old.read_bytes()
    await restore(tmp_path / "target", root)
    assert before == old.read_bytes()
    assert before != (root / "last-commit").read_bytes()


@pytest.mark.parametrize(
    "facts", [b'{"version": 1, "repository_id": "a"}', b'{"version": 1, "repository_id": "a", "has_content": 1}', b"\xff"]
)
async def test_damaged_facts_of_a_backup_are_refused(root: Path, tmp_path: Path, facts: bytes) -> None:
    """They are read from a folder that anybody may have changed."""
    made = await back_up(root, tmp_path / "target")
    (made.path / "backup.json").write_bytes(facts)
    with pytest.raises(NotABackup, match="is damaged"):
        await restore(tmp_path / "target", tmp_path / "new")


def test_root_has_priority_over_the_url_of_the_environment(home: Home, root: Path, tmp_path: Path) -> None:
    """A user who works with a server by FILESTORE_URL can still back up a folder, and the right one."""
    for url in ("http://127.0.0.1:9", str(tmp_path / "another")):
        done = home.run("backup", tmp_path / "target", "--root", root, environ={"FILESTORE_URL": url})
        assert (0, "") == (done.returncode, done.stderr)


def test_a_copy_is_one_snapshot_during_writes(tmp_path: Path) -> None:
    """Another process writes between the steps. The copy ends, and has what was there at its beginning."""
    source = tmp_path / "source.sqlite"
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE t (value)")
        writer.execute("BEGIN")
        writer.executemany("INSERT INTO t VALUES (?)", [(bytes(2000),)] * 3000)
        writer.execute("COMMIT")

        class Reader(sqlite3.Connection):
            def backup(self, target: sqlite3.Connection, *, pages: int, progress: Callable[[int, int, int], object]) -> None:  # type: ignore[override]
                def write(*step: int) -> None:
                    writer.execute("UPDATE t SET value = randomblob(2000) WHERE rowid = 1")
                    writer.execute("INSERT INTO t VALUES (1)")
                    progress(*step)

                super().backup(target, pages=pages, progress=write)

        with closing(sqlite3.connect(source, isolation_level=None, factory=Reader)) as reader:
            copy_database(reader, tmp_path / "copy.sqlite", where="there")
        (count,) = writer.execute("SELECT count(*) FROM t").fetchone()
    with closing(sqlite3.connect(tmp_path / "copy.sqlite")) as copy:
        assert (3000, True) == (copy.execute("SELECT count(*) FROM t").fetchone()[0], count > 3000)
