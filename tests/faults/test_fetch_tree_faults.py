"""Fetches of trees are cut, cancelled, raced or damaged, or lack disk space.

No half tree appears, and nothing is fetched twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Manifest
from filestore.core.paths import chunk_key
from filestore.errors import DamagedChunk, InvalidArchive, StorageFull, TargetError
from filestore.format.zip.read import TAIL_SIZE
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.transfer.fetch_tree import fetch_record_tree, fetch_tree
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.target import staging_folder
from tests.support.archives import Forged, forged
from tests.support.cancels import cancelled_at_every_await
from tests.support.disks import small_disk
from tests.support.fetching_trees import JumbledRepository, cut_off, seen, staging_in, stored, things_in
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, plant, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20
PACKED = prose(9, 400_000)
FILES = [
    Forged("stored.bin", octets(1, 90_000)),
    Forged("packed.txt", PACKED, deflated=True),
    Forged("small/packed.txt", b"packed " * 99, deflated=True),
    Forged("small/empty/", mode=0o40755),
    Forged("link", b"small/packed.txt", mode=0o120777),
    Forged("last.bin", octets(2, 160_000)),
]
ARCHIVE = forged(FILES)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return the folder in which `target` is to be made."""
    return plant(tmp_path / "place", {})


@pytest.mark.parametrize("way", ["new", "inside", "force"])
async def test_cancelled_at_every_await(repository: LocalRepository, place: Path, way: str) -> None:
    """The old tree, the new one or none is there, never a half tree. The next fetch completes."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    target = place / "target"

    def begin() -> None:
        if target.exists():
            shutil.rmtree(target)
        if way == "inside":
            target.mkdir()
        elif way == "force":
            plant(target, {"older": b"version"})

    begin()
    count = 0
    async for _ in cancelled_at_every_await(lambda: fetch_tree(repository, record, target=target, force=way == "force")):
        count += 1
        found = {} if way == "inside" or not target.exists() else standing(target)
        assert found in ({}, {"older": b"version"}, things_in(ARCHIVE))
        begin()
    assert count > 10
    assert things_in(ARCHIVE) == standing(target)
    assert [target] == list(place.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("gather_limit", [0, 1 << 20])
async def test_a_second_unpack_receives_what_is_missing(repository: LocalRepository, place: Path, gather_limit: int) -> None:
    """Staged chunks are not received again, and neither are those of whole packed entries."""
    options = TransferOptions(batches_in_flight=1, batch_size=30_000, gather_limit=gather_limit)
    record = await stored(repository, ARCHIVE, chunk_size=10_000)
    watched = WatchedRepository(repository)
    whole = (await fetch_record_tree(watched, record, target=place / "other", options=options)).bytes_received
    gets = watched.calls.count("get")
    received = []
    for cut in range(1, gets):
        target = place / f"target-{cut}"
        await cut_off(repository, record, target, gets=cut, options=options)
        found = await fetch_record_tree(repository, record, target=target, options=options)
        assert things_in(ARCHIVE) == standing(target)
        assert found.size >= found.bytes_reused
        received.append(found.bytes_received)
    # It never receives more than the first fetch. In the end it receives little, since only partial entries are
    # missing.
    assert whole >= max(received)
    assert received[0] == whole
    assert received[-1] < 0.7 * whole
    assert sorted(received, reverse=True) == received


async def test_what_is_staged_is_not_trusted(repository: LocalRepository, place: Path) -> None:
    """Wrong data of every kind is in the staging folder of a cut fetch. None of it gets into the tree."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    await cut_off(repository, record, place / "target", gets=1)
    staging = staging_in(place)
    plant(
        staging,
        {
            "foreign.txt": b"rubbish",
            "foreign/file": b"rubbish",
            "stored.bin": octets(3, 90_000),
            "packed.txt": bytes(len(PACKED)),
            "small/packed.txt": b"PACKED " * 99,
            "last.bin": octets(2, 200_000),
        },
    )
    os.mkfifo(staging / "fifo")
    (staging / "link").symlink_to("../..")

    await fetch_tree(repository, record, target=place / "target")

    assert things_in(ARCHIVE) == standing(place / "target")


async def test_kinds_in_the_staging_folder_that_are_not_those_of_the_archive(repository: LocalRepository, place: Path) -> None:
    """A folder is in the place of a file, a file in that of a folder, and a file in that of the staging folder itself."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    await cut_off(repository, record, place / "target", gets=1)
    staging = staging_in(place)
    shutil.rmtree(staging)
    plant(staging, {"stored.bin/file": b"1", "small": b"2", "link/file": b"3"})
    await fetch_tree(repository, record, target=place / "target")
    assert things_in(ARCHIVE) == standing(place / "target")

    shutil.rmtree(place / "target")
    staging.write_bytes(b"4")
    await fetch_tree(repository, record, target=place / "target")
    assert things_in(ARCHIVE) == standing(place / "target")


async def test_the_staging_folder_is_removed_meanwhile(repository: LocalRepository, place: Path) -> None:
    """A removed staging folder is made again, and the tree is whole. If it is removed again and again, the fetch fails."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    watched = WatchedRepository(repository)
    left = 1

    async def remove(verb: str) -> None:
        nonlocal left
        if verb == "get" and left:
            for staging in place.glob(".*"):
                left -= 1
                shutil.rmtree(staging)

    watched.before = remove
    await fetch_tree(watched, record, target=place / "target")
    assert things_in(ARCHIVE) == standing(place / "target")
    left = 99
    with pytest.raises(TargetError, match="again and again"):
        await fetch_tree(watched, record, target=place / "other")


@pytest.mark.parametrize("way", ["new", "inside", "force"])
async def test_two_unpacks_to_one_target(repository: LocalRepository, place: Path, way: str) -> None:
    """They share the staging folder. The slower one finds the tree, and nobody writes to a published tree."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    watched = WatchedRepository(repository)
    target = place / "target"
    if way == "inside":
        target.mkdir()
    elif way == "force":
        plant(target, {"older": b"version"})
    first_waits, second_done = asyncio.Event(), asyncio.Event()

    async def hold(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 2 and not first_waits.is_set():
            first_waits.set()
            await second_done.wait()

    watched.before = hold
    slow = asyncio.create_task(fetch_tree(watched, record, target=target, force=way == "force"))
    await first_waits.wait()
    fast = await fetch_tree(repository, record, target=target, force=way == "force")
    published = seen(target)
    second_done.set()
    assert record.size == (await slow).size == fast.size
    assert published == seen(target)
    assert things_in(ARCHIVE) == standing(target)
    assert [target] == list(place.iterdir())


async def test_a_staged_link_is_not_received_again(local_repository: Repository, place: Path, tmp_path: Path) -> None:
    """A fetch ended when all was staged. The next one receives only the end of the zip, also with links and folders."""
    things: dict[str, Planted] = {"a.txt": b"a" * 500, "link": Link("a.txt"), "logs": Folder(), "z.bin": octets(1, 2 * MIB)}
    record = (await push(local_repository, plant(tmp_path / "tree", things), symlinks="keep")).record
    (await fetch_tree(local_repository, record, target=place / "first")).path.rename(
        staging_folder(place / "target", record.digest)
    )
    watched = JumbledRepository(local_repository, random.Random(1))
    found = await fetch_tree(watched, record, target=place / "target")
    end = {
        chunk.digest
        for chunk, offset in zip(found.manifest.chunks, found.manifest.offsets(), strict=True)
        if offset + chunk.size > found.size - TAIL_SIZE
    }
    assert end == set(watched.received)
    assert things == standing(place / "target")


@pytest.mark.parametrize("again", [{"link": Link("a.txt")}, {"a.txt": b"a", "link": Link("a.txt"), "deep/b": b"b"}])
async def test_another_process_makes_again_what_was_moved_out(
    local_repository: Repository, place: Path, tmp_path: Path, again: dict[str, Planted]
) -> None:
    """It had the staging folder open while its names were moved into the target. The next fetch completes."""
    things: dict[str, Planted] = {"a.txt": b"a", "deep/b": b"b", "link": Link("a.txt"), "z.txt": b"z"}
    record = (await push(local_repository, plant(tmp_path / "tree", things), symlinks="keep")).record
    target = place / "target"
    target.mkdir()
    staging = staging_folder(target, record.digest).name
    (await fetch_tree(local_repository, record, target=place / "first")).path.rename(
        target / staging.replace(".filestore-partial", ".filestore-moving")
    )
    plant(target, again)
    await fetch_tree(local_repository, record, target=target)
    assert things == standing(target)
    assert ["a.txt", "deep", "link", "z.txt"] == sorted(path.name for path in target.iterdir())


async def test_a_staging_folder_in_a_whole_tree_is_removed(local_repository: Repository, place: Path, tmp_path: Path) -> None:
    """A process staged the tree a second time, in the folder in which another one published it, and was killed."""
    things: dict[str, Planted] = {"a.txt": b"a", "z.txt": b"z"}
    record = (await push(local_repository, plant(tmp_path / "tree", things))).record
    target = plant(place / "target", things)
    plant(target / staging_folder(target, record.digest).name, {"a.txt": b"a"})
    found = await fetch_tree(local_repository, record, target=target, force=True)
    assert found.size == found.bytes_reused
    assert sorted(things) == sorted(path.name for path in target.iterdir())


@pytest.mark.parametrize("way", ["new", "inside"])
async def test_another_process_is_done_before_this_one_begins(repository: LocalRepository, place: Path, way: str) -> None:
    """It publishes after the first look at the target and before the first byte in staging. Its tree is found."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    watched = WatchedRepository(repository)
    target = place / "target"
    if way == "inside":
        target.mkdir()

    async def be_first(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 1:
            await fetch_tree(repository, record, target=target)

    watched.before = be_first
    found = await fetch_tree(watched, record, target=target)
    assert things_in(ARCHIVE) == standing(target)
    assert found.size == found.bytes_reused
    assert [target] == list(place.iterdir())


async def test_something_appears_at_the_target_meanwhile(repository: LocalRepository, place: Path) -> None:
    """A thing that another program puts there is not replaced. The error names it."""
    record = await stored(repository, ARCHIVE, chunk_size=40_000)
    watched = WatchedRepository(repository)

    async def appear(verb: str) -> None:
        if verb == "get":
            plant(place / "target", {"theirs": b"content"})

    watched.before = appear
    with pytest.raises(TargetError, match="it is not empty"):
        await fetch_tree(watched, record, target=place / "target")
    assert {"theirs": b"content"} == standing(place / "target")


async def test_a_damaged_chunk_is_named_and_the_rest_is_kept(local_repository: Repository, place: Path, tmp_path: Path) -> None:
    """The tree does not appear. After the chunk is repaired, the next fetch receives little more than that."""
    tree = plant(tmp_path / "tree", {f"{number}.bin": octets(number, 2 * MIB) for number in range(6)})
    record = (await push(local_repository, tree)).record
    manifest = Manifest.parse(await local_repository.manifest(record.digest))
    digest = max(manifest.chunks, key=lambda chunk: chunk.size).digest
    kept = Path(local_repository.location.removeprefix("file://")) / chunk_key(record.namespace, digest)
    frame = bytearray(kept.read_bytes())
    frame[1000] ^= 1
    kept.write_bytes(frame)
    with pytest.raises(DamagedChunk, match=str(digest)):
        await fetch_tree(local_repository, record, target=place / "target")
    assert not (place / "target").exists()

    await push(local_repository, tree)
    found = await fetch_tree(local_repository, record, target=place / "target")

    assert standing(tree) == standing(place / "target")
    assert found.bytes_reused + found.bytes_received >= found.size


async def test_a_refused_archive_takes_what_was_staged_with_it(repository: LocalRepository, place: Path) -> None:
    """The archive is refused at its last byte, after a cut. Nothing of it is left."""
    archive = forged([*FILES, Forged("bad", b"content", crc=1)])
    record = await stored(repository, archive, chunk_size=40_000)
    await cut_off(repository, record, place / "target", gets=1)
    assert staging_in(place).exists()
    with pytest.raises(InvalidArchive, match="'bad'"):
        await fetch_tree(repository, record, target=place / "target")
    assert [] == list(place.iterdir())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of 4 MiB, and what makes it larger."""
    with small_disk(tmp_path / "small", "size=4m") as change:
        yield tmp_path / "small", lambda: change("size=64m")


@pytest.mark.parametrize("inside", [True, False])
async def test_the_disk_is_too_small(
    repository: LocalRepository,
    small: tuple[Path, Callable[[], None]],
    inside: bool,  # noqa: FBT001  # a parameter of this test
) -> None:
    """The error comes before anything is fetched, with the numbers.

    With more space the fetch completes, also to a mounted volume.
    """
    folder, grow = small
    target = folder if inside else folder / "target"
    watched = WatchedRepository(repository)
    archive = forged([Forged("large.bin", octets(1, 3 * MIB)), Forged("zeros", bytes(8 * MIB), deflated=True)])
    record = await stored(repository, archive)
    with pytest.raises(StorageFull, match=f"{11 * MIB} bytes are needed and [0-9]+ are free"):
        await fetch_tree(watched, record, target=target)
    assert 1 == watched.calls.count("get")
    grow()
    await fetch_tree(watched, record, target=target)
    assert things_in(archive) == standing(target)


async def test_the_disk_fills_up(repository: LocalRepository, small: tuple[Path, Callable[[], None]]) -> None:
    """Somebody else takes the room: what was written is used by the unpack that completes, and is not received again."""
    folder, grow = small
    archive = forged([Forged(f"{number}.bin", octets(number, MIB)) for number in range(3)])
    record = await stored(repository, archive, chunk_size=MIB // 4)
    watched = WatchedRepository(repository)

    async def fill_disk(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 2:
            (folder / "other").write_bytes(bytes(2 * MIB))

    watched.before = fill_disk
    with pytest.raises(StorageFull, match="is full"):
        await fetch_tree(watched, record, target=folder / "target")
    assert not (folder / "target").exists()
    (folder / "other").unlink()
    found = await fetch_tree(repository, record, target=folder / "target")
    assert things_in(archive) == standing(folder / "target")
    assert found.bytes_reused >= MIB
    grow()


async def test_a_file_system_without_space_for_names(repository: LocalRepository, tmp_path: Path) -> None:
    """So many files cannot be made: said before any is fetched."""
    with small_disk(tmp_path / "few", "nr_inodes=50"):
        record = await stored(repository, forged(Forged(f"{number}", b"x") for number in range(100)))
        with pytest.raises(StorageFull, match=r"100 files and folders are needed and [0-9]+ can be made"):
            await fetch_tree(repository, record, target=tmp_path / "few" / "target")


def test_the_chunks_of_these_tests_are_what_they_should_be() -> None:
    """Packed content is large enough to be torn, and stored content too."""
    assert len(ARCHIVE) > 6 * 40_000
    assert chunk_digest(PACKED) == chunk_digest(prose(9, 400_000))
