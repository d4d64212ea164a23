from __future__ import annotations

import io
import os
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from blake3 import blake3

from filestore.core.progress import Progress
from filestore.core.records import Record
from filestore.errors import InvalidArchive, LimitExceeded, StorageError, TargetError
from filestore.format.zip.read import TAIL_SIZE, Members, ZipLimits, find_end, parse_central_directory
from filestore.repository.local import LocalRepository
from filestore.system import files as system_files
from filestore.system.files import sync_tree
from filestore.transfer.fetch_tree import FetchTreeResult, fetch_record_tree, fetch_tree
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.seeds import FileSeed, Seed
from filestore.transfer.sinks.tree import TreeStaging
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.target import staging_folder
from filestore.transfer.tree_seed import TreeSeed
from tests.support.archives import SMALL_SPACE, Forged, finder_entry, forged, wrapped, zip_of
from tests.support.fetching_trees import cut_off, seen, staging_in, stored, things_in
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, Script, entries_of, plant, random_things, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20
FIXTURES = Path(__file__).parents[1] / "golden/archives"
ARCHIVES = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix != ".sh"]
REFUSED = {"infozip-encrypted.zip", "infozip-bzip2.zip", "7zip-deflate64.zip", "7zip-lzma.zip", "7zip-aes.zip"}
TREE: dict[str, Planted] = {
    "config.json": prose(1, 700),
    "run.sh": Script(b"#!/bin/sh\n"),
    "empty.txt": b"",
    "logs": Folder(),
    "weights/0.bin": octets(2, 3 * MIB),
    "weights/1.bin": octets(3, 300_000),
    "latest": Link("weights/1.bin"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where `target` is to be made."""
    return plant(tmp_path / "place", {})


def content_of(thing: Planted) -> bytes:
    """Return the content of a file."""
    if isinstance(thing, Script):
        return thing.content
    return thing if isinstance(thing, bytes) else b""


def packed(things: Mapping[str, Planted]) -> bytes:
    """The zip of a tree as we make it."""
    return zip_of(entries_of(things), {name: content_of(thing) for name, thing in things.items()})


def zip_of_others(things: Mapping[str, Planted]) -> bytes:
    """The zip of a tree as Python makes it: deflated."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, thing in things.items():
            info = zipfile.ZipInfo(f"{name}/" if isinstance(thing, Folder) else name)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            kind = stat.S_IFLNK if isinstance(thing, Link) else stat.S_IFDIR if isinstance(thing, Folder) else stat.S_IFREG
            info.external_attr = (kind | (0o755 if isinstance(thing, Script | Folder) else 0o644)) << 16
            archive.writestr(info, str(thing.target) if isinstance(thing, Link) else content_of(thing))
    return memory.getvalue()


async def push_bytes(repository: LocalRepository, content: bytes, folder: Path) -> Record:
    """A record of a file, cut as files are."""
    path = folder / "pushed.zip"
    path.write_bytes(content)
    return (await push(repository, path)).record


def aside_of(target: Path) -> Path:
    """Return the path of the old tree between the two renames."""
    label = blake3(os.fsencode(target.name) + b"/").hexdigest()[:16]
    return target.parent / f".{label}.filestore-aside"


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [MIB, 50_000, 1777])
async def test_a_tree_is_unpacked(repository: LocalRepository, place: Path, chunk_size: int) -> None:
    """Files, executable bits, empty files and folders, links; and every count adds up."""
    archive = packed(TREE)
    watched = WatchedRepository(repository)
    found = await fetch_tree(watched, await stored(repository, archive, chunk_size=chunk_size), target=place / "target")

    assert TREE == standing(place / "target")
    assert (place / "target", len(archive), 6, 0) == (found.path, found.size, found.file_count, found.bytes_reused)
    # No chunk is received twice, though the end is read first of all.
    assert len(archive) + 8 * watched.chunks_got == found.bytes_received
    assert len(found.manifest.chunks) == watched.chunks_got
    assert archive.endswith(found.tail)
    assert found.tail.startswith(b"PK\1\2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("chunk_size", [MIB, 97])
async def test_a_foreign_archive(repository: LocalRepository, place: Path, name: str, chunk_size: int) -> None:
    """An archive of another tool is unpacked as that tool meant it, or refused with the name of the entry."""
    archive = (FIXTURES / name).read_bytes()
    record = await stored(repository, archive, name=name, chunk_size=chunk_size)
    if name in REFUSED:
        with pytest.raises(InvalidArchive, match=r"it is encrypted|it is packed with"):
            await fetch_tree(repository, record, target=place / "target")
        assert [] == list(place.iterdir())
        return
    await fetch_tree(repository, record, target=place / "target")
    assert things_in(archive) == standing(place / "target")


@pytest.mark.parametrize("chunk_size", [30_000, 400])
async def test_a_folder_that_is_named_twice(repository: LocalRepository, place: Path, chunk_size: int) -> None:
    """An empty folder with two entries, and one with something in it; also where an unpack that was cut is continued."""
    empty, full = Forged("empty/", mode=0o40755), Forged("full/", mode=0o40755)
    filler = octets(9, 100_000)
    archive = forged([empty, full, Forged("filler", filler), Forged("full/file", b"content"), full, empty])
    record = await stored(repository, archive, chunk_size=chunk_size)

    await cut_off(repository, record, place / "target")
    await fetch_tree(repository, record, target=place / "target")

    assert {"empty": Folder(), "filler": filler, "full/file": b"content"} == standing(place / "target")


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [200_000, 50_000])
async def test_an_archive_whose_offsets_are_wrapped(repository: LocalRepository, place: Path, chunk_size: int) -> None:
    """Offsets wrap above 4 GiB (1 MiB here), as those of macOS Finder. The tree is a seed of the next version."""
    options = TransferOptions(offset_space=SMALL_SPACE)
    contents = {f"folder/{number}": octets(number, 300_000) for number in range(5)}
    packed_entries = [finder_entry(name, content, space=SMALL_SPACE) for name, content in contents.items()]
    stored_entry = Forged("stored", octets(9, 800_000))
    archive = forged([*packed_entries, stored_entry], space=SMALL_SPACE)
    things = contents | {"stored": stored_entry.content}

    record = await stored(repository, archive, chunk_size=chunk_size)
    await cut_off(repository, record, place / "target", options=options)
    first = await fetch_record_tree(repository, record, target=place / "target", force=True, options=options)
    assert things == standing(place / "target")

    # Another mark at the end makes another zip, with the same chunks before it.
    record = await stored(repository, archive[:-2] + b"\2\0ok", chunk_size=chunk_size)
    seed = TreeSeed(place / "target", first.manifest, first.tail, offset_space=SMALL_SPACE)
    second = await fetch_record_tree(repository, record, target=place / "other", seeds=[seed], options=options)
    assert things == standing(place / "other")
    assert 500_000 < second.bytes_reused


@pytest.mark.parametrize("at", [2 * SMALL_SPACE, 1_400_076 - SMALL_SPACE])
async def test_an_archive_whose_wrapped_offsets_find_two_entries(repository: LocalRepository, place: Path, at: int) -> None:
    """It is refused before anything of it is written."""
    options = TransferOptions(offset_space=SMALL_SPACE)
    archive = wrapped(Forged("last", b"content"), decoys={at: b"PK\3\4"})
    with pytest.raises(InvalidArchive, match="lead to two different entries"):
        await fetch_record_tree(
            repository, await stored(repository, archive, chunk_size=100_000), target=place / "target", options=options
        )
    assert [] == list(place.iterdir())


async def test_an_empty_archive(repository: LocalRepository, place: Path) -> None:
    """An empty folder."""
    found = await fetch_tree(repository, await stored(repository, forged([])), target=place / "target")

    assert 0 == found.file_count
    assert {"target": Folder()} == standing(place)


async def test_what_fits_into_memory_is_read_once(repository: LocalRepository, place: Path) -> None:
    """A small archive costs one question for its manifest, and one for its bytes."""
    watched = WatchedRepository(repository)
    await fetch_tree(watched, await stored(repository, packed({"a": b"small", "b/c": b"too"})), target=place / "target")
    assert ["manifest", "get"] == watched.calls


async def test_a_preamble_is_not_a_part_of_the_tree(repository: LocalRepository, place: Path) -> None:
    """Megabytes of it, as in an archive that unpacks itself."""
    archive = forged([Forged("a", b"content")], preamble=octets(1, 2 * MIB))
    await fetch_tree(repository, await stored(repository, archive, chunk_size=300_000), target=place / "target")
    assert {"a": b"content"} == standing(place / "target")


async def test_progress_by_file_and_by_byte(repository: LocalRepository, place: Path) -> None:
    """It begins at 0, never moves back, and ends with the whole."""
    shown: list[Progress] = []
    record = await stored(repository, packed(TREE), chunk_size=50_000)
    await fetch_tree(repository, record, target=place / "target", report=shown.append)

    assert (0, 0, 0) == (shown[0].done, shown[0].moved, shown[0].files_done)
    assert [each.done for each in shown] == sorted(each.done for each in shown)
    assert [each.files_done for each in shown] == sorted(each.files_done for each in shown)
    assert (record.size, record.size, 6, 6) == (shown[-1].total, shown[-1].done, shown[-1].file_count, shown[-1].files_done)


async def test_files_have_the_usual_permissions(repository: LocalRepository, place: Path) -> None:
    """Files and folders have the modes that the umask leaves, as with any program."""
    umask = os.umask(0o027)
    try:
        await fetch_tree(repository, await stored(repository, packed(TREE)), target=place / "target")
    finally:
        os.umask(umask)
    modes = {str(path.relative_to(place)): stat.S_IMODE(path.lstat().st_mode) for path in place.rglob("*")}
    assert (0o750, 0o750, 0o640, 0o750) == (
        modes["target"],
        modes["target/logs"],
        modes["target/config.json"],
        modes["target/run.sh"],
    )


async def test_an_empty_folder_stays_what_it_is(repository: LocalRepository, place: Path) -> None:
    """A target that is there, such as a mounted volume, is filled, not replaced; and the result says that this is not atomic."""
    target = place / "target"
    target.mkdir(mode=0o700)
    before = target.stat()
    found = await fetch_tree(repository, await stored(repository, packed(TREE)), target=target)
    after = target.stat()

    assert TREE == standing(target)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert not found.is_atomic
    assert [target] == list(place.iterdir())


async def test_the_current_folder(repository: LocalRepository, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` has no name of its own, and serves as any other."""
    monkeypatch.chdir(place)
    await fetch_tree(repository, await stored(repository, packed(TREE)), target=Path())
    assert TREE == standing(place)


@pytest.mark.parametrize("what", ["file", "fifo", "folder", "hidden"])
async def test_what_stands_there_is_kept(repository: LocalRepository, place: Path, what: str) -> None:
    """A target that is neither new nor an empty folder: said before any file is asked for, with the option that replaces it."""
    target = place / "target"
    if what == "fifo":
        os.mkfifo(target)
    else:
        plant(place, {"target": b"theirs"} if what == "file" else {f"target/{'.' * (what == 'hidden')}file": b"theirs"})
    before = seen(place)
    record = await stored(repository, packed(TREE))
    watched = WatchedRepository(repository)
    with pytest.raises(TargetError, match=r"or have (all of )?it replaced"):
        await fetch_tree(watched, record, target=target)
    assert before == seen(place)
    assert watched.calls.count("get") <= 1  # the list of entries


async def test_a_target_in_no_folder(repository: LocalRepository, place: Path) -> None:
    """Folders that lead there are made, and readable as any others."""
    found = await fetch_tree(repository, await stored(repository, packed(TREE)), target=place / "absent/too/target")

    assert TREE == standing(place / "absent/too/target")
    assert not found.was_there
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE((place / "absent/too").stat().st_mode)


async def test_a_target_below_a_file(repository: LocalRepository, place: Path) -> None:
    """Said in one sentence, and nothing is made."""
    plant(place, {"file": b"theirs"})
    before = seen(place)
    with pytest.raises(TargetError, match="file is there and is not a folder"):
        await fetch_tree(repository, await stored(repository, packed(TREE)), target=place / "file/inner/target")
    assert before == seen(place)


async def test_a_refused_fetch_makes_no_folders(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """A zip file that is refused leaves nothing, also no folders above its target."""
    with pytest.raises(LimitExceeded):
        record = await push_bytes(repository, packed(TREE), tmp_path)
        await fetch_tree(repository, record, target=place / "absent/target", limits=ZipLimits(entries=1))
    assert [] == list(place.iterdir())


@pytest.mark.parametrize("force", [False, True])
async def test_the_same_tree_is_there(repository: LocalRepository, place: Path, tmp_path: Path, *, force: bool) -> None:
    """It is hashed and left as it is, and nothing but its list of entries is received."""
    record = (await push(repository, plant(tmp_path / "tree", TREE), name="model.zip", symlinks=Symlinks.KEEP)).record
    target = plant(place / "target", TREE)
    before = {path: path.lstat() for path in place.rglob("*")}
    found = await fetch_tree(repository, record, target=target, force=force)

    assert before.keys() == {path for path in place.rglob("*") if path.lstat().st_mtime_ns == before[path].st_mtime_ns}
    assert found.was_there
    assert found.bytes_received < 400_000  # the end of the zip, and what it shares a chunk with
    assert record.size == found.bytes_reused


async def test_a_name_that_is_like_one_of_a_fetch(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """Only what a fetch keeps in the folder itself does not count. A file in a folder with a dot does."""
    things = {"a": b"1", ".settings/b.filestore-c": b"2", "inner/.d.filestore-e": b"3"}
    record = (await push(repository, plant(tmp_path / "tree", things), name="model.zip")).record
    target = plant(place / "target", things)
    assert (await fetch_tree(repository, record, target=target)).was_there
    plant(target, {".settings/f.filestore-g": b"4"})
    assert not (await fetch_tree(repository, record, target=target, force=True)).was_there
    assert not (target / ".settings/f.filestore-g").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"weights/0.bin": octets(2, 3 * MIB)[:-1] + b"!"},
        {"weights/0.bin": octets(2, 3 * MIB - 1)},
        {"run.sh": b"#!/bin/sh\n"},
        {"latest": Link("weights/0.bin")},
        {"more": b""},
        {"logs": b""},
    ],
)
@pytest.mark.parametrize("is_pushed", [True, False])
async def test_almost_the_same_tree_is_there(
    repository: LocalRepository, place: Path, tmp_path: Path, change: dict[str, Planted], *, is_pushed: bool
) -> None:
    """It is refused, and left as it is: other content, size, permission, link or name."""
    archive = packed(TREE) if is_pushed else zip_of_others(TREE)
    record = await push_bytes(repository, archive, tmp_path)
    target = plant(place / "target", TREE | change)
    before = seen(place)
    with pytest.raises(TargetError, match="it is not empty"):
        await fetch_tree(repository, record, target=target)
    assert before == seen(place)


async def test_the_tree_of_another_program_is_there(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """A zip file that we would write differently is compared with its list of entries."""
    record = await push_bytes(repository, zip_of_others(TREE), tmp_path)
    target = plant(place / "target", TREE)

    assert (await fetch_tree(repository, record, target=target)).was_there
    assert [target] == list(place.iterdir())


async def test_a_folder_of_a_tree_is_there(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """It is compared with the list of entries of the directory."""
    record = (await push(repository, plant(tmp_path / "tree", TREE), name="model.zip", symlinks=Symlinks.KEEP)).record
    reference = f"{record.id}:weights"
    first = await fetch_tree(repository, reference, target=place / "weights")
    again = await fetch_tree(repository, reference, target=place / "weights")
    (place / "weights/1.bin").write_bytes(bytes(300_000))

    assert (False, True) == (first.was_there, again.was_there)
    with pytest.raises(TargetError, match="it is not empty"):
        await fetch_tree(repository, reference, target=place / "weights")


async def test_a_target_beside_which_nothing_can_be_made(repository: LocalRepository) -> None:
    """Said in one sentence that names the target."""
    with pytest.raises(TargetError, match="/proc/target cannot be written"):
        await fetch_tree(repository, await stored(repository, packed(TREE)), target=Path("/proc/target"))


async def test_force_replaces_a_tree(repository: LocalRepository, place: Path) -> None:
    """Files that only the old tree has are gone, and nothing else is left."""
    target = plant(place / "target", TREE)
    changed = {name: thing for name, thing in TREE.items() if name != "config.json"} | {"new/file": b"new"}
    found = await fetch_tree(repository, await stored(repository, packed(changed)), target=target, force=True)

    assert changed == standing(target)
    assert [target] == list(place.iterdir())
    assert found.is_atomic


async def test_force_copies_what_the_old_tree_has(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """Of a directory in which little changed, little is received."""
    changed = TREE | {"config.json": prose(9, 800)}
    record = (await push(repository, plant(tmp_path / "new", changed), name="model.zip", symlinks=Symlinks.KEEP)).record
    target = plant(place / "target", TREE)
    found = await fetch_tree(repository, record, target=target, force=True)

    assert changed == standing(target)
    assert found.bytes_received < 400_000
    assert found.bytes_reused >= 3 * MIB


async def test_force_over_the_same_tree(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """It is hashed, and left as it is."""
    record = (await push(repository, plant(tmp_path / "tree", TREE), name="model.zip", symlinks=Symlinks.KEEP)).record
    target = plant(place / "target", TREE)
    before = {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    found = await fetch_tree(repository, record, target=target, force=True)

    assert before == {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    assert record.size == found.bytes_reused


async def test_force_replaces_a_file(repository: LocalRepository, place: Path) -> None:
    """If the file is the zip itself, only its end is received again."""
    archive = packed(TREE)
    plant(place, {"target": archive})
    found = await fetch_tree(repository, await push_bytes(repository, archive, place.parent), target=place / "target", force=True)

    assert TREE == standing(place / "target")
    assert found.bytes_received < 500_000


@pytest.mark.parametrize("force", [True, False])
async def test_a_crash_between_two_renames_is_put_right(
    repository: LocalRepository,
    place: Path,
    force: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """The old tree, which had been moved aside, is back; and is replaced where that is asked for again."""
    target = plant(place / "target", {"older": b"version"})
    record = await stored(repository, packed(TREE), chunk_size=50_000)
    target.rename(aside_of(target))
    if force:
        await fetch_tree(repository, record, target=target, force=True)
        assert TREE == standing(target)
    else:
        with pytest.raises(TargetError, match="it is not empty"):
            await fetch_tree(repository, record, target=target)
        assert {"older": b"version"} == standing(target)
    assert [target] == list(place.iterdir())


async def test_what_was_moved_aside_and_not_removed_is_removed(repository: LocalRepository, place: Path) -> None:
    """A crash right after the second rename leaves the old tree under a hidden name: the next unpack to there removes it."""
    target = plant(place / "target", {"new": b"version"})
    plant(aside_of(target), {"older": b"version"})
    with pytest.raises(TargetError):
        await fetch_tree(repository, await stored(repository, packed(TREE)), target=target)
    assert [target] == list(place.iterdir())


async def test_a_mounted_target_is_replaced_inside(
    repository: LocalRepository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted volume cannot be moved aside, so its names are moved one by one."""
    target = plant(place / "target", {"older": b"version", "weights/old.bin": b"old"})
    inode = target.stat().st_ino
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    found = await fetch_tree(repository, await stored(repository, packed(TREE)), target=target, force=True)

    assert TREE == standing(target)
    assert inode == target.stat().st_ino
    assert not found.is_atomic


@pytest.mark.parametrize("kind", ["moving", "replacing"])
@pytest.mark.parametrize("force", [True, False])
async def test_what_was_decided_is_carried_on_by_whoever_comes(
    repository: LocalRepository,
    place: Path,
    kind: str,
    force: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """A crash in the middle of a replacement in place, and then another tree is fetched to there: never a mixture."""
    target = plant(place / "target", {"published/1": b"1"} if kind == "moving" else {"old/that/could/not/be/moved": b"1"})
    first = await stored(repository, packed({"published/1": b"1", "waiting/2": b"2", "older": b"new"}), name="first")
    stem = staging_folder(target, first.digest).name.removesuffix(".filestore-partial")
    waiting = {"waiting/2": b"2", "older": b"new"} | ({} if kind == "moving" else {"published/1": b"1"})
    plant(target / f"{stem}.filestore-{kind}", waiting)
    plant(target / aside_of(target).name, {"older": b"version", "gone": b"1"})
    second = await stored(repository, packed(TREE), name="second", chunk_size=50_000)
    if force:
        await fetch_tree(repository, second, target=target, force=True)
        assert TREE == standing(target)
    else:
        with pytest.raises(TargetError, match="it is not empty"):
            await fetch_tree(repository, second, target=target)
        assert {"published/1": b"1", "waiting/2": b"2", "older": b"new"} == standing(target)
    assert [target] == list(place.iterdir())


async def test_what_a_user_puts_in_place_of_what_stands_aside_is_kept(repository: LocalRepository, place: Path) -> None:
    """The old content does not replace it, even with --force; the user must decide."""
    target = plant(place / "target", {"a": b"mine", aside_of(place / "target").name + "/a": b"older"})
    before = standing(target)
    with pytest.raises(TargetError, match="'a' was put there meanwhile, and the old one is "):
        await fetch_tree(repository, await stored(repository, packed(TREE)), target=target, force=True)
    assert before == standing(target)


async def test_limits_are_those_of_the_caller(repository: LocalRepository, place: Path) -> None:
    """And a refusal by one of them says which setting it is."""
    record = await stored(repository, packed(TREE))
    with pytest.raises(LimitExceeded, match="zip_entries"):
        await fetch_tree(repository, record, target=place / "target", limits=ZipLimits(entries=3))


async def test_staging_in_an_empty_folder_is_continued(repository: LocalRepository, place: Path) -> None:
    """It does not make the folder one that is not empty."""
    target = place / "target"
    target.mkdir()
    record = await stored(repository, packed(TREE), chunk_size=50_000)
    await cut_off(repository, record, target)
    assert staging_in(target).exists()
    await fetch_tree(repository, record, target=target)
    assert TREE == standing(target)


async def test_seeds_are_copied_and_not_trusted(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """Chunks of an older tree are copied and changed ones received. Missing and wrong seeds do no harm."""
    things = random_things(5, count=20, large_count=3)
    record = (await push(repository, plant(tmp_path / "tree", things))).record
    first = await fetch_tree(repository, record, target=place / "first")
    large = max(things, key=lambda name: len(content_of(things[name])))
    (place / "first" / large).write_bytes(b"changed")
    seeds: list[Seed] = [
        TreeSeed(place / "gone", first.manifest, first.tail),
        TreeSeed(place / "first", first.manifest, b"rubbish"),
        TreeSeed(place / "first", first.manifest, first.tail),
        FileSeed(place / "gone", first.manifest),
    ]
    found = await fetch_record_tree(repository, record, target=place / "second", seeds=seeds)

    assert things == standing(place / "second")
    assert found.bytes_received >= len(content_of(things[large]))
    assert found.bytes_reused >= found.size - len(content_of(things[large])) - 4 * MIB


@pytest.mark.slow
async def test_a_file_is_a_seed_of_the_tree_in_it(repository: LocalRepository, place: Path, tmp_path: Path) -> None:
    """A zip that is here as a file is unpacked without receiving anything, packed entries included."""
    archive = forged([Forged("stored", octets(1, MIB)), Forged("packed", prose(2, 2 * MIB), deflated=True)])
    record = await push_bytes(repository, archive, tmp_path)
    found: FetchTreeResult | None = None
    for target in ("first", "second"):
        seeds = [] if found is None else [FileSeed(tmp_path / "pushed.zip", found.manifest)]
        found = await fetch_record_tree(repository, record, target=place / target, seeds=seeds)
        assert things_in(archive) == standing(place / target)
    assert found is not None
    assert 0 == found.bytes_received


@pytest.mark.slow
async def test_long_runs_are_copied_by_the_operating_system(
    repository: LocalRepository, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a file system that can will share them; where it refuses, they are read and written."""
    tree = plant(tmp_path / "tree", {"a/weights.bin": octets(1, 9 * MIB), "b/weights.bin": octets(2, 9 * MIB)})
    record = (await push(repository, tree)).record
    first = await fetch_tree(repository, record, target=place / "first")
    copied: list[int] = []
    plain = os.copy_file_range

    def copy(*arguments: int) -> int:
        copied.append(plain(*arguments))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", copy)
    found = await fetch_record_tree(
        repository, record, target=place / "second", seeds=[TreeSeed(place / "first", first.manifest, first.tail)]
    )
    assert 18 * MIB == sum(copied)
    assert found.size - MIB < found.bytes_reused

    def refuse(*_: int) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    found = await fetch_record_tree(
        repository, record, target=place / "third", seeds=[TreeSeed(place / "first", first.manifest, first.tail)]
    )
    assert standing(tree) == standing(place / "second") == standing(place / "third")
    assert found.size - MIB < found.bytes_reused


async def test_a_failing_disk_is_named(repository: LocalRepository, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path of the file, as it was to be called."""
    record = await stored(repository, packed(TREE), chunk_size=50_000)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError, match=r"place/target/.*failed: Input/output error"):
        await fetch_tree(repository, record, target=place / "target")


async def test_staging_that_belongs_to_someone_else(
    repository: LocalRepository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner could change verified content, so it is neither used nor removed."""
    record = await stored(repository, packed(TREE), chunk_size=50_000)
    await cut_off(repository, record, place / "target")
    (left,) = place.glob(".*.filestore-partial")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    await fetch_tree(repository, record, target=place / "target")
    assert [left] == list(place.glob(".*.filestore-partial"))
    assert (place / "target").stat().st_ino != left.stat().st_ino


def test_staging_is_published_only_whole(place: Path) -> None:
    """A tree with a missing file is an error."""
    archive = packed({"a": b"content"})
    end = find_end(archive, len(archive))
    tail = archive[end.start :]
    members = parse_central_directory(tail, end)
    with TreeStaging(place / "staging", place / "target", Zip(members, end, tail)) as staging:
        staging.prepare()
        with pytest.raises(InvalidArchive, match="a part of its content is missing"):
            staging.finish()
    shutil.rmtree(place / "staging")


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name not in REFUSED])
def test_members_that_are_not_held_in_memory(name: str) -> None:
    """They are those that are, one by one, in slices and in all."""
    archive = (FIXTURES / name).read_bytes()
    end = find_end(archive[-TAIL_SIZE:], len(archive))
    tail = archive[end.start :]
    members = parse_central_directory(tail, end)
    light = Members(tail, end)

    assert members == list(light)
    assert members[1:-1] == light[1:-1]
    assert [member.start for member in members] == list(light.starts)


async def test_a_tree_is_synced_before_it_appears(
    repository: LocalRepository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a call that syncs a whole file system, each file and each folder is synced."""
    record = await stored(repository, packed(TREE))
    synced: list[Path] = []

    def sync(path: Path) -> None:
        assert not (place / "target").exists()
        synced.append(path)

    monkeypatch.setattr(system_files, "_syncfs", lambda: None)
    monkeypatch.setattr(system_files, "sync_path", sync)
    await fetch_tree(repository, record, target=place / "target")

    (staging,) = {path for path in synced if path.parent == place}
    folders = {"", "logs", "weights"}
    files = {name for name, thing in TREE.items() if not isinstance(thing, (Link, Folder))}
    assert sorted(staging / name for name in folders | files) == sorted(synced)


def test_a_tree_is_synced_by_one_call(tmp_path: Path) -> None:
    """This is used if the C library has the call. A failed sync is an error."""
    sync_tree(plant(tmp_path / "tree", TREE))
    with pytest.raises(FileNotFoundError):
        sync_tree(tmp_path / "absent")
