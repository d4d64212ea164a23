from __future__ import annotations

import asyncio
import hashlib
import os
import random
import zlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.errors import (
    ChunksMissing,
    EntryNotFound,
    FilestoreError,
    InvalidArchive,
    InvalidInput,
    InvalidName,
    LimitExceeded,
    SourceChanged,
)
from filestore.format.zip.checksum import crc32
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.repository.local import LocalRepository
from filestore.system import threads
from filestore.system.fair_pool import FairPool
from filestore.system.threads import in_thread
from filestore.transfer.edits import (
    CopyFile,
    DeleteFile,
    DeleteFolder,
    Operation,
    PutBytes,
    PutChunks,
    PutFile,
    PutSpan,
    Sums,
    TreeEdit,
)
from filestore.transfer.edits.edit import _Prepared, edit_threads
from filestore.transfer.edits.operations import checked_operations
from filestore.transfer.edits.stored_entries import ChunkReader
from filestore.transfer.push import push, send
from filestore.transfer.stored_tree import EntryKind, StoredTree
from tests.support.archives import zip_of
from tests.support.editing import METHODS, edited, foreign_zip, pushed_manifest, pushed_tree, stored_chunks
from tests.support.fetching_trees import memory_repository
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, Script, entries_of
from tests.support.watched import WatchedRepository

MIB = 1 << 20
WEIGHTS = octets(1, 3 * MIB)
THINGS: dict[str, Planted] = {
    "README.md": b"a model",
    "config.json": b"{}",
    "logs": Folder(),
    "model.safetensors": WEIGHTS,
    "now": Link("run.sh"),
    "onnx/config.json": b"[]",
    "onnx/model.onnx": octets(2, 300_000),
    "run.sh": Script(b"#!/bin/sh"),
    "tokenizer/vocab.txt": prose(1, 200_000),
}


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[LocalRepository]:
    """A repository in memory."""
    async with memory_repository(tmp_path) as repository:
        yield repository


@pytest.fixture
async def tree(repository: LocalRepository, tmp_path: Path) -> StoredTree:
    """`THINGS`, as they were pushed."""
    return await pushed_tree(repository, tmp_path / "model", THINGS)


@pytest.fixture
async def small_tree(repository: LocalRepository, tmp_path: Path) -> StoredTree:
    """`THINGS` with short contents."""
    return await pushed_tree(repository, tmp_path / "small", {**THINGS, "model.safetensors": b"m", "onnx/model.onnx": b"o"})


def _content(thing: Planted) -> bytes:
    if isinstance(thing, Script):
        return thing.content
    return thing if isinstance(thing, bytes) else b""


def _sums(content: bytes) -> Sums:
    return Sums(hashlib.sha256(content).digest(), hashlib.sha1(b"blob %d\0" % len(content) + content).digest())


async def test_only_what_is_around_a_change_is_read(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """The header segment of the file, and the last one, which has the central directory; but no large file."""
    watched = WatchedRepository(repository)
    result, _ = await edited(watched, tree, [PutBytes("README.md", b"another model")])
    assert await pushed_manifest(tmp_path / "expected", {**THINGS, "README.md": b"another model"}) == result.manifest
    assert len(b"another model") + len(b"{}") + len(b"#!/bin/sh") + 200_000 == result.bytes_read
    assert 2 == watched.chunks_put
    large = {chunk.digest for chunk in tree.manifest.chunks if chunk.size >= MIB // 4}
    assert {chunk.digest for chunk in result.manifest.chunks} >= large


async def test_a_change_in_many_small_files_reads_a_few_of_their_chunks(repository: LocalRepository, tmp_path: Path) -> None:
    """Chunks of the header segment that still hold are recalled."""
    things: dict[str, Planted] = {f"{place:03}": octets(place, 60_000) for place in range(200)}
    tree = await pushed_tree(repository, tmp_path / "model", things)
    result, _ = await edited(repository, tree, [PutBytes("100", b"new")])
    assert await pushed_manifest(tmp_path / "expected", {**things, "100": b"new"}) == result.manifest
    assert result.bytes_read < 5 * MIB < result.size


async def test_a_large_file_that_moves_is_not_read(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """Its chunks are the same at another path; the checksum of its content is in the central directory."""
    operations: list[Operation] = [CopyFile("weights/a.safetensors", "model.safetensors"), DeleteFile("model.safetensors")]
    result, _ = await edited(repository, tree, operations)
    expected = {**THINGS, "weights/a.safetensors": WEIGHTS}
    del expected["model.safetensors"]
    assert await pushed_manifest(tmp_path / "expected", expected) == result.manifest
    assert result.bytes_read < MIB // 4
    [entry] = result.entries
    alone = await stored_chunks(repository, tmp_path / "alone", WEIGHTS)
    assert ("weights/a.safetensors", alone.digest, len(WEIGHTS), crc32(WEIGHTS)) == entry[:4]


@pytest.mark.parametrize("crc", [None, zlib.crc32(WEIGHTS)])
async def test_a_file_is_put_by_its_chunks(
    repository: LocalRepository, tree: StoredTree, tmp_path: Path, crc: int | None
) -> None:
    """It is read once if its checksum is not given, and not at all if it is."""
    alone = await stored_chunks(repository, tmp_path / "alone", WEIGHTS)
    before = tree.manifest.chunks
    result, _ = await edited(repository, None, [PutChunks("model.bin", alone.chunks, crc)])
    assert await pushed_manifest(tmp_path / "expected", {"model.bin": WEIGHTS}) == result.manifest
    assert (len(WEIGHTS) if crc is None else 0) == result.bytes_read
    assert alone.digest == result.entries[0].digest
    assert result.entries[0].sums is None
    assert result.tree_digests(None) is None
    assert before == tree.manifest.chunks


async def test_twenty_gigabytes_are_put_by_their_chunks(repository: LocalRepository, tmp_path: Path) -> None:
    """Nothing of them is read, whatever the size. The headers have their wide forms."""
    [chunk] = (await stored_chunks(repository, tmp_path / "zeros", bytes(CHUNK_LIMIT))).chunks
    count = (20 << 30) // CHUNK_LIMIT
    result, tree = await edited(repository, None, [PutChunks("model.bin", [chunk] * count, crc=1), PutBytes("z", b"z")])
    assert 1 == result.bytes_read
    entry = tree.entry("model.bin")
    assert entry is not None
    assert count * CHUNK_LIMIT == entry.size
    assert [chunk] * count == tree.chunks_of(entry)
    again, tree = await edited(repository, tree, [PutBytes("README.md", b"large")])
    assert len(b"large") + 1 == again.bytes_read
    assert ["README.md", "model.bin", "z"] == [each.path for each in tree.entries(recursive=True)]


async def test_what_is_put_is_known_by_its_digests(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """The file digest, SHA-256, git's blob id and the place in the zip of each new file."""
    contents = {"empty": b"", "small": b"small", "large": octets(7, MIB), "span": b"span", "model": octets(8, MIB)}
    (tmp_path / "large").write_bytes(contents["large"])
    (tmp_path / "spool").write_bytes(b"...span" + contents["model"])
    descriptor = os.open(tmp_path / "spool", os.O_RDONLY)
    try:
        operations: list[Operation] = [
            PutBytes("empty", b""),
            PutBytes("small", b"small"),
            PutFile("large", tmp_path / "large"),
            PutSpan("span", descriptor, 3, 4),
            PutSpan("model", descriptor, 7, MIB),
        ]
        result, new = await edited(repository, tree, operations)
    finally:
        os.close(descriptor)
    assert await pushed_manifest(tmp_path / "expected", {**THINGS, **contents}) == result.manifest
    assert sorted(contents) == [entry.path for entry in result.entries]
    for entry in result.entries:
        content = contents[entry.path]
        alone = await stored_chunks(repository, tmp_path / "alone", content)
        assert (alone.digest, len(content), crc32(content), _sums(content)) == (entry.digest, entry.size, entry.crc, entry.sums)
        stored = new.entry(entry.path)
        assert stored is not None
        assert stored.extent is not None
        assert stored.extent.start == entry.start
    assert new.entry("logs") is not None


async def test_the_memory_of_an_edit_follows_what_is_new(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """Not the size of the tree, unless another program made it. It has a limit."""
    small, large = (TreeEdit(repository, tree, [PutBytes("a", bytes(size))]).memory for size in (10, 10 * MIB))
    assert 20 * MIB == large - small + 20
    known = TreeEdit(repository, tree, [PutChunks("a", [Chunk(Digest(bytes(32)), MIB)] * 1000, 1)])
    unknown = TreeEdit(repository, tree, [PutChunks("a", [Chunk(Digest(bytes(32)), MIB)] * 1000)])
    assert known.memory < 48 * MIB < unknown.memory < 128 * MIB
    (tmp_path / "foreign.zip").write_bytes(foreign_zip({"model.onnx": prose(1, MIB)}, random.Random(1), methods=METHODS[:1]))
    foreign = await StoredTree.open(repository, (await push(repository, tmp_path / "foreign.zip")).record.digest)
    assert 2 * MIB < TreeEdit(repository, foreign, []).memory - TreeEdit(repository, None, []).memory < 3 * MIB


async def test_links_and_executable_bits_stay(repository: LocalRepository, tree: StoredTree) -> None:
    """Also the bit of a file that is replaced, unless another one is given, and that of one that is copied."""
    operations: list[Operation] = [
        PutBytes("run.sh", b"#!/bin/bash"),
        PutBytes("config.json", b"{}\n", is_executable=True),
        CopyFile("copy.sh", "run.sh"),
        CopyFile("link", "now"),
    ]
    _, new = await edited(repository, tree, operations)
    executable = [entry.path for entry in new.entries(recursive=True) if entry.is_executable]
    assert ["config.json", "copy.sh", "run.sh"] == executable
    assert ["link", "now"] == [entry.path for entry in new.entries(recursive=True) if entry.kind is EntryKind.LINK]


async def test_an_empty_folder_stays_until_something_is_in_it(
    repository: LocalRepository, tree: StoredTree, tmp_path: Path
) -> None:
    """And a folder whose last file is deleted is gone, as in git."""
    _, new = await edited(repository, tree, [DeleteFile("tokenizer/vocab.txt")])
    assert new.entry("tokenizer") is None
    assert new.entry("logs") is not None
    result, new = await edited(repository, new, [PutBytes("logs/today", b"x")])
    expected = {name: thing for name, thing in THINGS.items() if name not in {"logs", "tokenizer/vocab.txt"}}
    assert await pushed_manifest(tmp_path / "expected", {**expected, "logs/today": b"x"}) == result.manifest
    _, new = await edited(repository, new, [DeleteFolder("logs/")])
    assert new.entry("logs") is None


async def test_a_folder_is_replaced(repository: LocalRepository, tree: StoredTree) -> None:
    """By a file, or by other files in it: what is deleted is in the old tree, whatever the order of the operations."""
    _, new = await edited(repository, tree, [PutBytes("onnx", b"file"), DeleteFolder("onnx")])
    entry = new.entry("onnx")
    assert entry is not None
    assert EntryKind.FILE is entry.kind
    _, new = await edited(repository, tree, [CopyFile("onnx/b", "onnx/config.json"), DeleteFolder("onnx")])
    assert ["onnx/b"] == [each.path for each in new.entries("onnx", recursive=True)]


async def test_files_are_copied_from_another_tree(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """Of the same repository, such as an earlier version; also where the other tree is deflated."""
    (tmp_path / "foreign.zip").write_bytes(foreign_zip({"model.onnx": prose(1, MIB)}, random.Random(1), methods=METHODS[1:]))
    foreign = await StoredTree.open(repository, (await push(repository, tmp_path / "foreign.zip")).record.digest)
    result, _ = await edited(repository, tree, [CopyFile("onnx/model.onnx", "model.onnx", foreign)])
    assert await pushed_manifest(tmp_path / "expected", {**THINGS, "onnx/model.onnx": prose(1, MIB)}) == result.manifest
    assert _sums(prose(1, MIB)) == result.entries[0].sums
    assert result.entries[0].copied_file is None


@pytest.mark.parametrize("is_foreign", [False, True], ids=["pushed", "foreign"])
async def test_any_part_of_the_new_zip_can_be_read_again(
    repository: LocalRepository,
    tmp_path: Path,
    is_foreign: bool,  # noqa: FBT001
) -> None:
    """What is not in the old tree, and what is: stored, or deflated and read from its beginning."""
    if is_foreign:
        (tmp_path / "old.zip").write_bytes(foreign_zip(THINGS, random.Random(3)))
        tree = await StoredTree.open(repository, (await push(repository, tmp_path / "old.zip")).record.digest)
    else:
        tree = await pushed_tree(repository, tmp_path / "old", THINGS)
    things = {**THINGS, "new": b"new"}
    expected = zip_of(entries_of(things), {name: _content(thing) for name, thing in things.items()})
    operations = checked_operations([PutBytes("new", b"new")])
    prepared = await in_thread(
        edit_threads(), partial(_Prepared, tree, operations, DEFAULT_LIMITS, ChunkReader(repository), 1, name="tree")
    )
    prepared.reuse()
    await send(repository, prepared.tree, threads=edit_threads())
    memory = memoryview(bytearray(len(expected)))
    for size in (len(expected), 100_000):
        for start in sorted(range(0, len(expected), size), reverse=True):
            await in_thread(edit_threads(), prepared.tree.read_into, memory[start : start + size], start)
        assert expected == memory
        memory[:] = bytes(len(expected))


async def test_all_of_a_tree_can_be_deleted(repository: LocalRepository, tree: StoredTree, tmp_path: Path) -> None:
    """An empty tree is a tree."""
    operations: list[Operation] = [DeleteFolder("logs"), DeleteFolder("onnx"), DeleteFolder("tokenizer")]
    operations += [DeleteFile(name) for name in ("README.md", "config.json", "model.safetensors", "now", "run.sh")]
    result, _ = await edited(repository, tree, operations)
    assert await pushed_manifest(tmp_path / "expected", {}) == result.manifest
    assert b"" == result.tree_digests(None)


REFUSED: dict[str, tuple[Sequence[Operation], type[FilestoreError], str]] = {
    "twice": ([PutBytes("a", b""), PutBytes("a", b"x")], InvalidInput, "'a' is in two operations"),
    "put and deleted": ([DeleteFile("run.sh"), PutBytes("run.sh", b"x")], InvalidInput, "two operations"),
    "a file where a folder is": ([PutBytes("onnx", b"")], InvalidName, "a folder is there"),
    "a file where an empty folder is": ([PutBytes("logs", b"")], InvalidName, "a folder is there"),
    "a file in a file": ([PutBytes("run.sh/a", b"")], InvalidName, "its parent 'run.sh' is not a folder"),
    "a file in a link": ([PutBytes("now/a", b"")], InvalidName, "its parent 'now' is not a folder"),
    "a file in a new file": ([PutBytes("x", b""), PutBytes("x/a", b"")], InvalidName, "is not a folder|must be a folder"),
    "out of the tree": ([PutBytes("a/../../b", b"")], InvalidName, "it leads out of its folder"),
    "out with back slashes": ([PutBytes("a\\..\\b", b"")], InvalidName, "it leads out of its folder"),
    "absolute": ([PutBytes("/etc/passwd", b"")], InvalidName, "it is absolute"),
    "a drive": ([PutBytes("C:/a", b"")], InvalidName, "drive letter"),
    "a NUL": ([PutBytes("a\0b", b"")], InvalidName, "NUL"),
    "no name": ([PutBytes("", b"")], InvalidName, "empty"),
    "a folder as a file": ([PutBytes("a/", b"")], InvalidName, "empty"),
    "not normalised": ([PutBytes("a/./b", b"")], InvalidName, "empty or `.`"),
    "a surrogate": ([PutBytes("\udc80", b"")], InvalidName, "not UTF-8"),
    "of git": ([PutBytes("a/.Git/config", b"")], InvalidName, "reserved"),
    "a long part": ([PutBytes("é" * 128, b"")], LimitExceeded, "256, more than the limit of 255"),
    "a long path": ([PutBytes("a/" * 3000 + "a", b"")], LimitExceeded, "4096"),
    "a deep path": ([PutBytes("a/" * 129 + "a", b"")], LimitExceeded, "128"),
    "deleted though absent": ([DeleteFile("absent")], EntryNotFound, "has no entry 'absent'"),
    "a folder deleted though absent": ([DeleteFolder("absent")], EntryNotFound, "has no entry 'absent'"),
    "a folder deleted as a file": ([DeleteFile("onnx")], InvalidInput, "it is a folder"),
    "a file deleted as a folder": ([DeleteFolder("run.sh")], InvalidInput, "it is a file"),
    "copied though absent": ([CopyFile("a", "absent")], EntryNotFound, "has no entry 'absent'"),
    "a folder copied": ([CopyFile("a", "onnx")], EntryNotFound, "has no entry 'onnx'"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_operations_that_do_not_fit_are_refused(repository: LocalRepository, small_tree: StoredTree, case: str) -> None:
    """By one error that says why, before anything is sent."""
    operations, error, reason = REFUSED[case]
    watched = WatchedRepository(repository)
    with pytest.raises(error, match=reason):
        await TreeEdit(watched, small_tree, operations).store()
    assert 0 == watched.chunks_put


async def test_names_may_differ_only_in_the_case_of_their_letters(repository: LocalRepository, tmp_path: Path) -> None:
    """Old and new ones, files and folders, as in a push. A file may also change the case of its name."""
    tree = await pushed_tree(repository, tmp_path / "old", {"README": b"a", "readme": b"b", "Data/a": b"a"})
    operations: list[Operation] = [PutBytes("readme", b"c"), DeleteFile("Data/a"), PutBytes("data/a", b"a")]
    operations += [PutBytes("Readme", b"3"), PutBytes("DATA/b", b"4"), PutBytes("x", b"5"), PutBytes("X", b"6")]
    _, new = await edited(repository, tree, operations)
    files = [each.path for each in new.entries(recursive=True) if each.kind is EntryKind.FILE]
    assert ["DATA/b", "README", "Readme", "X", "data/a", "readme", "x"] == sorted(files)


async def test_a_link_must_stay_inside_the_new_tree(repository: LocalRepository, tmp_path: Path) -> None:
    """Its copy at another path leads elsewhere."""
    tree = await pushed_tree(repository, tmp_path / "old", {"a/b/link": Link("../x"), "a/x": b"x"})
    with pytest.raises(InvalidName, match="leads out of the tree"):
        await TreeEdit(repository, tree, [CopyFile("link", "a/b/link")]).store()


async def test_a_zip_that_is_too_large_is_refused_before_it_is_sent(repository: LocalRepository, tree: StoredTree) -> None:
    """A deflated tree may become much larger."""
    watched = WatchedRepository(repository)
    with pytest.raises(LimitExceeded, match="upload_limit"):
        await TreeEdit(watched, tree, [PutBytes("a", b"")], size_limit=tree.manifest.size).store()
    assert 0 == watched.chunks_put


@pytest.mark.parametrize("method", METHODS)
async def test_a_member_that_is_not_what_its_headers_say_is_refused(
    repository: LocalRepository, tmp_path: Path, method: int
) -> None:
    """It must not get a checksum that hides the damage."""
    forged = bytearray(foreign_zip({"a": prose(1, 5000)}, random.Random(1), methods=[method]))
    crc = zlib.crc32(prose(1, 5000)).to_bytes(4, "little")
    for _ in range(2):  # in both headers
        at = forged.index(crc)
        forged[at] ^= 1
    (tmp_path / "forged.zip").write_bytes(forged)
    tree = await StoredTree.open(repository, (await push(repository, tmp_path / "forged.zip")).record.digest)
    with pytest.raises(InvalidArchive, match="checksum"):
        await TreeEdit(repository, tree, [PutBytes("b", b"")]).store()


async def test_a_local_header_that_says_something_else_is_refused(repository: LocalRepository, tmp_path: Path) -> None:
    """Two readers would see two trees."""
    forged = bytearray(foreign_zip({"a-file": b"content"}, random.Random(1)))
    at = forged.index(b"a-file")
    forged[at] = ord("b")
    (tmp_path / "forged.zip").write_bytes(forged)
    tree = await StoredTree.open(repository, (await push(repository, tmp_path / "forged.zip")).record.digest)
    with pytest.raises(InvalidArchive, match="another name"):
        await TreeEdit(repository, tree, [PutBytes("b", b"")]).store()


async def test_a_chunk_that_is_lost_is_missed(repository: LocalRepository, tree: StoredTree) -> None:
    """Nothing can bring it back, and nothing is recorded."""
    absent = [Chunk(Digest(bytes(32)), 100)]
    with pytest.raises(ChunksMissing):
        await TreeEdit(repository, tree, [PutChunks("a", absent)]).store()


async def test_a_file_that_became_shorter_is_noticed(repository: LocalRepository, tmp_path: Path) -> None:
    """As in a push."""
    (tmp_path / "file").write_bytes(b"0123456789")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(SourceChanged):
            await TreeEdit(repository, None, [PutSpan("a", descriptor, 5, 6)]).store()
    finally:
        os.close(descriptor)


async def test_one_thread_for_work_of_the_processor_is_enough(
    repository: LocalRepository, tree: StoredTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the repository does not hold the thread that the repository needs."""
    monkeypatch.setitem(threads._pools, "cpu", FairPool("one-cpu", count=1, share=1))
    operations: list[Operation] = [PutBytes("tokenizer/a", b"x"), DeleteFile("run.sh")]
    edits = [TreeEdit(repository, tree, [*operations, PutBytes(f"{number}", b"x")]).store() for number in range(8)]
    results = await asyncio.wait_for(asyncio.gather(*edits), 60)
    assert 8 == len({result.manifest.digest for result in results})


async def test_a_cancelled_edit_ends(repository: LocalRepository, tree: StoredTree) -> None:
    """After the read that its thread waits for."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def hold(verb: str) -> None:
        if verb == "get":
            began.set()
            await may_end.wait()

    edit = asyncio.create_task(TreeEdit(WatchedRepository(repository, before=hold), tree, [DeleteFile("README.md")]).store())
    await began.wait()
    edit.cancel()
    await asyncio.sleep(0)
    assert not edit.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await edit


async def test_an_edit_of_nothing_is_the_old_tree(repository: LocalRepository, tree: StoredTree) -> None:
    """With the same digest, and with the content of each file where it was."""
    result, _ = await edited(repository, tree, [])
    assert tree.manifest == result.manifest
    count = sum(isinstance(thing, (bytes, Script)) for thing in THINGS.values())
    packed = octets(9, 52 * count)
    assert packed == result.tree_digests(packed)
    assert Manifest.parse(await repository.manifest(result.manifest.digest)) == tree.manifest
