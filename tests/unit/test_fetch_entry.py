"""Fetch one file or one folder of a stored directory, by a path that follows a reference."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.progress import Progress
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, Interrupted, InvalidArchive, InvalidReference, StorageFull, TargetError
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Moved, Repository, Wanted
from filestore.system import files as system_files
from filestore.transfer.fetch import fetch, fetch_entry
from filestore.transfer.fetch_entry import find_entry
from filestore.transfer.fetch_tree import fetch_entry_tree, fetch_tree
from filestore.transfer.leftovers import leftovers
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_tree import StoredTree
from filestore.transfer.target import tree_label
from tests.support.archives import Forged, deflated, forged
from tests.support.fetching_trees import stored, things_in
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, Script, plant, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20
FIXTURES = Path(__file__).parents[1] / "golden/archives"
REFUSED = {"infozip-encrypted.zip", "infozip-bzip2.zip", "7zip-deflate64.zip", "7zip-lzma.zip", "7zip-aes.zip"}
ARCHIVES = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix != ".sh" and path.name not in REFUSED]
SMALL_BATCHES = TransferOptions(batch_size=5 * MIB, batches_in_flight=1)
TREE: dict[str, Planted] = {
    "a/x.bin": octets(1, 700_000),
    "a/y/deep.txt": prose(2, 900),
    "config.json": prose(1, 700),
    "empty.txt": b"",
    "latest": Link("weights/1.bin"),
    "logs": Folder(),
    "run.sh": Script(b"#!/bin/sh\n"),
    "tokenizer/big.bin": Script(octets(5, SEGMENT_MIN)),
    "tokenizer/inner/link": Link("../vocab.txt"),
    "tokenizer/inner/none": Folder(),
    "tokenizer/merges.txt": prose(3, 30_000),
    "tokenizer/vocab.txt": prose(4, SEGMENT_MIN - 1),
    "tokenizer.json": b"next to the folder",
    "weights/0.bin": octets(2, 12 * MIB),
    "weights/1.bin": octets(3, 900_000),
}


@pytest.fixture
async def model(repository: LocalRepository, tmp_path: Path) -> Record:
    """The record of a directory."""
    return (await push(repository, plant(tmp_path / "model", TREE), symlinks=Symlinks.KEEP)).record


def below(folder: str, things: dict[str, Planted] = TREE) -> dict[str, Planted]:
    """The things in a folder."""
    return {path.removeprefix(f"{folder}/"): thing for path, thing in things.items() if path.startswith(f"{folder}/")}


def content(thing: Planted) -> bytes:
    """The content of a file."""
    if isinstance(thing, Script):
        return thing.content
    assert isinstance(thing, bytes)
    return thing


@pytest.mark.parametrize("path", [path for path, thing in TREE.items() if isinstance(thing, bytes | Script)])
async def test_a_file_of_a_directory(repository: LocalRepository, model: Record, tmp_path: Path, path: str) -> None:
    """It is written as it was pushed, and only the chunks are received that have a part of it."""
    tree = await StoredTree.open(repository, model.digest)
    entry = tree.entry(path)
    assert entry is not None
    assert entry.extent is not None
    watched = WatchedRepository(repository)
    await StoredTree.open(watched, model.digest)
    opening, watched.chunks_got = watched.chunks_got, 0

    result = await fetch(watched, f"model.zip:{path}", target=tmp_path / "file")

    assert content(TREE[path]) == (tmp_path / "file").read_bytes()
    assert isinstance(TREE[path], Script) is bool(stat.S_IXUSR & (tmp_path / "file").stat().st_mode)
    assert len(tree.overlapping(range(*entry.extent))) + opening == watched.chunks_got
    assert (model, tmp_path / "file", entry.size) == (result.record, result.path, result.size)
    assert (0 < result.bytes_received) is (entry.size > 0)
    (tmp_path / "alone").write_bytes(content(TREE[path]))
    assert (await push(repository, tmp_path / "alone")).record.digest == result.manifest.digest


@pytest.mark.parametrize("folder", ["a", "a/y", "tokenizer", "tokenizer/inner", "logs", "weights", "tokenizer/inner/none"])
async def test_a_folder_of_a_directory(repository: LocalRepository, model: Record, tmp_path: Path, folder: str) -> None:
    """It is written with all that is in it, also a link that leads inside it, and nothing else is received."""
    things = below(folder)
    if folder == "tokenizer/inner":
        with pytest.raises(InvalidArchive, match="leads out of the tree"):
            await fetch_tree(repository, f"model.zip:{folder}", target=tmp_path / "target")
        assert not (tmp_path / "target").exists()
        return
    tree = await StoredTree.open(repository, model.digest)
    needed = {
        number
        for place in tree.member_numbers(folder)
        for number in tree.overlapping(range(tree.members[place].start, tree.members[place].end))
    }
    watched = WatchedRepository(repository)
    await StoredTree.open(watched, model.digest)
    opening, watched.chunks_got = watched.chunks_got, 0

    result = await fetch_tree(watched, f"model.zip:{folder}", target=tmp_path / "target")

    assert things == standing(tmp_path / "target")
    assert len(needed) + opening == watched.chunks_got
    assert sum(tree.manifest.chunks.size_at(number) for number in needed) == result.size
    assert sum(not isinstance(thing, Folder) for thing in things.values()) == result.file_count
    assert [] == leftovers(tmp_path)


async def test_the_directory_itself(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """An empty path means the whole tree, which is not a file."""
    await fetch_tree(repository, f"{model.id}:", target=tmp_path / "target")
    assert TREE == standing(tmp_path / "target")
    with pytest.raises(InvalidReference, match="it is a folder"):
        await fetch(repository, "model.zip:", target=tmp_path / "file")


async def test_every_kind_of_reference(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """A path may follow an id, a digest, a revision, and stand in a `Reference`."""
    texts = [f"{model.id}:config.json", f"{model.digest}:config.json", "model.zip@~0:config.json"]
    wanteds: list[Wanted] = [*texts, Reference(name="model.zip", entry_path="config.json")]
    for number, wanted in enumerate(wanteds):
        await fetch(repository, wanted, target=tmp_path / str(number))
        assert TREE["config.json"] == (tmp_path / str(number)).read_bytes()


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("missing", EntryNotFound, "'model.zip' has no entry 'missing'"),
        ("a/missing", EntryNotFound, "has no entry 'a/missing'"),
        ("config.json/x", EntryNotFound, "has no entry"),
        ("a", InvalidReference, "it is a folder; fetch it as a tree"),
        ("logs", InvalidReference, "it is a folder"),
        ("latest", InvalidReference, "it is a symbolic link to 'weights/1.bin'; give the path that it leads to"),
    ],
)
async def test_what_fetch_refuses(
    repository: LocalRepository, model: Record, tmp_path: Path, *, path: str, error: type[Exception], words: str
) -> None:
    """The error says what is at the path, and nothing is written."""
    assert model.name == "model.zip"
    with pytest.raises(error, match=words):
        await fetch(repository, f"model.zip:{path}", target=tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("missing", EntryNotFound, "'model.zip' has no entry 'missing'"),
        ("config.json", InvalidReference, "it is a file and not a folder"),
        ("latest", InvalidReference, "it is a symbolic link"),
    ],
)
async def test_what_fetch_tree_refuses(
    repository: LocalRepository, model: Record, tmp_path: Path, *, path: str, error: type[Exception], words: str
) -> None:
    """As for a file."""
    assert model.name == "model.zip"
    with pytest.raises(error, match=words):
        await fetch_tree(repository, f"model.zip:{path}", target=tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_path_in_a_single_file(repository: LocalRepository, tmp_path: Path) -> None:
    """Only a zip file has entries."""
    (tmp_path / "config.json").write_bytes(b"{}")
    await push(repository, tmp_path / "config.json")
    for call in (fetch, fetch_tree):
        with pytest.raises(InvalidReference, match=r"'config.json:x' names no file: it is a single file and not a directory"):
            await call(repository, "config.json:x", target=tmp_path / "target")


async def test_the_version_is_in_the_error(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """What the user typed is repeated without the path, so that a command that lists the entries can be made of it."""
    for reference in ("model.zip@~0", model.id, str(model.digest)):
        with pytest.raises(EntryNotFound, match=f"'{reference}' has no entry 'missing'"):
            await fetch(repository, f"{reference}:missing", target=tmp_path / "file")


async def test_the_target_of_a_file(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """The rules for targets are those of all fetches: nothing is replaced without force, and what is there already stays."""
    assert model.name == "model.zip"
    for path in ("config.json", "weights/0.bin"):
        target = tmp_path / "file"
        await fetch(repository, f"model.zip:{path}", target=target, force=True)
        status = target.stat()
        await fetch(repository, f"model.zip:{path}", target=target)
        assert status.st_ino == target.stat().st_ino
        target.write_bytes(b"other")
        with pytest.raises(TargetError):
            await fetch(repository, f"model.zip:{path}", target=target)
        made = tmp_path / path / "new/file"
        await fetch(repository, f"model.zip:{path}", target=made)
        assert (await fetch(repository, f"model.zip:{path}", target=made)).was_there
        with pytest.raises(TargetError):
            await fetch(repository, f"model.zip:{path}", target=target / "below/a/file")
        with pytest.raises(TargetError):
            await fetch(repository, f"model.zip:{path}", target=tmp_path, force=True)
    assert [] == leftovers(tmp_path)


async def gets_of_open(repository: Repository, record: Record) -> int:
    """How often a repository is asked for chunks to open a tree."""
    watched = WatchedRepository(repository)
    await StoredTree.open(watched, record.digest)
    return watched.calls.count("get")


async def test_a_large_file_is_resumed(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """What arrived before an error is not received again."""
    failing = FailingRepository(repository, after=await gets_of_open(repository, model) + 1)
    found = await find_entry(failing, model, Reference(id=model.id, entry_path="weights/0.bin"))
    with pytest.raises(Interrupted):
        await fetch_entry(failing, model, found, target=tmp_path / "file", options=SMALL_BATCHES)
    result = await fetch(repository, "model.zip:weights/0.bin", target=tmp_path / "file")
    assert TREE["weights/0.bin"] == (tmp_path / "file").read_bytes()
    assert 0 < result.bytes_reused < result.size


async def test_a_folder_is_resumed(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """What arrived before an error is not received again, and what another folder left is not mixed in."""
    failing = FailingRepository(repository, after=await gets_of_open(repository, model) + 1)
    found = await find_entry(failing, model, Reference(id=model.id, entry_path="weights"))
    with pytest.raises(Interrupted):
        await fetch_entry_tree(failing, model, found, target=tmp_path / "target", options=SMALL_BATCHES)
    result = await fetch_tree(repository, "model.zip:weights", target=tmp_path / "target")
    assert below("weights") == standing(tmp_path / "target")
    assert 0 < result.bytes_reused < result.size


async def test_a_folder_with_a_name_that_a_fetch_uses(repository: LocalRepository, tmp_path: Path) -> None:
    """It would be taken for what an interrupted fetch has left, so it is refused as it is for a whole tree."""
    label = tree_label("target")
    things: dict[str, Planted] = {f"a/.{'0' * 32}-{label}.filestore-moving/x": b"x"}
    await push(repository, plant(tmp_path / "model", things))
    with pytest.raises(TargetError, match="which a fetch to this target uses itself"):
        await fetch_tree(repository, "model.zip:a", target=tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_two_folders_with_the_same_chunks(repository: LocalRepository, tmp_path: Path) -> None:
    """Neither the one nor the whole tree is taken for the other, also where it replaces it."""
    things: dict[str, Planted] = {"a/1.txt": b"one", "b/2.txt": b"two"}
    await push(repository, plant(tmp_path / "small", things))
    target = tmp_path / "target"
    for wanted, expected in [
        ("small.zip", things),
        ("small.zip:a", below("a", things)),
        ("small.zip:b", below("b", things)),
        ("small.zip:", things),
    ]:
        await fetch_tree(repository, wanted, target=target, force=True)
        assert expected == standing(target)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("chunk_size", [MIB, 997])
async def test_the_entries_of_foreign_archives(repository: LocalRepository, tmp_path: Path, name: str, chunk_size: int) -> None:
    """Each file and each folder is written as the tool meant it, also where a folder's entries are not neighbours."""
    archive = (FIXTURES / name).read_bytes()
    things = things_in(archive)
    await stored(repository, archive, name="archive.zip", chunk_size=chunk_size)
    for number, (path, thing) in enumerate(things.items()):
        if isinstance(thing, bytes | Script):
            await fetch(repository, f"archive.zip:{path}", target=tmp_path / f"{number}")
            assert content(thing) == (tmp_path / f"{number}").read_bytes()
    folders = {path.rpartition("/")[0] for path in things} - {""}
    for number, folder in enumerate(sorted(folders)):
        expected = below(folder, things)
        if any(isinstance(thing, Link) and thing.target.startswith("..") for thing in expected.values()):
            continue
        await fetch_tree(repository, f"archive.zip:{folder}", target=tmp_path / f"folder-{number}")
        assert expected == standing(tmp_path / f"folder-{number}")


@pytest.mark.parametrize("chunk_size", [MIB, 50_000, 997])
@pytest.mark.parametrize("is_deflated", [False, True])
async def test_a_folder_whose_entries_are_scattered(
    repository: LocalRepository, tmp_path: Path, chunk_size: int, *, is_deflated: bool
) -> None:
    """The bytes between its entries belong to others, and are neither checked nor written."""
    files = {f"{'ab'[number % 2]}/{number}": octets(number, 150_000 * (number % 3)) for number in range(8)}
    packed = forged(
        [Forged("b/", mode=0o40755)]
        + [Forged(path, each, deflated=is_deflated and number % 3 == 1) for number, (path, each) in enumerate(files.items())],
        preamble=b"#!/bin/sh\n" + bytes(2000),
    )
    await stored(repository, packed, name="archive.zip", chunk_size=chunk_size)
    for folder in "ab":
        await fetch_tree(repository, f"archive.zip:{folder}", target=tmp_path / folder)
        assert below(folder, dict(files)) == standing(tmp_path / folder)
    for path, each in files.items():
        await fetch(repository, f"archive.zip:{path}", target=tmp_path / path.replace("/", "-"))
        assert each == (tmp_path / path.replace("/", "-")).read_bytes()


async def test_a_large_file_that_has_no_chunks_of_its_own(repository: LocalRepository, tmp_path: Path) -> None:
    """It is not held in memory as a whole, and its content is checked before it appears."""
    large = prose(9, MIB) * 20
    for crc in (None, 1):
        packed = forged([Forged("a/large", large, deflated=True, data=deflated(large, level=1), crc=crc), Forged("b", b"x")])
        record = await stored(repository, packed, chunk_size=300_000)
        target = tmp_path / "large"
        target.unlink(missing_ok=True)
        if crc is None:
            seen: list[Progress] = []
            result = await fetch(repository, f"{record.id}:a/large", target=target, report=seen.append)
            assert large == target.read_bytes()
            assert (len(large), 1) == (seen[-1].done, seen[-1].files_done)
            assert result.bytes_received < len(large)
        else:
            with pytest.raises(InvalidArchive, match="checksum"):
                await fetch(repository, f"{record.id}:a/large", target=target)
            assert not target.exists()
        assert [] == leftovers(tmp_path)


async def test_a_target_that_cannot_be_written(
    repository: LocalRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder for it, or no space: the error comes before anything is received."""
    content = prose(9, MIB) * 17
    packed = forged([Forged("large", content, deflated=True, data=deflated(content, level=1))])
    record = await stored(repository, packed)
    found = await find_entry(repository, record, Reference(id=record.id, entry_path="large"))
    watched = WatchedRepository(repository)
    with pytest.raises(TargetError):
        await fetch_entry(watched, record, found, target=Path("/proc/none/large"))
    monkeypatch.setattr(system_files, "free_space", lambda _: 2 * found.entry.size - 1)
    with pytest.raises(StorageFull):
        await fetch_entry(watched, record, found, target=tmp_path / "large")
    assert 0 == watched.chunks_got
    assert not (tmp_path / "large").exists()


async def test_many_fetches_of_entries_side_by_side(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """Two of the same to the same target, and others beside them, do not disturb each other."""
    assert model.name == "model.zip"
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(fetch(repository, "model.zip:weights/0.bin", target=tmp_path / "0.bin"))
            group.create_task(fetch(repository, "model.zip:config.json", target=tmp_path / "config.json"))
        group.create_task(fetch_tree(repository, "model.zip:tokenizer", target=tmp_path / "tokenizer"))
        group.create_task(fetch_tree(repository, "model.zip:weights", target=tmp_path / "weights"))
    assert TREE["weights/0.bin"] == (tmp_path / "0.bin").read_bytes()
    assert TREE["config.json"] == (tmp_path / "config.json").read_bytes()
    assert below("tokenizer") == standing(tmp_path / "tokenizer")
    assert below("weights") == standing(tmp_path / "weights")
    assert [] == leftovers(tmp_path)


async def test_the_manifest_of_an_entry(repository: LocalRepository, model: Record, tmp_path: Path) -> None:
    """A result has the chunks of the file alone, however it was fetched."""
    result = await fetch(repository, "model.zip:tokenizer/vocab.txt", target=tmp_path / "file")
    assert Manifest.parse(result.manifest.encoded) == result.manifest
    assert (tmp_path / "file").stat().st_size == result.manifest.size
    assert model.digest != result.manifest.digest


class FailingRepository(WatchedRepository):
    """The connection ends after some answers."""

    def __init__(self, inner: Repository, *, after: int) -> None:
        super().__init__(inner)
        self._left = after

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        self._left -= 1
        if self._left < 0:
            raise Interrupted("http://localhost", "it ended")
        return await super().get(digests, buffer, moved=moved)
