"""SHA-256 and git's blob id of the files of a stored tree, compared with hashlib and with git's own rule."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore.core.content_digests import BLOB_ID_LIMIT, EMPTY, PACKED_SIZE, ContentHasher, FileDigests
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.object_names import ObjectName
from filestore.errors import ChunksMissing, InvalidArchive
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.transfer.content_hashing import KEEP_SIZE, LargeFile, TreeHashing, Work, hash_file
from filestore.transfer.push import push
from filestore.transfer.stored_tree import StoredTree
from tests.support.archives import Forged, forged
from tests.support.fetching_trees import stored
from tests.support.generator import octets, prose
from tests.support.secondary_digests import digests_of, expected_of, pushed
from tests.support.trees import Folder, Link, Planted, Script
from tests.support.watched import WatchedRepository

MIB = 1 << 20
FIXTURES = Path(__file__).parents[1] / "golden/archives"
REFUSED = {"infozip-encrypted.zip", "infozip-bzip2.zip", "7zip-deflate64.zip", "7zip-lzma.zip", "7zip-aes.zip"}
ARCHIVES = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix != ".sh" and path.name not in REFUSED]
TREE: dict[str, Planted] = {
    "a/x.bin": octets(1, 300_000),
    "a/y.txt": prose(2, 900),
    "copy.bin": octets(2, 3 * MIB),
    "empty.txt": b"",
    "latest": Link("weights/1.bin"),
    "logs": Folder(),
    "run.sh": Script(b"#!/bin/sh\n"),
    "weights/0.bin": octets(2, 3 * MIB),
    "weights/1.bin": octets(3, SEGMENT_MIN),
    "weights/2.bin": octets(4, SEGMENT_MIN - 1),
    "zz.txt": b"",
}

Kept = list[tuple[LargeFile, FileDigests]]


def content_of(thing: Planted) -> bytes:
    """The content of a file."""
    content = thing.content if isinstance(thing, Script) else thing
    assert isinstance(content, bytes)
    return content


async def no_pause(_: Work) -> None:
    """Nobody else needs the cores."""


async def hashed(repository: Repository, tree: StoredTree, known: dict[Digest, FileDigests] | None = None) -> tuple[bytes, Kept]:
    """The packed digests of a tree, and the large files that were kept."""
    kept: Kept = []

    async def keep(files: Sequence[tuple[LargeFile, FileDigests]]) -> None:
        kept.extend(files)

    return await TreeHashing(repository, tree, pause=no_pause).run(known or {}, keep=keep), kept


def test_digests_are_those_of_git_and_sha256sum() -> None:
    """The vectors of git's documentation, and of FIPS 180-4."""
    hasher = ContentHasher(16)
    hasher.update(b"what is ")
    hasher.update(memoryview(b"up, doc?"))
    assert "bd9dbf5aae1a3862dd1526723246b20206e5fc37" == hasher.digests().blob_id.hex()
    assert "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391" == EMPTY.blob_id.hex()
    abc = ContentHasher(3)
    abc.update(b"abc")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == abc.digests().sha256.hex()
    with pytest.raises(ValueError, match="missing"):
        ContentHasher(1).digests()


def test_packed_digests_are_found_by_their_number() -> None:
    """They have 52 bytes each."""
    one, two = digests_of(b"1"), digests_of(b"2")
    packed = one.packed + two.packed
    assert 2 * PACKED_SIZE == len(packed)
    assert [one, two] == [FileDigests.unpack(packed, 0), FileDigests.unpack(memoryview(packed), 1)]
    with pytest.raises(IndexError):
        FileDigests.unpack(packed, 2)


@pytest.mark.parametrize("size", [0, 1, 9 * MIB, BLOB_ID_LIMIT, BLOB_ID_LIMIT + 1])
async def test_a_file(repository: LocalRepository, tmp_path: Path, size: int) -> None:
    """Of one chunk, of many, and an empty one. A large one has no blob id."""
    (tmp_path / "file").write_bytes(octets(1, size))
    record = (await push(repository, tmp_path / "file")).record
    manifest = Manifest.parse(await repository.manifest(record.digest))
    assert digests_of(octets(1, size)) == await hash_file(repository, manifest, pause=no_pause)


async def test_a_pushed_tree(repository: LocalRepository, tmp_path: Path) -> None:
    """All files in the order of the members. Large ones are kept with their file digest and their place, equal ones once."""
    tree = await StoredTree.open(repository, (await pushed(repository, tmp_path / "model", TREE)).digest)
    packed, kept = await hashed(repository, tree)

    assert await expected_of(repository, tree) == packed
    files = [member.path for member in tree.members if not member.is_folder and not member.is_link]
    for number, path in enumerate(files):
        assert digests_of(content_of(TREE[path])) == FileDigests.unpack(packed, number)
    assert len(files) * PACKED_SIZE == len(packed)
    large = [path for path in files if path in {"a/x.bin", "copy.bin", "weights/1.bin"}]
    assert [digests_of(content_of(TREE[path])) for path in large] == [digests for _, digests in kept]
    for path, (file, _) in zip(large, kept, strict=True):
        (tmp_path / "alone").write_bytes(content_of(TREE[path]))
        alone = (await push(repository, tmp_path / "alone")).record
        entry = tree.entry(path)
        assert entry is not None
        assert entry.extent is not None
        assert (alone.digest, alone.size, entry.extent.start) == tuple(file)


async def test_each_chunk_is_read_once_and_known_files_are_not_read(repository: LocalRepository, tmp_path: Path) -> None:
    """Of a second version that shares the large files, only the rest is read."""
    first = await StoredTree.open(repository, (await pushed(repository, tmp_path / "model", TREE)).digest)
    _, kept = await hashed(repository, first)
    changed = await pushed(repository, tmp_path / "new/model", {**TREE, "a/y.txt": prose(3, 800), "b.bin": octets(9, MIB)})
    watched = WatchedRepository(repository)
    tree = await StoredTree.open(repository, changed.digest)
    packed, again = await hashed(watched, tree, {file.digest: digests for file, digests in kept})

    assert await expected_of(repository, tree) == packed
    assert [digests_of(octets(9, MIB))] == [digests for _, digests in again]
    entry = tree.entry("b.bin")
    assert entry is not None
    assert entry.extent is not None
    own = len(tree.overlapping(range(*entry.extent)))
    small = sum(1 for member in tree.members if 0 < member.size < SEGMENT_MIN)
    assert own < watched.chunks_got <= own + small
    watched.chunks_got = 0
    await hashed(watched, tree)
    assert watched.chunks_got <= len(tree.manifest.chunks)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("chunk_size", [MIB, 97])
async def test_a_foreign_archive(repository: LocalRepository, name: str, chunk_size: int) -> None:
    """Deflated entries, descriptors, and links, as other tools write them."""
    archive = (FIXTURES / name).read_bytes()
    tree = await StoredTree.open(repository, (await stored(repository, archive, name=name, chunk_size=chunk_size)).digest)
    packed, _ = await hashed(repository, tree)
    assert await expected_of(repository, tree) == packed


@pytest.mark.slow
@pytest.mark.parametrize("is_deflated", [False, True])
@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize("chunk_size", [70_001, 3 * MIB])
async def test_headers_and_data_in_any_chunks(
    repository: LocalRepository, *, is_deflated: bool, descriptor: bool, chunk_size: int
) -> None:
    """Entries that begin and end in the middle of chunks, some smaller than a descriptor, with sizes behind their data."""
    contents = [b"", b"x", prose(1, 3_000_000), b"", prose(2, 500_000), b"y" * 24, octets(1, SEGMENT_MIN)]
    file = io.BytesIO()
    with zipfile.ZipFile(_Unseekable(file) if descriptor else file, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(str(number), content, zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED)
    tree = await StoredTree.open(repository, (await stored(repository, file.getvalue(), chunk_size=chunk_size)).digest)
    packed, _ = await hashed(repository, tree)
    assert b"".join(digests_of(content).packed for content in contents) == packed


class _Unseekable(io.RawIOBase):
    """A stream, so that descriptors follow the entries."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("is_deflated", [False, True])
async def test_ten_thousand_small_files(repository: LocalRepository, *, is_deflated: bool) -> None:
    """They are read in the order of their data: each chunk once, and not once for each file."""
    contents = [b"%d" % number for number in range(10_000)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for content in contents:
            archive.writestr(content.decode(), content, zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED)
    tree = await StoredTree.open(repository, (await stored(repository, file.getvalue(), chunk_size=100_000)).digest)
    watched = WatchedRepository(repository)
    packed, _ = await hashed(watched, tree)
    assert b"".join(digests_of(content).packed for content in contents) == packed
    assert watched.chunks_got <= len(tree.manifest.chunks)


async def test_a_tree_without_files(repository: LocalRepository, tmp_path: Path) -> None:
    """Nothing is read."""
    tree = await StoredTree.open(repository, (await pushed(repository, tmp_path / "model", {"logs": Folder()})).digest)
    watched = WatchedRepository(repository)
    assert (b"", []) == await hashed(watched, tree)
    assert 0 == watched.chunks_got


@pytest.mark.parametrize("is_deflated", [False, True])
async def test_data_that_is_not_what_the_directory_says(repository: LocalRepository, *, is_deflated: bool) -> None:
    """No digest is given for content that no reader gets."""
    for entry in (
        Forged("a", prose(1, MIB), deflated=is_deflated, crc=1),
        Forged("a", prose(1, 100), deflated=is_deflated, crc=1),
    ):
        tree = await StoredTree.open(repository, (await stored(repository, forged([entry]), chunk_size=50_000)).digest)
        with pytest.raises(InvalidArchive, match="checksum"):
            await hashed(repository, tree)


async def test_large_files_are_kept_as_they_end(repository: LocalRepository, tmp_path: Path) -> None:
    """What was kept need not be hashed again after an end in the middle."""
    size = KEEP_SIZE // 4
    things: dict[str, Planted] = {f"{number}.bin": octets(number, size) for number in range(6)}
    tree = await StoredTree.open(repository, (await pushed(repository, tmp_path / "model", things)).digest)
    calls: list[int] = []

    async def keep(files: Sequence[tuple[LargeFile, FileDigests]]) -> None:
        calls.append(len(files))

    await TreeHashing(repository, tree, pause=no_pause).run({}, keep=keep)
    assert 6 == sum(calls)
    assert calls[0] in {3, 4}


async def test_what_a_batch_took_is_reported(repository: LocalRepository, tmp_path: Path) -> None:
    """The sizes add up to the chunks that were read, and a thread works at most as long as the batch takes."""
    tree = await StoredTree.open(repository, (await pushed(repository, tmp_path / "model", {"a.bin": octets(1, 9 * MIB)})).digest)
    works: list[Work] = []

    async def pause(work: Work) -> None:
        works.append(work)

    async def keep(_: Sequence[tuple[LargeFile, FileDigests]]) -> None:
        pass

    await TreeHashing(repository, tree, pause=pause).run({}, keep=keep)
    assert 9 * MIB == sum(work.size for work in works)
    assert all(work.seconds > 0 for work in works)


async def test_a_missing_chunk(repository: LocalRepository, tmp_path: Path) -> None:
    """It ends the computation."""
    record = await pushed(repository, tmp_path / "model", {"a.bin": octets(1, 9 * MIB)})
    tree = await StoredTree.open(repository, record.digest)
    await repository._store.remove(repository.namespace, [ObjectName(tree.manifest.chunks[1].digest)])
    with pytest.raises(ChunksMissing):
        await hashed(repository, tree)
