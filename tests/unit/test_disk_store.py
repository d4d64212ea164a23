"""What only a chunk store on a disk can get wrong."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.object_names import ObjectName
from filestore.core.paths import chunk_key, hashed
from filestore.errors import StorageError, StorageFull
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores import disk, disk_space
from filestore.repository.stores.disk import DiskStore, open_store
from filestore.repository.stores.disk_space import DiskSpace
from filestore.repository.stores.protocol import Removed
from filestore.repository.stores.staging_file import DiskStaging
from tests.support.disks import refuse_locks

DIGEST = chunk_digest(b"content")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the store, which does not exist yet."""
    return tmp_path / "new" / "store"


async def publish(store: DiskStore, data: bytes = b"content") -> None:
    """Store bytes under DIGEST."""
    staging = store.new_staging()
    staging.write(data)
    staging.sync()
    await store.publish("a", [(DIGEST, staging)])


async def test_a_file_system_without_locks_is_told_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is missing and what to do."""
    refuse_locks(monkeypatch)
    with pytest.raises(StorageError, match=r"file locks do not work there \(No locks available\), .* or use a local disk"):
        await open_store(root)


def test_space_is_promised_without_a_look_only_while_much_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only soon after a look that found the reserve in its place."""
    free = 100 << 30

    class Found(NamedTuple):
        f_frsize: int = 1
        f_bavail: int = free
        f_blocks: int = 2 * free

    monkeypatch.setattr(os, "statvfs", lambda _: Found())
    monkeypatch.setattr(disk_space, "_MOMENT_SECONDS", 3600)
    space = DiskSpace(tmp_path, min_free=0)
    assert space.soon_after(1) is None
    space.claim(1).end()
    claims = [space.soon_after(45 << 30), space.soon_after(45 << 30)]
    assert None not in claims
    assert space.soon_after(5 << 30) is None
    for claim in claims:
        assert claim is not None
        claim.end()
    assert space.soon_after(5 << 30) is not None
    with monkeypatch.context() as patches:
        patches.setattr(disk_space, "_MOMENT_SECONDS", -1)
        assert space.soon_after(5 << 30) is None
    assert space.release_reserve()
    assert space.soon_after(1) is None


async def test_files_lie_where_the_layout_says(root: Path) -> None:
    """Disk, object store and cache have one layout, so that a single file shows what it is."""
    store = await open_store(root)
    await publish(store)
    await store.put_manifest("a", DIGEST, b"manifest")
    await store.initialise(b"format")
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert {"format", f"chunks/a/{hashed(DIGEST)}", f"manifests/a/{hashed(DIGEST)}"} == found
    await store.close()


async def test_format_file_is_read_and_synced_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server makes a repository object for each request, which must cost no read and no sync."""
    store = await open_store(root)
    index = await open_index(root / "index.sqlite")
    identities = {await LocalRepository(store, index, location="here", namespace="a").identity()}
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync_path", synced.append)
    monkeypatch.setattr(store, "_read_format", synced.append)
    for _ in range(3):
        identities.add(await LocalRepository(store, index, location="here", namespace="a").identity())
    assert [] == synced
    assert 1 == len(identities)
    await index.close()
    await store.close()


async def test_nothing_is_readable_for_other_users(root: Path) -> None:
    """Folders have the mode 0700 and files 0600, with any umask."""
    before = os.umask(0)
    try:
        store = await open_store(root)
        await publish(store)
        await store.put_manifest("a", DIGEST, b"manifest")
        staging = store.new_staging()
        staging.write(b"staged")
    finally:
        os.umask(before)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (root, *root.rglob("*"))}
    assert {(True, 0o700), (False, 0o600)} == modes
    staging.discard()
    await store.close()


async def test_stage_costs_nothing_until_the_first_write(root: Path) -> None:
    """The file is made with the first byte."""
    store = await open_store(root)
    for _ in range(10):
        store.new_staging()
    assert [] == [path for path in (root / "tmp").rglob("*") if path.is_file()]
    await store.close()


@pytest.mark.parametrize("end", [DiskStaging.rest, DiskStaging.sync, DiskStaging.discard])
async def test_only_a_frame_that_is_written_to_has_a_descriptor(root: Path, end: Callable[[DiskStaging], None]) -> None:
    """A batch has more frames than a process may have descriptors, so each gives its own up when it is whole or of no use."""
    store = await open_store(root)
    before = open_descriptors(root)
    staging = store.new_staging()
    for piece in (b"one", b"two"):
        staging.write(piece)
        assert before + 1 == open_descriptors(root)
    end(staging)
    assert before == open_descriptors(root)
    staging.discard()
    await store.close()


def open_descriptors(root: Path) -> int:
    """How many this process has of files below a folder. Other threads open and close files elsewhere."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            count += descriptor.readlink().is_relative_to(root)
    return count


def leave_staging(root: Path) -> None:
    """Leave what a killed process leaves: a folder without a lock."""
    dead = root / "tmp" / ("0" * 32)
    dead.mkdir(parents=True)
    (dead / "0").write_bytes(b"8 bytes.")


async def test_files_of_a_dead_process_are_swept(root: Path) -> None:
    """A folder in `tmp` without a lock is what a killed process left."""
    dead = root / "tmp" / ("0" * 32)
    dead.mkdir(parents=True)
    (dead / "0").write_bytes(b"a torn frame")
    store = await open_store(root)
    assert not dead.exists()
    await store.close()


async def test_what_dead_processes_left_is_counted_once(root: Path) -> None:
    """What the opening removed, and what was left since. A dry run removes nothing."""
    leave_staging(root)
    store = await open_store(root)
    assert Removed(1, 8) == await store.remove_abandoned()
    leave_staging(root)
    assert Removed(1, 8) == await store.remove_abandoned(dry_run=True)
    assert Removed(1, 8) == await store.remove_abandoned()
    assert Removed(0, 0) == await store.remove_abandoned()
    await store.close()


async def test_damage_in_the_place_of_a_frame_is_removed(root: Path) -> None:
    """A folder, a link that leads nowhere, and a file in the place of the folder."""
    store = await open_store(root)
    digests = [chunk_digest(b"%d" % number) for number in range(3)]
    folder, link, above = [root / chunk_key("a", digest) for digest in digests]
    (folder / "inner").mkdir(parents=True)
    link.parent.mkdir(parents=True)
    link.symlink_to("nowhere")
    above.parent.parent.mkdir(parents=True)
    above.parent.write_bytes(b"")
    await store.remove("a", [ObjectName(digest) for digest in digests])
    assert [above.parent.parent, above.parent] == sorted(root.glob("chunks/a/**/*"))
    await store.close()


async def test_files_of_a_living_process_are_not_touched(root: Path) -> None:
    """Also after others came and went."""
    living = await open_store(root)
    staging = living.new_staging()
    staging.write(b"content")
    for _ in range(2):
        await (await open_store(root)).close()
    staging.sync()
    await living.publish("a", [(DIGEST, staging)])
    (file,) = await living.open("a", [DIGEST])
    assert file is not None
    with file:
        assert b"content" == file.read()
    await living.close()


async def test_files_of_strangers_are_not_swept(root: Path) -> None:
    """Files that no version of this program made stay, in `tmp` and among frames."""
    (root / "tmp" / "notes").mkdir(parents=True)
    (root / "tmp" / "notes" / "file").touch()
    (root / "tmp" / ("0" * 32)).touch()
    (root / "chunks" / "a" / "ab").mkdir(parents=True)
    (root / "chunks" / "a" / "README").touch()
    (root / "chunks" / "a" / "ab" / "README").touch()
    store = await open_store(root)
    await publish(store)
    assert [DIGEST] == [digest async for digest in store.digests("a")]
    await store.close()
    assert (root / "tmp" / "notes" / "file").exists()
    assert (root / "tmp" / ("0" * 32)).exists()


async def test_closed_store_leaves_nothing_in_tmp(root: Path) -> None:
    """Staging that was never published is removed with the store."""
    store = await open_store(root)
    staging = store.new_staging()
    staging.write(b"staged")
    staging.rest()
    await store.close()
    assert [] == list((root / "tmp").iterdir())


@pytest.mark.parametrize("size", [0, (4 << 20) + 9])
async def test_frame_of_an_impossible_size_counts_as_absent(root: Path, size: int) -> None:
    """A file that a power cut emptied, or another program wrote, is not a frame; the next push repairs it."""
    store = await open_store(root)
    await publish(store)
    os.truncate(root / chunk_key("a", DIGEST), size)
    assert [None] == await store.open("a", [DIGEST])
    assert [None] == await store.read_into("a", [DIGEST], memoryview(bytearray(8 << 20)))
    await publish(store)
    (part,) = await store.read_into("a", [DIGEST], memoryview(bytearray(8 << 20)))
    assert part is not None
    assert b"content" == bytes(part)
    await store.close()


async def test_opened_frames_have_a_descriptor(root: Path) -> None:
    """`sendfile` needs one."""
    store = await open_store(root)
    await publish(store)
    (file,) = await store.open("a", [DIGEST])
    assert file is not None
    with file:
        assert 7 == os.fstat(file.fileno()).st_size
    await store.close()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageError)]
)
async def test_errors_of_the_disk_are_translated(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    """A full disk and a used-up quota are said as such; nothing else of the operating system comes out."""
    store = await open_store(root)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    staging = store.new_staging()
    staging.write(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as caught:
            staging.sync()
        assert (kind, os.strerror(number)) == (type(caught.value), caught.value.args[1])
        with pytest.raises(kind):
            await store.put_manifest("a", DIGEST, b"manifest")
    assert await store.manifest("a", DIGEST) is None
    await store.close()


async def test_root_that_is_a_file(tmp_path: Path) -> None:
    """Said with its path."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StorageError, match=str(path)):
        await open_store(path)
