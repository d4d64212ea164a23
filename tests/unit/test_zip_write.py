from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from filestore.errors import InvalidName, LimitExceeded, SourceChanged, UnknownFormat
from filestore.format.zip.checksum import crc32
from filestore.format.zip.chunker import WINDOW_MIN, Cut, TreeChunker
from filestore.format.zip.read import End, parse_central_directory
from filestore.format.zip.write import (
    NAME_LIMIT,
    SIZE_LIMIT,
    Entry,
    PlacedEntry,
    central_directory,
    central_header,
    central_header_size,
    end_records,
    local_header,
    local_header_size,
    sorted_entries,
)
from tests.support.archives import scanned, tree_chunker, zip_of
from tests.support.generator import octets, prose

U32_MAX = 0xFFFFFFFF
LEAST = 256 << 10  # of a segment

CONTENTS = {"b.txt": b"b\n", "a/run.sh": b"#!/bin/sh\n", "größe/naïve.txt": b"", "weights.bin": octets(1, 300_000)}
TREE = [
    *(Entry(name, len(content), is_executable=name.endswith(".sh")) for name, content in CONTENTS.items()),
    Entry("empty folder", is_folder=True),
    Entry("a/link", 8, target="../b.txt"),
]
NAMES = ["a/link", "a/run.sh", "b.txt", "empty folder/", "größe/naïve.txt", "weights.bin"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The zip of `TREE`."""
    path = tmp_path / "tree.zip"
    path.write_bytes(zip_of(TREE, CONTENTS))
    return path


def tool(name: str, *, is_in_ci: bool = True) -> str:
    """The path of a program; CI has those of Debian's packages unzip, p7zip-full and libarchive-tools."""
    found = shutil.which(name)
    if found is None:
        if is_in_ci and os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def output(*arguments: str | Path, stdin: Path | None = None) -> str:
    """Return the output of a program, which must succeed."""
    with (stdin or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(arguments, stdin=source, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert (0, b"") == (done.returncode, done.stderr), done.stdout.decode()
    return done.stdout.decode()


def test_zipfile_reads_it(archive: Path) -> None:
    """Names, order, modes, times and flags follow the format."""
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        found = {entry.filename: entry for entry in opened.infolist()}
        assert NAMES == list(found)
        modes = [0o120777, 0o100755, 0o100644, 0o40755, 0o100644, 0o100644]
        assert modes == [entry.external_attr >> 16 for entry in found.values()]
        assert [0, 0, 0, 0x10, 0, 0] == [entry.external_attr & 0xFFFF for entry in found.values()]
        assert {(1980, 1, 1, 0, 0, 0)} == {entry.date_time for entry in found.values()}
        assert [0, 0, 0, 0, 0x800, 0] == [entry.flag_bits for entry in found.values()]
        assert {zipfile.ZIP_STORED} == {entry.compress_type for entry in found.values()}
        assert [10, 10, 10, 20, 10, 10] == [entry.extract_version for entry in found.values()]
        assert b"../b.txt" == opened.read("a/link")


def test_unzip_reads_it(archive: Path, tmp_path: Path) -> None:
    """Info-ZIP finds nothing wrong with it, and unpacks the tree."""
    assert "No errors detected" in output(tool("unzip"), "-t", archive)
    output(tool("unzip"), "-q", archive, "-d", tmp_path / "out")

    assert {name.rstrip("/") for name in NAMES} | {"a", "größe"} == {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")
    }
    assert CONTENTS == {name: (tmp_path / "out" / name).read_bytes() for name in CONTENTS}
    assert "../b.txt" == str((tmp_path / "out/a/link").readlink())
    assert 0o755 == stat.S_IMODE((tmp_path / "out/a/run.sh").stat().st_mode)
    assert 0o644 == stat.S_IMODE((tmp_path / "out/b.txt").stat().st_mode)


def test_7zip_reads_it(archive: Path) -> None:
    """7-Zip finds nothing wrong with it."""
    assert "Everything is Ok" in output(tool("7z"), "t", archive)


def test_bsdtar_reads_it(archive: Path) -> None:
    """By the central directory, and from a pipe, by local headers alone."""
    assert NAMES == output(tool("bsdtar"), "-tf", archive).splitlines()
    assert NAMES == output(tool("bsdtar"), "-tf", "-", stdin=archive).splitlines()
    assert CONTENTS["b.txt"].decode() == output(tool("bsdtar"), "-xOf", "-", "b.txt", stdin=archive)


@pytest.mark.slow
def test_jar_reads_it(archive: Path) -> None:
    """By the central directory, and from a pipe, by local headers alone. Java is too large for CI to install."""
    assert NAMES == output(tool("jar", is_in_ci=False), "tf", archive).splitlines()
    assert NAMES == output(tool("jar", is_in_ci=False), "t", stdin=archive).splitlines()


def test_order_of_entries_plays_no_part() -> None:
    """Equal trees, equal bytes."""
    assert zip_of(TREE, CONTENTS) == zip_of(reversed(TREE), CONTENTS)


def test_entries_are_sorted_by_the_bytes_of_the_whole_path() -> None:
    """Not folder by folder, and not as some language sorts; a folder's slash counts."""
    names = ["a", "a-b", "a.txt", "a0", "b", "Z", "é", "z", "\U0001f600", "\ufb00"]
    entries = [*(Entry(name) for name in names if name != "a"), Entry("a", is_folder=True)]

    assert ["Z", "a-b", "a.txt", "a", "a0", "b", "z", "é", "\ufb00", "\U0001f600"] == [
        entry.name for entry in sorted_entries(entries)
    ]


def test_empty_tree() -> None:
    """A zip file without entries."""
    assert 22 == len(zip_of([], {}))
    assert [[zip_of([], {})]] == scanned(tree_chunker([], {}), WINDOW_MIN)


@pytest.mark.parametrize(("size", "extra"), [(U32_MAX - 1, 0), (U32_MAX, 20), (1 << 40, 20)])
def test_zip64_in_a_local_header(size: int, extra: int) -> None:
    """Both sizes, or none."""
    header = local_header(Entry("a", size), 7)

    assert 31 + extra == len(header) == local_header_size(1, size)
    assert (45 if extra else 10) == int.from_bytes(header[4:6], "little")
    assert min(size, U32_MAX) == int.from_bytes(header[18:22], "little") == int.from_bytes(header[22:26], "little")
    if extra:
        assert b"\1\0\x10\0" + 2 * size.to_bytes(8, "little") == header[31:]


@pytest.mark.parametrize(
    ("size", "offset", "values"),
    [
        (5, U32_MAX - 1, []),
        (5, U32_MAX, [U32_MAX]),
        (U32_MAX, 5, [U32_MAX, U32_MAX]),
        (1 << 40, 1 << 41, [1 << 40, 1 << 40, 1 << 41]),
    ],
)
def test_zip64_in_a_central_header(size: int, offset: int, values: list[int]) -> None:
    """Those values that do not fit, each on its own, in the order of the format."""
    header = central_header(PlacedEntry(Entry("a", size), 7, offset))

    assert len(header) == central_header_size(1, size, offset)
    assert (45 if values else 10) == int.from_bytes(header[6:8], "little")
    expected = bytes([1, 0, 8 * len(values), 0]) + b"".join(value.to_bytes(8, "little") for value in values)
    assert (expected if values else b"") == header[47:]


@pytest.mark.parametrize(
    ("count", "size", "offset", "length"),
    [(65534, 5, 5, 22), (65535, 5, 5, 98), (1, U32_MAX - 1, U32_MAX - 1, 22), (1, U32_MAX, 5, 98), (1, 5, U32_MAX, 98)],
)
def test_zip64_end_records(count: int, size: int, offset: int, length: int) -> None:
    """They are there as soon as one number does not fit, and only then."""
    assert length == len(end_records(count=count, size=size, offset=offset))


@pytest.mark.slow
def test_zip64_by_count(tmp_path: Path) -> None:
    """More entries than 16 bits can count."""
    entries = [Entry(f"{place}") for place in range(65537)]
    path = tmp_path / "many.zip"
    path.write_bytes(zip_of(entries, dict.fromkeys((entry.name for entry in entries), b"")))

    with zipfile.ZipFile(path) as opened:
        assert 65537 == len(opened.namelist())
    assert "65537 files" in output(tool("unzip"), "-l", path)


def test_zip64_by_size(tmp_path: Path) -> None:
    """A file of more than 4 GiB, which is a hole on the disk, has another file after it."""
    big, small = Entry("big.bin", 5 << 30), Entry("small.txt", 4)
    offset = local_header_size(len(big.stored_name), big.size) + big.size
    tail = local_header(small, crc32(b"tail")) + b"tail"
    directory = central_directory([PlacedEntry(big, 7, 0), PlacedEntry(small, crc32(b"tail"), offset)], offset + len(tail))
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        file.write(local_header(big, 7))
        file.seek(offset)
        file.write(tail + directory)

    with zipfile.ZipFile(path) as opened:
        assert [5 << 30, 4] == [entry.file_size for entry in opened.infolist()]
        assert b"tail" == opened.read("small.txt")
    assert "tail" == output(tool("unzip"), "-p", path, "small.txt")
    assert "tail" == output(tool("7z"), "e", "-so", path, "small.txt")
    assert "tail" == output(tool("bsdtar"), "-xOf", path, "small.txt")
    headers = directory[: -len(end_records(count=2, size=0, offset=offset))]
    members = parse_central_directory(headers, End(offset + len(tail), len(headers), 2, 0))
    assert [(0, 5 << 30), (offset, 4)] == [(member.start, member.size) for member in members]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("\udce4.txt"), "not UTF-8"),
        (Entry("a", 1, target="\udce4"), "not UTF-8"),
        (Entry(""), "empty or `.`"),
        (Entry("a//b"), "empty or `.`"),
        (Entry("./a"), "empty or `.`"),
        (Entry("a/"), "empty or `.`"),
        (Entry("../a"), "out of its folder"),
        (Entry("a\\..\\b"), "out of its folder"),
        (Entry("/a"), "absolute"),
        (Entry("C:a"), "drive"),
        (Entry("a\0"), "NUL"),
        (Entry("a", 5, is_folder=True), "no content"),
        (Entry("a", 5, target="b"), "its size is 5"),
        (Entry("a", 2, target="/b"), "absolute"),
        (Entry("a", 4, target="../b"), "out of the tree"),
        (Entry("a", 1, target="a"), "circle"),
        (Entry("a", 4096, target="b" * 4096), "more than 4095"),
        (Entry("b", 5, is_folder=True), "no content"),
        (Entry("b"), "twice"),
        (Entry("b/c"), "not a folder"),
    ],
)
def test_entry_that_no_archive_holds(entry: Entry, reason: str) -> None:
    """An entry that could not be unpacked again is refused."""
    with pytest.raises(InvalidName, match=reason):
        sorted_entries([Entry("b"), entry])


def test_back_slash_is_a_letter() -> None:
    """A name may hold one, as file systems of Unix let it."""
    with zipfile.ZipFile(io.BytesIO(zip_of([Entry("a\\b", 1)], {"a\\b": b"x"}))) as opened:
        assert ["a\\b"] == opened.namelist()


def test_limits_of_the_format() -> None:
    """Names of 65,535 bytes and files of 2^63 - 1 are the largest."""
    assert (Entry("é" * (NAME_LIMIT // 2) + "n"),) == sorted_entries([Entry("é" * (NAME_LIMIT // 2) + "n")])
    for entry in (
        Entry("é" * (NAME_LIMIT // 2 + 1)),
        Entry("n" * NAME_LIMIT, is_folder=True),
        Entry("a", SIZE_LIMIT),
        Entry("a", -1),
    ):
        with pytest.raises(LimitExceeded, match="the size of"):
            sorted_entries([entry])
    with pytest.raises(LimitExceeded, match="the size of the archive"):
        tree_chunker([Entry("a", SIZE_LIMIT - 1), Entry("b", 1)], {})


def test_largest_name_is_read_by_zipfile() -> None:
    """It is written as it is."""
    name = "n" * NAME_LIMIT
    with zipfile.ZipFile(io.BytesIO(zip_of([Entry(name, 1)], {name: b"x"}))) as opened:
        assert b"x" == opened.read(name)


def test_segments_of_a_tree() -> None:
    """A file of at least 256 KiB is a segment; the entries between two of them are another one."""
    contents = {"a": b"", "b": octets(1, LEAST), "c": octets(2, LEAST), "d": octets(3, LEAST - 1)}
    chunker = tree_chunker([Entry(name, len(content)) for name, content in contents.items()], contents)

    assert [range(1), range(1, 2), range(2, 2), range(2, 3), range(3, 4)] == [segment.entries for segment in chunker.segments]
    assert [False, True, False, True, False] == [segment.is_content for segment in chunker.segments]
    assert [62, LEAST, 31, LEAST] == [segment.size for segment in chunker.segments[:-1]]
    assert chunker.size == sum(segment.size for segment in chunker.segments) == len(zip_of(chunker.entries, contents))


def test_run_is_cut_behind_the_content_that_follows_it() -> None:
    """Its last header holds the checksum, so that the content's chunks come first."""
    contents = {"a": prose(1, 100), "b": octets(1, LEAST), "c": octets(2, LEAST)}
    chunker = tree_chunker([Entry(name, len(content)) for name, content in contents.items()], contents)

    cuts = chunker.scan(memoryview(bytearray(16 << 20)))

    assert [1, 0, 3, 2, 4] == [cut.segment for cut in cuts]
    assert isinstance(cuts[0], Cut)
    assert [LEAST] == cuts[0].sizes
    assert chunker.is_finished
    assert [crc32(content) for content in contents.values()] == chunker.crcs
    assert [] == chunker.scan(memoryview(bytearray(16 << 20)))


def test_skipping_unknown_content() -> None:
    """A segment can be skipped only when the checksums of its entries are known."""
    chunker = tree_chunker([Entry("a", 5)], {})

    with pytest.raises(ValueError, match="cannot be skipped"):
        chunker.skip(0)
    chunker.remember(0, 7)
    chunker.skip(0)
    assert chunker.is_finished
    assert [] == chunker.scan(memoryview(bytearray(WINDOW_MIN)))


def test_buffer_that_is_too_small() -> None:
    """Scanning could not get on in it."""
    with pytest.raises(ValueError, match="are needed"):
        tree_chunker([], {}).scan(memoryview(bytearray(WINDOW_MIN - 1)))


def test_file_that_changes_while_it_is_read() -> None:
    """An error of `read` ends the scan."""

    def read(*_: object) -> None:
        raise SourceChanged("a", "it became shorter")

    chunker = TreeChunker([Entry("a", 5)], read)

    with pytest.raises(SourceChanged):
        chunker.scan(memoryview(bytearray(WINDOW_MIN)))


def test_unknown_chunking() -> None:
    """A tree is cut as the repository says, or not at all."""
    with pytest.raises(UnknownFormat):
        TreeChunker([], lambda *_: None, chunking_version=99)
