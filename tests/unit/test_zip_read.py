from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from filestore.errors import InvalidArchive
from filestore.format.zip.checksum import Checksum
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import (
    TAIL_SIZE,
    Members,
    ZipLimits,
    check_crc,
    check_descriptor,
    check_links,
    check_local_header,
    find_end,
    other_readings,
    parse_central_directory,
)
from filestore.format.zip.structures import FLAG_DESCRIPTOR, FLAG_UTF8
from filestore.format.zip.write import Entry
from tests.support.archives import (
    SMALL_SPACE,
    Forged,
    UnpackedArchive,
    deflated,
    finder_entry,
    forged,
    members_of,
    unpacked,
    zip_of,
)
from tests.support.generator import octets

FIXTURES = Path(__file__).parents[1] / "golden/archives"
TEXT = b"".join(b"line %d of a text that packs well\n" % number for number in range(1, 401))
FILES = {
    "readme.txt": UnpackedArchive(b"small\n"),
    "folder/deep/text.txt": UnpackedArchive(TEXT),
    "run.sh": UnpackedArchive(b"#!/bin/sh\necho hello\n", is_executable=True),
    "empty.txt": UnpackedArchive(b""),
    "größe/naïve.txt": UnpackedArchive("grüße\n".encode()),
}
FOLDERS = {path: UnpackedArchive(b"", is_folder=True) for path in ("folder", "folder/deep", "empty folder", "größe")}
ROOT = {"": UnpackedArchive(b"", is_folder=True)}
LINKS = {"link": UnpackedArchive(b"", target="folder/deep/text.txt"), "folder/link": UnpackedArchive(b"", target="../readme.txt")}
APPLE = {"__MACOSX/._readme.txt": UnpackedArchive(b"\0\5\x16\7\0\2\0\0Mac OS X        ")}
NOTHING_RUNS = {"run.sh": FILES["run.sh"]._replace(is_executable=False)}
STDIN = {"-": UnpackedArchive(TEXT)}
MAIN = {"__main__.py": UnpackedArchive(b"print('hello')\n")}

TREE = FILES | FOLDERS
TREES = {
    "infozip.zip": TREE,
    "infozip-stored.zip": TREE,
    "infozip-zip64.zip": TREE,
    "infozip-streamed.zip": TREE,
    "infozip-comment.zip": TREE,
    "infozip-links.zip": TREE | LINKS,
    "infozip-stdin.zip": STDIN,
    "infozip-stdin-streamed.zip": STDIN,
    "preamble.zip": TREE,
    "preamble-adjusted.zip": TREE,
    "7zip.zip": TREE,
    "7zip-links.zip": TREE | LINKS,
    "java.jar": TREE | NOTHING_RUNS,
    "bsdtar.zip": TREE | ROOT,
    "bsdtar-streamed.zip": TREE | ROOT,
    "bsdtar-folders-twice.zip": TREE | ROOT,
    "bsdtar-links.zip": TREE | ROOT | LINKS,
    "python.zip": TREE,
    "python-streamed.zip": TREE,
    "zipapp.pyz": TREE | MAIN,
    "dotnet.zip": TREE | NOTHING_RUNS,
    "macos.zip": TREE | APPLE,
}
REFUSED = {
    "infozip-encrypted.zip": ("readme.txt", "it is encrypted"),
    "infozip-bzip2.zip": ("folder/deep/text.txt", "it is packed with bzip2"),
    "7zip-deflate64.zip": ("folder/deep/text.txt", "it is packed with Deflate64, as Windows Explorer .* push the folder"),
    "7zip-lzma.zip": ("folder/deep/text.txt", "it is packed with LZMA"),
    "7zip-aes.zip": ("readme.txt", "it is encrypted"),
}


@pytest.mark.parametrize("name", TREES)
def test_foreign_archive(name: str) -> None:
    """An archive of another tool is unpacked as that tool meant it."""
    assert TREES[name] == unpacked((FIXTURES / name).read_bytes())


@pytest.mark.parametrize("name", REFUSED)
def test_foreign_archive_that_is_refused(name: str) -> None:
    """The error names the entry and the method that cannot be unpacked."""
    entry, reason = REFUSED[name]

    with pytest.raises(InvalidArchive, match=reason) as caught:
        unpacked((FIXTURES / name).read_bytes())
    assert entry == caught.value.entry


def test_every_fixture_is_tested() -> None:
    """No archive is there without a test."""
    assert {*TREES, *REFUSED, "make.sh"} == {path.name for path in FIXTURES.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_truncated_foreign_archive(name: str) -> None:
    """An archive that lost its end, by any number of bytes, is refused, for every tool."""
    archive = (FIXTURES / name).read_bytes()

    for size in range(len(archive.rstrip(b"\0"))):  # bsdtar may add zeros behind the end
        with pytest.raises(InvalidArchive):
            unpacked(archive[:size])


def test_message_names_the_entry() -> None:
    """One sentence, with the reason; where the whole file is at fault, it says so."""
    with pytest.raises(InvalidArchive) as caught:
        unpacked(forged([Forged("../a", b"")]))
    assert "the entry '../a' of the archive was refused: it leads out of its folder" == str(caught.value)
    with pytest.raises(InvalidArchive) as caught:
        unpacked(b"nothing")
    assert str(caught.value).startswith("the archive was refused: it has no end record")


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (Forged("caf\u00e9".encode("cp437"), host=0), "café"),
        (Forged("caf\u00e9".encode("cp437"), host=3), "café"),
        (Forged("café", host=0), "café"),
        (Forged("café", host=3), "café"),
        (Forged("café", host=10), "café"),
        (Forged("café", host=19), "café"),
        (Forged("ordner\\größe", host=0), "ordner/größe"),
        (Forged(b"caf\xc3", host=0), "caf├"),
        (Forged(b"caf\xe9", host=3), "cafΘ"),
        (Forged("café", host=0, flags=FLAG_UTF8), "café"),
        (Forged("./a//b/./c"), "a/b/c"),
        (Forged("a\\b", host=0), "a/b"),
        (Forged("a\\b", host=11), "a/b"),
        (Forged("a\\b", host=3), "a\\b"),
        (Forged("..."), "..."),
        (Forged("a..b/.c/..d"), "a..b/.c/..d"),
        (Forged("a\nb"), "a\nb"),
    ],
)
def test_name(entry: Forged, path: str) -> None:
    """Names are read as their writer meant them, in one form."""
    assert {path} == set(unpacked(forged([entry])))


@pytest.mark.parametrize(
    ("version", "crc", "text", "path"),
    [
        (1, zlib.crc32(b"caf?"), "café".encode(), "café"),
        (1, 7, "café".encode(), "caf?"),
        (2, zlib.crc32(b"caf?"), "café".encode(), "caf?"),
        (1, zlib.crc32(b"caf?"), b"caf\xff", "caf?"),
    ],
)
def test_unicode_path_extra_field(version: int, crc: int, text: bytes, path: str) -> None:
    """Info-ZIP's field counts where it belongs to the name, and is ignored elsewhere."""
    extra = struct.pack("<HHBI", 0x7075, 5 + len(text), version, crc) + text

    assert {path} == set(unpacked(forged([Forged("caf?", extra=extra, local_extra=extra)])))


@pytest.mark.parametrize("extra", [b"\0", b"\0\0\0", b"\x99\x99\xff\xff", b"UT\5\0\1\0\0\0\0"])
def test_extra_field_that_means_nothing(extra: bytes) -> None:
    """Padding, unknown fields and truncated fields are ignored."""
    assert {"a"} == set(unpacked(forged([Forged("a", b"x", extra=extra, local_extra=extra)])))


def test_folder_by_its_mode() -> None:
    """Some tools forget the slash at the end of a folder's name."""
    tree = unpacked(forged([Forged("a", mode=0o40755), Forged("a/b", b"x")]))

    assert {"a": True, "a/b": False} == {path: found.is_folder for path, found in tree.items()}


@pytest.mark.parametrize("again", ["a/", "a//", "./a/"])
def test_folder_that_is_named_twice(again: str) -> None:
    """Two entries for one folder are one folder, with any entries in it and between them."""
    folder = Forged("a/", mode=0o40755)

    for between in ([], [Forged("a/b", b"x")]):
        tree = unpacked(forged([folder, *between, Forged(again, mode=0o40700)]))
        assert {"a": True} | {entry.name: False for entry in between} == {path: found.is_folder for path, found in tree.items()}


@pytest.mark.parametrize("data", [b"", b"\3\0"])
def test_folder_that_is_deflated(data: bytes) -> None:
    """Nothing, deflated, as some tools write for folders; or not even that."""
    entry = Forged("a/", mode=0o40755, data=data, method=8)
    archive = forged([entry])

    assert members_of(archive)[0].is_folder
    if data:
        assert {"a"} == set(unpacked(archive))


@pytest.mark.parametrize(
    ("mode", "is_executable"), [(0, False), (0o755, True), (0o100644, False), (0o100744, True), (0o100611, False)]
)
def test_executable_bit(mode: int, is_executable: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The owner's counts, and no other."""
    assert is_executable == unpacked(forged([Forged("a", mode=mode)]))["a"].is_executable


@pytest.mark.parametrize(("mode", "is_executable"), [(0o010600, False), (0o010700, True)])
def test_fifo_that_holds_bytes(mode: int, is_executable: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """It is the file that `zip` read from a pipe."""
    assert {"-": UnpackedArchive(b"piped", is_executable)} == unpacked(forged([Forged("-", b"piped", mode=mode)]))


@pytest.mark.parametrize("layout", ["<3I", "<4s3I", "<I2Q", "<4sI2Q"])
@pytest.mark.parametrize("zeros", [True, False])
def test_descriptor_in_each_of_its_forms(layout: str, zeros: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """With and without signature, with 32 and 64 bits; sizes in the local header are zero or true."""
    content = b"content " * 99
    data = deflated(content)
    signature = (b"PK\7\10",) if "s" in layout else ()
    descriptor = struct.pack(layout, *signature, zlib.crc32(content), len(data), len(content))
    local = {"crc": 0, "size": 0, "stored_size": 0} if zeros else None
    entry = Forged("a", content, deflated=True, flags=FLAG_DESCRIPTOR, local=local, descriptor=descriptor)

    assert content == unpacked(forged([entry, Forged("b", b"")]))["a"].content


@pytest.mark.parametrize("is_deflated", [False, True])
@pytest.mark.parametrize("saturated", [("size",), ("stored_size",), ("size", "stored_size")])
def test_saturated_local_sizes_before_a_descriptor(
    saturated: tuple[str, ...],
    is_deflated: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """0xFFFFFFFF, without a Zip64 field or with one of zeros, means like 0 that the descriptor has the size."""
    content = b"content " * 99
    data = deflated(content) if is_deflated else content
    local = {"crc": 0, "size": 0, "stored_size": 0} | dict.fromkeys(saturated, 0xFFFFFFFF)
    descriptor = struct.pack("<4s3I", b"PK\7\10", zlib.crc32(content), len(data), len(content))
    for extra in (b"", b"UT\5\0\1\0\0\0\0", struct.pack("<HHQQ", 1, 16, 0, 0)):
        entry = Forged("a", content, is_deflated, flags=FLAG_DESCRIPTOR, local=local, local_extra=extra, descriptor=descriptor)
        assert content == unpacked(forged([entry, Forged("b", b"")]))["a"].content


def test_zip64_sizes_in_the_local_header_alone() -> None:
    """As `zipfile` writes them when asked to, whether they are needed or not."""
    extra = struct.pack("<HHQQ", 1, 16, 5, 5)
    entry = Forged("a", b"12345", local={"size": 0xFFFFFFFF, "stored_size": 0xFFFFFFFF}, local_extra=extra)

    assert b"12345" == unpacked(forged([entry]))["a"].content


def test_zip64_field_that_is_there_twice() -> None:
    """With equal values it says one thing, in either header, however long the fields are."""
    short, long = struct.pack("<HHQ", 1, 8, 5), struct.pack("<HHQQ", 1, 16, 5, 9)
    for extra in (short + short, short + b"UT\5\0\1\0\0\0\0" + long, long + short):
        entry = Forged("a", b"12345", size=0xFFFFFFFF, extra=extra, local_extra=extra)
        assert b"12345" == unpacked(forged([entry]))["a"].content


def test_zip64_end_records_that_were_not_needed() -> None:
    """As `torch.save` writes them: both end records say the same."""
    archive = forged([Forged("a", b"12345")])
    start = archive.index(b"PK\1\2")
    size = len(archive) - 22 - start
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)

    for preamble in (b"", b"#!/bin/sh\n"):
        assert {"a"} == set(unpacked(preamble + archive[:-22] + record + locator + archive[-22:]))


def finder_archive(contents: Mapping[str, bytes]) -> bytes:
    """A folder and files as macOS Finder packs them."""
    folder = Forged("folder/", mode=0o40755)
    return forged(
        [folder, *(finder_entry(name, content, space=SMALL_SPACE) for name, content in contents.items())], space=SMALL_SPACE
    )


@pytest.mark.parametrize("sizes", [[400_000] * 3, [400_000] * 9, [10, 1_040_000, 10, 1_048_150, 10], [10, 1_048_150]])
def test_offsets_that_are_wrapped(sizes: list[int]) -> None:
    """As macOS Finder writes archives above 4 GiB: each entry has one place, all the bytes between them are explained."""
    contents = {f"folder/{number}": octets(number, size) for number, size in enumerate(sizes)}
    archive = finder_archive(contents)
    end = find_end(archive[-TAIL_SIZE:], len(archive), offset_space=SMALL_SPACE)
    members = members_of(archive, offset_space=SMALL_SPACE)
    tree = unpacked(archive, offset_space=SMALL_SPACE)

    assert end.may_be_wrapped
    assert contents == {path: found.content for path, found in tree.items() if not found.is_folder}
    assert members == list(Members(archive[end.start :], end))
    assert [member.start for member in members] == list(Members(archive[end.start :], end).starts)


def test_offsets_that_are_wrapped_at_4_gib() -> None:
    """The members of 9 GiB of files below 4 GiB are found, with only their headers in the file."""
    sizes = [5, 3 << 30, 5, (4 << 30) - 9, 5, 2 << 30, 5]
    parts: dict[int, bytes] = {}
    directory, at = b"", 0
    for number, size in enumerate(sizes):
        name = b"%d" % number
        numbers = (20, 8, 8, 0, 33)
        parts[at] = struct.pack("<4s5H3I2H", b"PK\3\4", *numbers, 0, 0, 0, len(name), 0) + name
        fields = (0x315, *numbers, number, size, size, len(name), 0, 0, 0, 0, 0o100644 << 16, at % (1 << 32))
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name
        at += len(parts[at]) + size
        parts[at] = struct.pack("<4s3I", b"PK\7\10", number, size, size)
        at += 16
    tail = directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 7, 7, len(directory), at % (1 << 32), 0)

    end = find_end(tail, at + len(tail))
    members = parse_central_directory(directory, end)

    assert (at, sizes) == (end.start, [member.size for member in members])
    for member in members:
        extent = check_local_header(member, parts[member.start].ljust(member.head_size, b"\0"))
        check_descriptor(member, parts[extent.end])
    assert [2 << 32, members[4].start % (1 << 32)] == other_readings(members, end)
    assert not {2 << 32, members[4].start % (1 << 32)} & {member.start for member in members}


@pytest.mark.parametrize("sizes", [[10, SMALL_SPACE + 10, 10], [10, 10, 2 * SMALL_SPACE], [SMALL_SPACE - 20]])
def test_file_that_is_larger_than_what_finder_can_say(sizes: list[int]) -> None:
    """Its packed size is modulo 4 GiB, so it is ambiguous; the error names the cause and a way out."""
    archive = finder_archive({f"folder/{number}": octets(number, size) for number, size in enumerate(sizes)})

    with pytest.raises(InvalidArchive, match=r"as macOS Finder writes it, .* push the folder") as caught:
        unpacked(archive, offset_space=SMALL_SPACE)
    assert "" == caught.value.entry


def test_file_that_unpacks_to_more_than_what_finder_can_say() -> None:
    """Its packed size is known, its own one is modulo 4 GiB: the cause is named, and the way out."""
    text = b"text of a file " * 80_000
    archive = finder_archive({"folder/text": text})

    assert len(deflated(text)) < SMALL_SPACE < len(text)
    with pytest.raises(
        InvalidArchive, match=f"it states {len(text) - SMALL_SPACE} bytes, but has more, .* Finder .* push the folder"
    ):
        unpacked(archive, offset_space=SMALL_SPACE)


@pytest.mark.slow
@pytest.mark.parametrize("count", [65_536, 65_541])
def test_more_entries_than_the_end_record_can_count(count: int) -> None:
    """As tools without Zip64 write them: the end record has the last 16 bits of the count, and readers go by the size."""
    names = [f"{number}" for number in range(count)]
    archive = forged((Forged(name) for name in names), count=count & 0xFFFF)
    end = find_end(archive[-TAIL_SIZE:], len(archive))

    assert names == [member.path for member in members_of(archive)]
    assert names == zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert count == len(Members(archive[end.start :], end))


def test_longest_comment() -> None:
    """With 65,535 bytes of comment, the end record is still found."""
    archive = forged([Forged("a", b"12345" * 100_000)], comment=b"c" * 65535)

    assert TAIL_SIZE < len(archive)
    assert {"a"} == set(unpacked(archive))
    assert find_end(archive[-TAIL_SIZE:], len(archive)) == find_end(archive, len(archive))


@pytest.mark.parametrize("comment", [b"", b"a comment", b"\r\n"])
@pytest.mark.parametrize("behind", [b"\r\n", b"\0", bytes(500)])
def test_what_may_stand_behind_the_end(behind: bytes, comment: bytes) -> None:
    """The end of a line, as some web servers add it to an upload, and zeros."""
    archive = forged([Forged("a", b"12345")], comment=comment) + behind

    assert {"a"} == set(unpacked(archive)) == set(zipfile.ZipFile(io.BytesIO(archive)).namelist())


def test_empty_archive() -> None:
    """Nothing, with and without a preamble."""
    assert {} == unpacked(forged([]))
    assert {} == unpacked(b"#!/bin/sh\n" + forged([]))


def test_members_stand_in_the_order_of_their_data() -> None:
    """This holds for any order of the directory. Each member ends where the next one begins."""
    archive = forged([Forged("b", b"22"), Forged("a", b"1")])
    start = archive.index(b"PK\1\2")
    second = archive.index(b"PK\1\2", start + 1)
    reordered = archive[:start] + archive[second:-22] + archive[start:second] + archive[-22:]

    members = members_of(reordered)
    assert [("b", 0, 33), ("a", 33, 65)] == [(member.path, member.start, member.end) for member in members]
    assert [31, 31] == [member.head_size for member in members]


def test_extent_of_the_data() -> None:
    """It is the position of the content in the file, with the preamble."""
    archive = b"#!/bin/sh\n" + forged([Forged("a", b"12345", local_extra=b"\0\0\4\0zzzz")])
    (member,) = members_of(archive)
    extent = check_local_header(member, archive[member.start : member.start + member.head_size])

    assert (10, b"12345") == (member.start, archive[extent.start : extent.end])
    check_descriptor(member, archive[extent.end : member.end])


def test_ratio_of_what_is_stored_beside_it() -> None:
    """The ratio is that of the whole archive, so one sparse file among others is allowed."""
    zeros = Forged("zeros", bytes(4 << 20), deflated=True)

    assert 2 == len(members_of(forged([zeros, Forged("weights", bytes(range(256)) * 100)])))


def test_every_limit_can_be_lifted() -> None:
    """A limit is a number that the caller gives."""
    archive = forged([Forged("zeros", bytes(8 << 20), deflated=True)])

    assert 8 << 20 == members_of(archive, limits=ZipLimits(ratio=2000))[0].size


def test_links_among_members() -> None:
    """Links to files, folders, each other and nothing; up and down inside the tree."""
    targets = {"a/up": "..", "a/b/c": "../../d/e", "f": "a/up/a/b", "g": "nowhere/at/all", "h": ".", "i": "f/c"}
    entries = [Entry(path, len(target), target=target) for path, target in targets.items()] + [Entry("d/e")]

    assert targets.items() <= {path: found.target for path, found in unpacked(zip_of(entries, {"d/e": b""})).items()}.items()
    check_links([], {})


def test_inflating_in_single_bytes() -> None:
    """How the data is split plays no part."""
    content = b"content " * 999
    data = deflated(content)
    (member,) = members_of(forged([Forged("a", content, deflated=True)]))
    inflater = Inflater(member)

    assert content == b"".join(piece for byte in data for piece in inflater.inflate(bytes([byte])))
    inflater.finish()
    assert len(content) == inflater.size


def test_checksum_that_is_incomplete() -> None:
    """A part of the content has not come."""
    (member,) = members_of(forged([Forged("a", b"12345")]))
    checksum = Checksum()
    checksum.add(0, b"123")
    checksum.add(3, b"")

    with pytest.raises(InvalidArchive, match="a part of its content is missing"):
        check_crc(member, checksum.of(member.size))
    checksum.add(3, b"45")
    check_crc(member, checksum.of(member.size))


def test_checksum_of_nothing() -> None:
    """An empty file has one."""
    assert 0 == Checksum().of(0)
