"""The zip of any tree is cut as the cutter cuts it, and any zip is read as `zipfile` reads it."""

from __future__ import annotations

import io
import random
import zipfile
import zlib
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.errors import FilestoreError, InvalidArchive
from filestore.format.zip.checksum import Checksum, crc32, crc32_combine
from filestore.format.zip.chunker import WINDOW_MIN
from filestore.format.zip.inflate import PIECE_LIMIT, Inflater
from filestore.format.zip.read import Member
from filestore.format.zip.write import Entry
from tests.support.archives import Pipe, UnpackedArchive, scanned, tree_chunker, unpacked, zip_of
from tests.support.chunking import cut
from tests.support.generator import octets, prose
from tests.support.golden import CHUNKING_INPUTS
from tests.support.models import ZipEntry, zip_file

MIB = 1 << 20
LEAST = 256 << 10  # of a segment

# Sizes: nothing, little, around the least segment, several chunks, more than the look-ahead. Equal contents meet in a tree.
CONTENTS = [
    b"",
    b"1",
    prose(1, 1000),
    prose(2, 200_000),
    octets(3, LEAST - 1),
    octets(4, LEAST),
    octets(5, LEAST + 1),
    octets(6, 3 * MIB),
    octets(7, 7 * MIB + 5),
    bytes(5 * MIB),
    *(CHUNKING_INPUTS[name]() for name in ("safetensors", "gguf", "zip", "torch", "nested", "broken")),
    zip_file([ZipEntry("inner.zip", CHUNKING_INPUTS["nested"]())]),
]
SMALL = CONTENTS[:5]

parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda part: part not in {".", ".."} and "\\" not in part and ":" not in part
)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


@st.composite
def trees(draw: st.DrawFn, contents: list[bytes], max_size: int) -> tuple[list[Entry], dict[str, bytes]]:
    """Entries of a tree, in any order, and what its files hold."""
    entries: dict[str, Entry] = {}
    found = {}
    for path in draw(st.lists(paths, max_size=max_size, unique=True)):
        if any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in entries):
            continue
        kind = draw(st.integers(0, 11))
        if kind == 0:
            entries[path] = Entry(path, is_folder=True)
        elif kind == 1:
            entries[path] = Entry(path, 1, target="x")
        else:
            found[path] = draw(st.sampled_from(contents))
            entries[path] = Entry(path, len(found[path]), is_executable=draw(st.booleans()))
    if "x" in entries and entries["x"].target is not None:
        del entries["x"]  # it would lead to itself
    return list(entries.values()), found


windows = st.one_of(st.integers(WINDOW_MIN, WINDOW_MIN + 300_000), st.just(16 * MIB))


@pytest.mark.slow
@settings(max_examples=80)
@given(trees(CONTENTS, 9), windows)
def test_chunks_of_a_tree_are_those_of_its_zip(tree: tuple[list[Entry], dict[str, bytes]], window: int) -> None:
    """Segment by segment, the chunks are what the cutter gives for the whole zip, and each byte is read once."""
    entries, contents = tree
    reads: list[tuple[str, int, int]] = []
    chunker = tree_chunker(entries, contents, reads)

    chunks = [chunk for segment in scanned(chunker, window) for chunk in segment]

    archive = zip_of(entries, contents)
    assert len(archive) == chunker.size
    assert cut(archive) == chunks
    ends: dict[str, int] = {}
    for name, offset, size in reads:
        assert ends.get(name, 0) == offset
        ends[name] = offset + size
    assert {name: len(content) for name, content in contents.items() if content} == ends


@pytest.mark.slow
@settings(max_examples=8)
@given(st.randoms(use_true_random=False), windows)
def test_chunks_of_many_small_files_are_those_of_their_zip(random_: random.Random, window: int) -> None:
    """Runs that are longer than a window, between files that are segments of their own."""
    contents = {f"{place:03}": random_.choice(SMALL if place % 40 else CONTENTS[5:]) for place in range(1, 200)}
    entries = [Entry(name, len(content)) for name, content in contents.items()]
    random_.shuffle(entries)

    chunks = [chunk for segment in scanned(tree_chunker(entries, contents), window) for chunk in segment]

    assert cut(zip_of(entries, contents)) == chunks


@settings(max_examples=20)
@given(trees(CONTENTS, 9), st.data())
def test_what_is_remembered_is_not_read(tree: tuple[list[Entry], dict[str, bytes]], data: st.DataObject) -> None:
    """Segments that are skipped are not produced, their files are not read, and the others are as they were."""
    entries, contents = tree
    before = tree_chunker(entries, contents)
    whole = scanned(before, 16 * MIB)
    reads: list[tuple[str, int, int]] = []
    after = tree_chunker(entries, contents, reads)
    skipped = data.draw(st.sets(st.integers(0, len(whole) - 1)))
    for number in skipped:
        for place in after.segments[number].entries:
            after.remember(place, before.crcs[place] or 0)
        after.skip(number)

    chunks = scanned(after, 16 * MIB)

    assert [[] if number in skipped else segment for number, segment in enumerate(whole)] == chunks
    assert before.crcs == after.crcs
    names = {after.entries[place].name for number in skipped for place in after.segments[number].entries}
    assert names.isdisjoint(name for name, _, _ in reads)


@pytest.mark.slow
@settings(max_examples=100)
@given(trees(SMALL, 9))
def test_unpacking_is_the_inverse_of_packing(tree: tuple[list[Entry], dict[str, bytes]]) -> None:
    """Names, content, the executable bit, empty folders and links."""
    entries, contents = tree

    assert {
        entry.name: UnpackedArchive(contents.get(entry.name, b""), entry.is_executable, entry.is_folder, entry.target)
        for entry in entries
    } == unpacked(zip_of(entries, contents))


@pytest.mark.slow
@settings(max_examples=100)
@given(trees(SMALL, 9))
def test_zipfile_reads_what_we_write(tree: tuple[list[Entry], dict[str, bytes]]) -> None:
    """The standard library finds the same tree in it, and nothing wrong with it."""
    entries, contents = tree
    with zipfile.ZipFile(io.BytesIO(zip_of(entries, contents))) as archive:
        assert archive.testzip() is None
        assert [
            entry.stored_name.decode() for entry in sorted(entries, key=lambda entry: entry.stored_name)
        ] == archive.namelist()
        assert contents == {name: archive.read(name) for name in contents}


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes]]:
    """An archive that `zipfile` wrote, in one of its ways, and what is in it."""
    _, contents = draw(trees(SMALL[:3], 6))
    file = draw(st.sampled_from([Pipe, io.BytesIO]))()
    file.write(draw(st.sampled_from([b"", b"#!/bin/sh\n", bytes(100)])))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            entry.external_attr = draw(st.sampled_from([0, 0o600 << 16, 0o100755 << 16]))
            entry.comment = draw(st.binary(max_size=5))
            with archive.open(entry, "w", force_zip64=draw(st.booleans())) as member:
                member.write(content)
        archive.comment = draw(st.binary(max_size=20)).replace(b"PK", b"")
    return file.getvalue(), contents


@pytest.mark.slow
@settings(max_examples=200)
@given(archives())
def test_we_read_what_zipfile_writes(made: tuple[bytes, dict[str, bytes]]) -> None:
    """Stored and deflated, with and without descriptors, Zip64, comments and a preamble."""
    archive, contents = made

    assert contents == {path: found.content for path, found in unpacked(archive).items()}


@pytest.mark.slow
@settings(max_examples=250)
@given(archives(), st.data())
def test_damaged_archive_is_read_as_zipfile_reads_it_or_not_at_all(
    made: tuple[bytes, dict[str, bytes]], data: st.DataObject
) -> None:
    """No damage makes us unpack what `zipfile` reads otherwise, or raise another error than our own."""
    archive = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(archive) - 1))
        archive[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        tree = unpacked(bytes(archive))
    except FilestoreError:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as other:
            theirs = {entry.filename: other.read(entry) for entry in other.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, zlib.error):
        return
    ours = sorted(found.content for found in tree.values() if not found.is_folder and found.target is None)
    assert set(ours) <= set(theirs.values())


def member_of(content: bytes) -> Member:
    """A deflated entry that holds `content`."""
    return Member("a", b"a", 0, 8, 0o100644, crc32(content), 0, len(content), 0, 0)


def inflated(data: bytes) -> bytes:
    """What zlib makes of it, unless it refuses."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(data)
    if not stream.eof or stream.unused_data:
        raise zlib.error
    return content


@pytest.mark.slow
@settings(max_examples=500)
@given(
    st.one_of(st.binary(max_size=300), st.sampled_from([*SMALL, bytes(700_000)])),
    st.integers(0, 9),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 1 << 22), st.binary(max_size=2)), max_size=2),
    st.integers(1, 70_000),
)
def test_inflating_is_what_zlib_does(
    content: bytes, level: int, strategy: int, damage: list[tuple[int, bytes]], piece: int
) -> None:
    """Whatever zlib inflates, damaged or not and in any pieces, comes out the same; what else comes out was what was packed."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 8, strategy)
    data = bytearray(packer.compress(content) + packer.flush())
    for place, other in damage:
        at = place % (len(data) + 1)
        data[at : at + 1] = other
    try:
        expected = inflated(bytes(data))
    except zlib.error:
        expected = content
        is_valid = False
    else:
        is_valid = True
    piece = max(piece, len(data) // 200)
    inflater = Inflater(member_of(expected))
    try:
        pieces = [part for at in range(0, len(data), piece) for part in inflater.inflate(memoryview(data)[at : at + piece])]
        inflater.finish()
    except InvalidArchive:
        assert not is_valid
        return
    assert expected == b"".join(pieces)
    assert PIECE_LIMIT >= max(map(len, pieces), default=0)


@settings(max_examples=200)
@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=9), st.randoms(use_true_random=False))
def test_checksum_of_pieces_in_any_order(content: bytes, splits: list[int], random_: random.Random) -> None:
    """However content is split, and in whatever order its pieces come; and only when all have come."""
    ends = sorted({0, len(content), *(split for split in splits if split <= len(content))})
    pieces = list(pairwise(ends))
    random_.shuffle(pieces)
    checksum = Checksum()
    for start, end in pieces:
        assert checksum.of(len(content)) is None
        checksum.add(start, memoryview(content)[start:end])

    assert zlib.crc32(content) == checksum.of(len(content))
    assert checksum.of(len(content) + 1) is None


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_combined_checksums(pieces: list[bytes]) -> None:
    """The sum of a whole from the sums of its parts."""
    sums = accumulate(pieces, lambda crc, piece: crc32_combine(crc, crc32(piece), len(piece)), initial=0)

    assert zlib.crc32(b"".join(pieces)) == list(sums)[-1]
