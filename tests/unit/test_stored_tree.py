"""The members of a stored directory, and the content of one of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.records import Record
from filestore.errors import ChunksMissing, InvalidArchive, LimitExceeded, NotAnArchive, NotFound
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.zip.read import ZipLimits
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Moved, Repository
from filestore.transfer.push import push
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_tree import READ_SIZE, EntryKind, StoredEntry, StoredTree, read_entry
from tests.support.archives import Forged, deflated, forged
from tests.support.fetching_trees import stored, things_in
from tests.support.generator import octets, prose
from tests.support.golden import weights
from tests.support.models import safetensors_file
from tests.support.trees import Folder, Link, Planted, Script, plant
from tests.support.watched import WatchedRepository

MIB = 1 << 20
FIXTURES = Path(__file__).parents[1] / "golden/archives"
REFUSED = {"infozip-encrypted.zip", "infozip-bzip2.zip", "7zip-deflate64.zip", "7zip-lzma.zip", "7zip-aes.zip"}
ARCHIVES = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix != ".sh" and path.name not in REFUSED]
TREE: dict[str, Planted] = {
    "a-b": b"between the folder and what is in it, in the order of characters",
    "a/x.bin": octets(1, 300_000),
    "a/y/z.txt": prose(2, 900),
    "config.json": prose(1, 700),
    "empty.txt": b"",
    "latest": Link("weights/1.bin"),
    "logs": Folder(),
    "run.sh": Script(b"#!/bin/sh\n"),
    "weights/0.bin": octets(2, 3 * MIB),
    "weights/1.bin": octets(3, SEGMENT_MIN),
    "weights/2.bin": octets(4, SEGMENT_MIN - 1),
}
LISTED = [
    ("a", EntryKind.FOLDER),
    ("a/x.bin", EntryKind.FILE),
    ("a/y", EntryKind.FOLDER),
    ("a/y/z.txt", EntryKind.FILE),
    ("a-b", EntryKind.FILE),
    ("config.json", EntryKind.FILE),
    ("empty.txt", EntryKind.FILE),
    ("latest", EntryKind.LINK),
    ("logs", EntryKind.FOLDER),
    ("run.sh", EntryKind.FILE),
    ("weights", EntryKind.FOLDER),
    ("weights/0.bin", EntryKind.FILE),
    ("weights/1.bin", EntryKind.FILE),
    ("weights/2.bin", EntryKind.FILE),
]


async def pushed(repository: Repository, folder: Path, things: dict[str, Planted] = TREE) -> Record:
    """A record of a tree."""
    return (await push(repository, plant(folder / "model", things), symlinks=Symlinks.KEEP)).record


async def opened(repository: Repository, record: Record) -> StoredTree:
    """The tree of a record."""
    return await StoredTree.open(repository, record.digest)


async def content_of(repository: Repository, tree: StoredTree, path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The content of an entry."""
    entry = tree.entry(path)
    assert entry is not None
    return b"".join([piece async for piece in read_entry(repository, tree, entry, start, stop)])


def listed(
    tree: StoredTree, folder: str = "", *, recursive: bool = True, after: str | None = None
) -> list[tuple[str, EntryKind]]:
    """The paths and kinds of entries."""
    return [(entry.path, entry.kind) for entry in tree.entries(folder, recursive=recursive, after=after)]


async def as_things(repository: Repository, tree: StoredTree) -> dict[str, Planted]:
    """The tree as `plant` takes it."""
    things: dict[str, Planted] = {}
    entries = list(tree.entries(recursive=True))
    for entry in entries:
        content = b""
        if entry.kind is not EntryKind.FOLDER:
            content = await content_of(repository, tree, entry.path)
            assert entry.size == len(content)
        if entry.kind is EntryKind.LINK:
            things[entry.path] = Link(content.decode())
        elif entry.kind is EntryKind.FILE:
            things[entry.path] = Script(content) if entry.is_executable else content
        elif not any(other.path.startswith(f"{entry.path}/") for other in entries):
            things[entry.path] = Folder()
    return things


async def test_a_pushed_tree(repository: LocalRepository, tmp_path: Path) -> None:
    """Each entry has its content, its kind and its size, and is found by its path."""
    tree = await opened(repository, await pushed(repository, tmp_path))

    assert TREE == await as_things(repository, tree)
    assert LISTED == listed(tree)
    for entry in tree.entries(recursive=True):
        assert entry == tree.entry(entry.path)


async def test_a_listing_of_one_folder(repository: LocalRepository, tmp_path: Path) -> None:
    """Without `recursive`, folders are named and not entered. A listing can go on after any path."""
    tree = await opened(repository, await pushed(repository, tmp_path))

    top = [(path, kind) for path, kind in LISTED if "/" not in path]
    assert top == listed(tree, recursive=False)
    assert [("a/x.bin", EntryKind.FILE), ("a/y", EntryKind.FOLDER)] == listed(tree, "a", recursive=False)
    assert LISTED[1:4] == listed(tree, "a")
    for number, (path, _) in enumerate(LISTED):
        assert LISTED[number + 1 :] == listed(tree, after=path)
    for number, (path, _) in enumerate(top):
        assert top[number + 1 :] == listed(tree, recursive=False, after=path)
    for folder in ("missing", "config.json", "a/y/z.txt", "logs", "we"):
        assert [] == listed(tree, folder)
        assert [] == listed(tree, folder, recursive=False)


@pytest.mark.parametrize("path", ["missing", "a/", "/a", "a//y", "./a", "../a", "we", "weights/0.bin/x", "a\0b", "zzz", "a\0"])
async def test_no_entry(repository: LocalRepository, tmp_path: Path, path: str) -> None:
    """A path that no entry has, or that is not written as the tree writes it, is not found."""
    assert (await opened(repository, await pushed(repository, tmp_path))).entry(path) is None


async def test_the_tree_itself(repository: LocalRepository, tmp_path: Path) -> None:
    """The empty path is the tree. It has no content, like any folder."""
    tree = await opened(repository, await pushed(repository, tmp_path))
    assert StoredEntry("", EntryKind.FOLDER) == tree.entry("")
    for folder in ("", "a", "logs"):
        with pytest.raises(NotFound):
            await content_of(repository, tree, folder)


@pytest.mark.parametrize(
    ("content", "has_own"),
    [
        (octets(5, SEGMENT_MIN), True),
        (octets(6, 9 * MIB), True),
        (safetensors_file(weights()), True),
        (b"", True),
        (octets(9, SEGMENT_MIN - 1), False),
        (b"small", False),
    ],
    ids=["256 KiB", "9 MiB", "safetensors", "empty", "less than 256 KiB", "small"],
)
async def test_the_chunks_of_a_file(repository: LocalRepository, tmp_path: Path, content: bytes, *, has_own: bool) -> None:
    """A file of 256 KiB or more has the chunks, and so the digest, that it has when it is pushed alone."""
    others: dict[str, Planted] = {"a.txt": prose(1, 5000), "zz/b.bin": octets(2, 400_000)}
    tree = await opened(repository, await pushed(repository, tmp_path, {**others, "m/file": content}))
    (tmp_path / "file").write_bytes(content)
    alone = await push(repository, tmp_path / "file")

    entry = tree.entry("m/file")
    assert entry is not None
    chunks = tree.chunks_of(entry)
    assert (chunks is not None) is has_own
    if chunks is not None:
        assert alone.record.digest == Manifest.build(chunks, chunking_version=tree.manifest.chunking_version).digest


async def test_what_has_no_chunks_of_its_own(repository: LocalRepository, tmp_path: Path) -> None:
    """A folder, a link, and a deflated file of any size."""
    packed = forged([Forged("a", octets(1, MIB), deflated=True), Forged("z", octets(2, MIB))])
    foreign = await opened(repository, await stored(repository, packed, chunk_size=50_000))
    own = await opened(repository, await pushed(repository, tmp_path))
    for tree, path in [(foreign, "a"), (foreign, "z"), (own, "latest"), (own, "logs"), (own, "a"), (own, "")]:
        entry = tree.entry(path)
        assert entry is not None
        assert tree.chunks_of(entry) is None


async def test_only_its_chunks_are_received(repository: LocalRepository, tmp_path: Path) -> None:
    """The directory costs its own chunks, a large file its own, a small file the one that has it."""
    watched = WatchedRepository(repository)
    tree = await opened(watched, await pushed(repository, tmp_path))
    assert watched.chunks_got <= 3

    for path in ("weights/0.bin", "weights/1.bin", "config.json", "run.sh", "empty.txt"):
        entry = tree.entry(path)
        assert entry is not None
        assert entry.extent is not None
        before = watched.chunks_got
        await content_of(watched, tree, path)
        assert len(tree.overlapping(range(*entry.extent))) == watched.chunks_got - before
    entry = tree.entry("weights/0.bin")
    assert entry is not None
    before = watched.chunks_got
    assert octets(2, 3 * MIB)[-9:] == await content_of(watched, tree, "weights/0.bin", 3 * MIB - 9)
    assert 1 == watched.chunks_got - before


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("chunk_size", [MIB, 97])
async def test_a_foreign_archive(repository: LocalRepository, name: str, chunk_size: int) -> None:
    """Deflated entries, descriptors, links, and folders with an entry of their own, as other tools write them."""
    archive = (FIXTURES / name).read_bytes()
    tree = await opened(repository, await stored(repository, archive, name=name, chunk_size=chunk_size))
    assert things_in(archive) == await as_things(repository, tree)


@pytest.mark.parametrize("is_deflated", [False, True])
@pytest.mark.parametrize("descriptor", [False, True])
async def test_a_part_of_an_entry(repository: LocalRepository, *, is_deflated: bool, descriptor: bool) -> None:
    """Any range of the content, also behind its end, whatever way it is packed."""
    content = prose(1, 1_000_000) * 3
    file = io.BytesIO()
    with zipfile.ZipFile(_Unseekable(file) if descriptor else file, "w") as archive:
        archive.writestr("before", b"x")
        archive.writestr("file", content, zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED)
        archive.writestr("z", b"y")
    tree = await opened(repository, await stored(repository, file.getvalue(), chunk_size=70_001))

    size = len(content)
    ends = [0, 1, 69_999, 1_500_000, size - 1, size]
    for start, stop in [(start, stop) for start in ends for stop in ends if start <= stop]:
        assert content[start:stop] == await content_of(repository, tree, "file", start, stop)
    assert content[5:] == await content_of(repository, tree, "file", 5, size + 100)
    assert b"" == await content_of(repository, tree, "file", size + 1)
    assert content == await content_of(repository, tree, "file")


class _Unseekable(io.RawIOBase):
    """A stream, so that descriptors follow the entries."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]


async def test_ten_thousand_entries(repository: LocalRepository, tmp_path: Path) -> None:
    """Every one is found and listed, and the tree takes little more memory than its directory and its manifest."""
    paths = [f"{number % 100:02}/{number:05}.txt" for number in range(10_000)]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        for path in paths:
            writing.writestr(path, path.encode())
    tree = await opened(repository, await stored(repository, archive.getvalue(), chunk_size=100_000))

    assert sorted(paths) == [entry.path for entry in tree.entries(recursive=True) if entry.kind is EntryKind.FILE]
    assert [f"{number:02}" for number in range(100)] == [entry.path for entry in tree.entries(recursive=False)]
    assert 100 == len(listed(tree, "42", recursive=False))
    for path in paths[::77]:
        assert path.encode() == await content_of(repository, tree, path)
    size = len(tree.tail) + 10_000 * 20 + len(tree.manifest.encoded) + 8 * len(tree.manifest.chunks) + 4096
    assert size == tree.size_in_memory


async def test_names_with_control_characters(repository: LocalRepository) -> None:
    """The characters that sort next to what separates the parts of a path neither end nor repeat a listing."""
    paths = ["a/\x01", "a/\x01\x01/b", "a\x01", "a\x01b/c", "a\x02", "b"]
    tree = await opened(repository, await stored(repository, forged([Forged(path, b"x") for path in paths])))
    assert ["a", "a\x01", "a\x01b", "a\x02", "b"] == [path for path, _ in listed(tree, recursive=False)]
    assert ["a/\x01", "a/\x01\x01"] == [path for path, _ in listed(tree, "a", recursive=False)]
    assert paths == [path for path, kind in listed(tree) if kind is EntryKind.FILE]


async def test_a_folder_that_is_named_twice(repository: LocalRepository) -> None:
    """It is listed once, and the entry of the tree itself is not listed."""
    folder = Forged("logs/", mode=0o40755)
    packed = forged([Forged("./", mode=0o40755), folder, folder, Forged("logs/a", b"x"), Forged("z", b"y")])
    tree = await opened(repository, await stored(repository, packed))
    expected = [("logs", EntryKind.FOLDER), ("logs/a", EntryKind.FILE), ("z", EntryKind.FILE)]
    assert expected == listed(tree)
    assert [expected[0], expected[2]] == listed(tree, recursive=False)


async def test_no_zip_file(repository: LocalRepository, tmp_path: Path) -> None:
    """A file of another kind, and an empty one."""
    for content in (b"{}" * 1000, b""):
        (tmp_path / "config.json").write_bytes(content)
        record = (await push(repository, tmp_path / "config.json")).record
        with pytest.raises(NotAnArchive):
            await opened(repository, record)
    with pytest.raises(NotFound):
        await StoredTree.open(repository, Digest(bytes(32)))


async def test_a_damaged_directory(repository: LocalRepository) -> None:
    """It is refused as a fetch refuses it, and so is a tree with more entries than the limit."""
    packed = bytearray(forged([Forged("a", b"x"), Forged("b", b"y")]))
    good = await stored(repository, bytes(packed))
    packed[packed.rindex(b"PK\1\2") + 1] = 0
    with pytest.raises(InvalidArchive):
        await opened(repository, await stored(repository, bytes(packed)))
    with pytest.raises(InvalidArchive):
        await opened(repository, await stored(repository, forged([Forged("a", b"x"), Forged("a", b"y")])))
    with pytest.raises(LimitExceeded):
        await StoredTree.open(repository, good.digest, limits=ZipLimits(entries=1))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:x", "a\0b", "..\\x"])
async def test_a_path_that_leads_out(repository: LocalRepository, name: str) -> None:
    """Such a tree is not opened: nobody can then be given an entry with this path."""
    with pytest.raises(InvalidArchive):
        await opened(repository, await stored(repository, forged([Forged(name, b"x"), Forged("good", b"y")])))


async def test_an_archive_that_unpacks_to_too_much(repository: LocalRepository) -> None:
    """A zip bomb is refused when it is opened, before anything is inflated."""
    packed = forged([Forged("bomb", bytes(30 * MIB), deflated=True)])
    with pytest.raises(LimitExceeded, match="ratio"):
        await opened(repository, await stored(repository, packed))


async def test_an_entry_that_inflates_to_more_than_it_states(repository: LocalRepository) -> None:
    """Reading ends where the stated size is exceeded."""
    packed = forged([Forged("a", prose(1, MIB), deflated=True, size=100_000)])
    tree = await opened(repository, await stored(repository, packed))
    entry = tree.entry("a")
    assert entry is not None
    received = 0
    with pytest.raises(InvalidArchive, match="states 100000 bytes, but has more"):
        async for piece in read_entry(repository, tree, entry):
            received += len(piece)
    assert received <= 100_000


@pytest.mark.parametrize("is_deflated", [False, True])
async def test_data_that_is_not_what_the_directory_says(repository: LocalRepository, *, is_deflated: bool) -> None:
    """The last bytes of a whole entry come only after its checksum was right."""
    content = prose(1, MIB) * 6
    packed = forged([Forged("a", content, deflated=is_deflated, data=deflated(content, level=1) if is_deflated else None, crc=1)])
    tree = await opened(repository, await stored(repository, packed, chunk_size=500_000))
    entry = tree.entry("a")
    assert entry is not None
    received = 0
    with pytest.raises(InvalidArchive, match="checksum"):
        async for piece in read_entry(repository, tree, entry):
            received += len(piece)
            assert len(piece) <= READ_SIZE
    assert received < len(content)


async def test_a_damaged_frame_is_received_again(repository: LocalRepository, tmp_path: Path) -> None:
    """A bit that flips on the way costs one more request, and no wrong byte is given."""
    record = await pushed(repository, tmp_path)
    flipping = FlippingRepository(repository)
    tree = await opened(repository, record)
    assert TREE["weights/0.bin"] == await content_of(flipping, tree, "weights/0.bin")
    assert flipping.flipped == 1


async def test_a_chunk_that_is_gone(repository: LocalRepository, tmp_path: Path) -> None:
    """The error names it."""
    tree = await opened(repository, await pushed(repository, tmp_path))
    with pytest.raises(ChunksMissing):
        await content_of(EmptyRepository(repository), tree, "weights/0.bin")


async def test_a_reader_that_stops(repository: LocalRepository, tmp_path: Path) -> None:
    """Nothing more is received after it has stopped."""
    watched = WatchedRepository(repository)
    tree = await opened(watched, await pushed(repository, tmp_path, {"file": octets(1, 12 * MIB)}))
    entry = tree.entry("file")
    assert entry is not None
    before = watched.calls.count("get")
    async with aclosing(read_entry(watched, tree, entry)) as pieces:
        await anext(pieces)
    assert watched.calls.count("get") - before <= 2


class FlippingRepository(WatchedRepository):
    """The first frame of the first answer arrives with a changed bit."""

    flipped = 0

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        frames = await super().get(digests, buffer, moved=moved)
        if not self.flipped and frames[0] is not None:
            frames[0][-1] ^= 1
            self.flipped = 1
        return frames


class EmptyRepository(WatchedRepository):
    """It has lost all frames."""

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:  # noqa: ARG002
        return [None for _ in digests]
