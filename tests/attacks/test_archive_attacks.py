"""Zip files that would harm the machine that unpacks them.

Each is refused, with the name of the entry, before it is written.
"""

from __future__ import annotations

import struct
import zlib

import pytest

from filestore.errors import FilestoreError, InvalidArchive, LimitExceeded
from filestore.format.zip.inflate import PIECE_LIMIT, Inflater
from filestore.format.zip.read import DEFAULT_LIMITS, OFFSET_SPACE, ZipLimits, check_links, check_local_header
from filestore.format.zip.structures import FLAG_DESCRIPTOR, FLAG_UTF8
from tests.support.archives import SMALL_SPACE, Forged, content_in, deflated, forged, members_of, unpacked, wrapped

HONEST = Forged("honest.txt", b"all is well")
MIB = 1 << 20


def assert_refused(archive: bytes, entry: str, reason: str, *, offset_space: int = OFFSET_SPACE) -> None:
    """Check that the archive is refused for `reason`, and that the error names `entry`."""
    with pytest.raises(InvalidArchive, match=reason) as caught:
        unpacked(archive, offset_space=offset_space)
    assert entry == caught.value.entry


def assert_beyond_limit(archive: bytes, what: str, limits: ZipLimits = DEFAULT_LIMITS) -> None:
    """Check that the archive is refused, and that the error names the limit."""
    with pytest.raises(LimitExceeded, match=what):
        unpacked(archive, limits=limits)


def test_forged_archives_are_right_but_for_the_forgery() -> None:
    """An archive that these tests build without a forgery is unpacked."""
    tree = unpacked(forged([HONEST, Forged("folder/", mode=0o40755), Forged("folder/b", b"b" * 999, deflated=True)]))

    assert {"honest.txt": b"all is well", "folder": b"", "folder/b": b"b" * 999} == {
        path: found.content for path, found in tree.items()
    }


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "..", "a/..", "a/b/../c", "..\\evil", "a\\..\\..\\evil", "./../evil", "a/..\\evil"]
)
@pytest.mark.parametrize("host", [0, 3])
def test_parent_path(name: str, host: int) -> None:
    """A name leads out of its folder, also with the separators of another system."""
    entry = name.replace("\\", "/") if host == 0 else name

    assert_refused(forged([HONEST, Forged(name, b"evil", host=host)]), entry, "leads out of its folder")


@pytest.mark.parametrize("name", ["/etc/passwd", "//etc/passwd", "\\evil", "/"])
def test_absolute_path(name: str) -> None:
    """A name starts at the root."""
    assert_refused(forged([HONEST, Forged(name, b"")]), name, "absolute")


@pytest.mark.parametrize("name", ["C:/evil", "C:\\evil", "c:evil", "z:"])
def test_drive_letter(name: str) -> None:
    """A name starts at a drive."""
    assert_refused(forged([HONEST, Forged(name, b"evil")]), name, "drive letter")


@pytest.mark.parametrize("name", ["\\\\server\\share\\evil", "//server/share/evil", "\\\\?\\C:\\evil"])
@pytest.mark.parametrize("host", [0, 3])
def test_unc_path(name: str, host: int) -> None:
    """A name starts at another machine."""
    entry = name.replace("\\", "/") if host == 0 else name

    assert_refused(forged([HONEST, Forged(name, b"evil", host=host)]), entry, "absolute")


def test_nul_in_a_name() -> None:
    """A program that stops at the NUL sees another name."""
    assert_refused(forged([HONEST, Forged("a.txt\0.exe", b"evil")]), "a.txt\0.exe", "NUL")


@pytest.mark.parametrize("name", ["", ".", "./", "//"])
def test_no_name(name: str) -> None:
    """The file would be the target itself."""
    archive = forged([HONEST, Forged(name, b"evil")])

    with pytest.raises(InvalidArchive, match=r"no name|it is a folder, but|absolute"):
        unpacked(archive)


def test_name_that_is_not_utf8() -> None:
    """The flag says UTF-8, and the bytes are not UTF-8."""
    assert_refused(forged([Forged(b"a\xff.txt", flags=FLAG_UTF8)]), "a\\xff.txt", "not UTF-8")


@pytest.mark.parametrize("second", ["a/b.txt", "a//b.txt", "./a/b.txt", "a/./b.txt", "a/b.txt/"])
def test_same_name_twice(second: str) -> None:
    """Two entries have one path, in different spellings."""
    mode = 0o40755 if second.endswith("/") else 0o100644

    assert_refused(
        forged([Forged("a/b.txt", b"1"), Forged(second, b"" if second.endswith("/") else b"2", mode=mode)]), second, "twice"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Forged("a", b"file"), Forged("a/", mode=0o40755)),
        (Forged("a/", mode=0o40755), Forged("a", b"file")),
        (Forged("a/", mode=0o40755), Forged("a", b"b", mode=0o120777)),
        (Forged("a", b"b", mode=0o120777), Forged("a/", mode=0o40755)),
        (Forged("a", b"b", mode=0o120777), Forged("a", b"b", mode=0o120777)),
    ],
)
def test_folder_and_something_else_of_the_same_name(first: Forged, second: Forged) -> None:
    """Only a folder may be named twice, and only as a folder."""
    assert_refused(forged([Forged("b", b""), first, second]), str(second.name), "twice")


def test_same_name_twice_by_back_slashes() -> None:
    """Two entries have one path, one of them with the separators of another system."""
    assert_refused(forged([Forged("a/b", b"1"), Forged("a\\b", b"2", host=0)]), "a/b", "twice")


def test_file_where_a_folder_must_be() -> None:
    """The archive has a file, and then something below its path."""
    assert_refused(forged([Forged("a", b"file"), Forged("a/b/c", b"evil")]), "a/b/c", "its parent 'a' is not a folder")


def test_folder_where_a_file_must_be() -> None:
    """The archive has something in a folder, and then a file with the folder's path."""
    assert_refused(forged([Forged("a/b/c", b"1"), Forged("a/b", b"evil")]), "a/b", "must be a folder")


def test_write_through_a_symlink() -> None:
    """The archive has a link to a place outside or inside, and a file below its path, in either order."""
    link = Forged("way", b"folder", mode=0o120777)
    file = Forged("way/evil", b"evil")

    assert_refused(forged([Forged("folder/", mode=0o40755), link, file]), "way/evil", "is not a folder")
    assert_refused(forged([file, link]), "way", "must be a folder")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"/etc/passwd", "absolute"),
        (b"../outside", "out of the tree"),
        (b"folder/../../outside", "out of the tree"),
        (b"missing/../../outside", "out of the tree"),
        (b"missing/..", "out of the tree"),
        (b"", "no target"),
        (b"a\0b", "NUL"),
        (b"a\xff", "not UTF-8"),
        (b"link", "circle"),
        (b"x" * 4096, "more than 4095"),
    ],
)
def test_symlink_that_leads_out(target: bytes, reason: str) -> None:
    """A link must be relative and stay inside."""
    entries = [Forged("folder/file", b""), Forged("link", target, mode=0o120777)]

    assert_refused(forged(entries), "link", reason)


def test_symlinks_that_lead_out_together() -> None:
    """Each link alone stays inside."""
    up = Forged("a/b/up", b"../..", mode=0o120777)
    out = Forged("out", b"a/b/up/..", mode=0o120777)

    assert_refused(forged([Forged("a/b/file", b""), up, out]), "out", "out of the tree")


def test_symlink_by_another_spelling() -> None:
    """A file system without case takes the link for a folder. It must not lead up."""
    up = Forged("a/b/up", b"../..", mode=0o120777)
    out = Forged("out", b"a/b/UP/..", mode=0o120777)

    assert_refused(forged([Forged("a/b/file", b""), up, out]), "out", "out of the tree")


@pytest.mark.parametrize("length", [2, 41])
def test_symlinks_in_a_circle(length: int) -> None:
    """The links form a circle, or a chain that is too long for an operating system."""
    links = [Forged(f"{place}", f"{(place + 1) % length}".encode(), mode=0o120777) for place in range(length)]

    assert_refused(forged(links), "0", "circle")


def test_symlinks_that_take_long() -> None:
    """Short links lead over many others."""
    targets = {f"l{place}": "d/../" * 50 + f"l{place + 1}" for place in range(30)}
    members = members_of(forged([Forged("d/f", b"")]))

    with pytest.raises(InvalidArchive, match="too many links and folders"):
        check_links(members, targets)


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (0o010644, "a FIFO"),
        (0o020644, "a character device"),
        (0o060644, "a block device"),
        (0o140644, "a socket"),
        (0o150644, "is not that of a file, folder or link"),
    ],
)
def test_device_by_mode_bits(mode: int, what: str) -> None:
    """An entry that is not a file, folder or link is refused."""
    assert_refused(forged([HONEST, Forged("dev", b"", mode=mode)]), "dev", what)


@pytest.mark.parametrize(
    ("mode", "what"), [(0o020644, "a character device"), (0o060644, "a block device"), (0o140644, "a socket")]
)
def test_device_that_holds_bytes(mode: int, what: str) -> None:
    """Other tools make a file of it. bsdtar makes a device, and makes a file of zeros of a socket."""
    assert_refused(forged([HONEST, Forged("dev", b"bytes", mode=mode)]), "dev", what)


def test_fifo_that_is_a_folder_too() -> None:
    """Its name ends like that of a folder, and it has content."""
    assert_refused(forged([HONEST, Forged("dev/", b"bytes", mode=0o010644)]), "dev/", "it is a FIFO")


def test_folder_that_holds_bytes() -> None:
    """Its name or mode says folder, and its size says file."""
    assert_refused(forged([Forged("a/", b"evil", mode=0o40755)]), "a/", "it is a folder, but has content or is a link")
    assert_refused(forged([Forged("a", b"evil", mode=0o40755)]), "a", "it is a folder, but has content or is a link")
    assert_refused(forged([Forged("a/", b"", mode=0o120777)]), "a/", "it is a folder, but has content or is a link")


def test_setuid_bits_are_dropped() -> None:
    """Only the permission to execute is kept."""
    (member,) = members_of(forged([Forged("su", b"evil", mode=0o107755)]))

    assert 0o100755 == member.mode
    assert member.is_executable


@pytest.mark.parametrize("flags", [1, 1 << 6 | 1, 1 << 13])
def test_encrypted_entry(flags: int) -> None:
    """Nobody has the password."""
    assert_refused(forged([HONEST, Forged("secret", b"?", flags=flags)]), "secret", "encrypted")


@pytest.mark.parametrize(
    ("method", "name"),
    [(1, "shrunk"), (9, "Deflate64"), (12, "bzip2"), (14, "LZMA"), (93, "Zstandard"), (99, "AES"), (77, "method 77")],
)
def test_other_method(method: int, name: str) -> None:
    """An unknown compression method is refused, and the error names the entry."""
    assert_refused(forged([HONEST, Forged("packed", b"?", method=method)]), "packed", name)


def test_bomb_by_ratio() -> None:
    """64 KiB unpack to 64 MiB of zeros. The sizes in the directory are enough to refuse it."""
    assert_beyond_limit(forged([HONEST, Forged("zeros", bytes(64 * MIB), deflated=True)]), "ratio")


def test_bomb_by_count() -> None:
    """The end record has more entries than the limit. The directory is not read."""
    assert_beyond_limit(forged([HONEST], count=11), "entries of the archive is 11", ZipLimits(entries=10))


def test_bomb_by_implied_folders() -> None:
    """A few names imply many folders."""
    deep = [Forged(f"{place}/" + "d/" * 50 + "f", b"") for place in range(10)]

    assert_beyond_limit(forged(deep), "files and folders", ZipLimits(entries=100))


def test_bomb_by_total_size() -> None:
    """The directory has more bytes than the limit in total. None of them is unpacked."""
    halves = [Forged(name, bytes(600), deflated=True) for name in "ab"]

    assert_beyond_limit(forged(halves), r"entry 'b', is 1200, more than the limit of 1000", ZipLimits(total_size=1000))


def test_bomb_by_depth() -> None:
    """Folders are nested too deep."""
    assert_beyond_limit(forged([Forged("d/" * 200, mode=0o40755)]), "depth")


def test_bomb_by_directory_size() -> None:
    """A central directory larger than the limit is not read."""
    assert_beyond_limit(forged([HONEST]), "central directory", ZipLimits(directory_size=10))


@pytest.mark.parametrize("size", [4097, 65535])
def test_name_of_65535_bytes(size: int) -> None:
    """The names are longer than any path, up to the format's limit. The message is shorter."""
    with pytest.raises(LimitExceeded, match="the size of the name of the entry") as caught:
        unpacked(forged([HONEST, Forged("n" * size, b"")]))
    assert len(str(caught.value)) < 400


def test_long_names_are_shortened_in_messages() -> None:
    """The error names the entry, but not with 4,000 letters."""
    with pytest.raises(InvalidArchive, match="twice") as caught:
        unpacked(forged([Forged("n" * 4000, b""), Forged("n" * 4000, b"")]))
    assert len(str(caught.value)) < 400


def test_overlapping_entries() -> None:
    """Fifield's better zip bomb: many entries share one kernel, quoted or not."""
    kernel = Forged("kernel", bytes(1 * MIB), deflated=True)
    whole = len(forged([kernel]))
    again = [Forged(f"again{place}", kernel.content, deflated=True, offset=0, in_body=False) for place in range(100)]

    assert whole < 4000
    assert_refused(forged([kernel, *again]), "kernel", "overlaps with 'again0'")


def test_entry_inside_another_entry() -> None:
    """The data of an entry contains another entry, as in a quine."""
    inner = forged([Forged("inner", b"evil")])
    outer = Forged("outer", inner)
    start = 30 + len("outer")

    assert_refused(forged([outer, Forged("inner", b"evil", offset=start, in_body=False)]), "outer", "overlaps with 'inner'")


def test_entry_inside_the_central_directory() -> None:
    """The data of an entry reaches into the directory."""
    assert_refused(forged([Forged("a", b"", size=60, stored_size=60)]), "a", "overlaps with the central directory")


def test_hard_link() -> None:
    """One entry has two names."""
    assert_refused(
        forged([HONEST, Forged("other", HONEST.content, offset=0, in_body=False)]), "honest.txt", "overlaps with 'other'"
    )


@pytest.mark.parametrize("declared", [0, 998, 1001, 2000])
def test_declared_size_that_lies(declared: int) -> None:
    """The data unpacks to more or less than the declared size."""
    entry = Forged("liar", bytes(1000), deflated=True, size=declared)

    assert_refused(forged([HONEST, entry]), "liar", f"it states {declared} bytes, but has")


def test_declared_size_that_lies_in_a_stored_entry() -> None:
    """The two sizes of a stored entry must be equal."""
    assert_refused(
        forged([HONEST, Forged("liar", b"12345", size=6)]), "liar", "stored without compression in 5 bytes, but states 6"
    )


def test_bomb_that_lies_stops_at_its_size() -> None:
    """At most one piece is unpacked beyond the declared size."""
    (member,) = members_of(forged([Forged("liar", bytes(64 * MIB), deflated=True, size=1000)]))
    data = deflated(bytes(64 * MIB))
    inflater = Inflater(member)

    with pytest.raises(InvalidArchive, match="has more"):
        list(inflater.inflate(data))
    assert inflater.size <= PIECE_LIMIT


@pytest.mark.parametrize("content", [b"x" * 1000, b""])
def test_bytes_behind_the_deflated_data(content: bytes) -> None:
    """Bytes are hidden after the end of a stream."""
    entry = Forged("a", content, data=deflated(content) + b"hidden", deflated=True)

    assert_refused(forged([entry]), "a", "bytes follow the end of its data")


def test_damaged_deflated_data() -> None:
    """The bytes are not a deflated stream."""
    assert_refused(forged([Forged("a", b"x" * 1000, data=b"\xff" * 20, deflated=True)]), "a", "cannot be inflated")


def test_deflated_data_without_end() -> None:
    """The stream is cut off."""
    content = bytes(range(256)) * 4
    entry = Forged("a", content, data=deflated(content)[:-3], deflated=True)

    assert_refused(forged([entry]), "a", "ends too early")


@pytest.mark.parametrize("is_deflated", [False, True])
def test_wrong_checksum(is_deflated: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The content is not what was packed."""
    assert_refused(forged([Forged("a", b"content", deflated=is_deflated, crc=1)]), "a", "checksum")


def test_central_directory_that_names_other_entries() -> None:
    """The local header has another name, so two tools would unpack two trees."""
    assert_refused(forged([HONEST, Forged("good", b"?", local_name=b"evil")]), "good", "another name")


def test_unicode_name_that_differs_between_the_headers() -> None:
    """The local header has another name in its extra field."""
    other = struct.pack("<HHBI", 0x7075, 9, 1, zlib.crc32(b"good")) + b"evil"

    assert_refused(forged([Forged("good", b"?", local_extra=other)]), "good", "another name")


@pytest.mark.parametrize(
    "numbers", [{"size": 3}, {"stored_size": 3}, {"crc": 3}, {"size": 0}, {"size": 0, "stored_size": 0, "crc": 0}]
)
def test_local_header_with_other_sizes(numbers: dict[str, int]) -> None:
    """The local header has other values for the content."""
    assert_refused(forged([Forged("a", b"12345", local=numbers)]), "a", "local header states the")


@pytest.mark.parametrize("numbers", [{"method": 8}, {"flags": 1}, {"flags": FLAG_UTF8}, {"flags": FLAG_DESCRIPTOR}])
def test_local_header_that_is_packed_in_another_way(numbers: dict[str, int]) -> None:
    """The local header has other values for the data."""
    assert_refused(forged([Forged("a", b"12345", local=numbers)]), "a", "another way of packing")


def test_entry_that_the_central_directory_does_not_name() -> None:
    """A tool that reads forward sees one more entry: at the start, in the middle or at the end."""
    hidden = Forged("hidden", b"evil", in_directory=False)

    assert_refused(forged([hidden, HONEST]), "", "begins with an entry")
    assert_refused(forged([HONEST, hidden, Forged("b", b"")]), "honest.txt", "bytes follow its data")
    assert_refused(forged([HONEST, hidden]), "honest.txt", "bytes follow its data")
    assert_refused(forged([hidden]), "", "begins with an entry")


def test_entry_that_has_no_local_header() -> None:
    """The central directory names an entry that does not exist."""
    archive = forged([HONEST, Forged("a", b"12345" * 20)]).replace(b"PK\3\4", b"PK\3\5")

    assert_refused(archive, "honest.txt", "its local header is missing")


def test_local_header_that_runs_into_the_data() -> None:
    """The extra field of a local header is longer than the space before the data."""
    honest = forged([Forged("a", b"12345")])
    archive = honest[:28] + b"\xff\xff" + honest[30:]

    assert_refused(archive, "a", "longer than the space before its data")


@pytest.mark.parametrize("gap", [b"\0", b"garbage", b"PK\7\10", bytes(12), bytes(16), bytes(200_000)])
def test_garbage_between_entries(gap: bytes) -> None:
    """There are bytes that belong to no entry, few or many. Some look like a descriptor."""
    for entries in ([HONEST._replace(gap=gap), Forged("b", b"")], [HONEST._replace(gap=gap)]):
        assert_refused(forged(entries), "honest.txt", "bytes follow its data|belong to no entry")


@pytest.mark.parametrize("numbers", [(1, 5, 5), (0, 5, 5), (2, 4, 5), (2, 5, 4)])
@pytest.mark.parametrize("layout", ["<3I", "<4s3I", "<I2Q", "<4sI2Q"])
def test_descriptor_that_lies(numbers: tuple[int, int, int], layout: str) -> None:
    """The descriptor differs from the central directory, in each of its forms."""
    signature = (b"PK\7\10",) if "s" in layout else ()
    entry = Forged("a", b"12345", crc=2, flags=FLAG_DESCRIPTOR, descriptor=struct.pack(layout, *signature, *numbers))
    (member,) = members_of(forged([entry]))
    archive = forged([entry])
    extent = check_local_header(member, archive[: member.head_size])

    assert 5 == extent.end - extent.start
    with pytest.raises(InvalidArchive, match=r"descriptor|checksum"):
        unpacked(archive)


def test_descriptor_without_its_signature() -> None:
    """The first four of its 16 bytes are not a signature."""
    descriptor = b"PK\7\11" + struct.pack("<3I", zlib.crc32(b"12345"), 5, 5)

    assert_refused(forged([Forged("a", b"12345", flags=FLAG_DESCRIPTOR, descriptor=descriptor)]), "a", "not a descriptor")


def test_descriptor_that_is_missing() -> None:
    """The header says that sizes follow the data, and they do not."""
    assert_refused(forged([Forged("a", b"12345", flags=FLAG_DESCRIPTOR)]), "a", "0 bytes follow its data")


@pytest.mark.parametrize("count", [0, 1, 3, 65535])
def test_end_record_that_counts_wrong(count: int) -> None:
    """The end record has fewer or more entries than the directory."""
    assert_refused(forged([HONEST, Forged("b", b"")], count=count), "", "central directory")


@pytest.mark.parametrize("count", [0, 1, 3, 2 - 65_536, 2 + 65_536])
def test_zip64_end_record_that_counts_wrong(count: int) -> None:
    """A count of 64 bits is not taken modulo 65,536."""
    honest = forged([HONEST, Forged("b", b"")])
    directory = honest.index(b"PK\1\2")
    size = len(honest) - 22 - directory
    count %= 1 << 64
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, directory)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, directory + size, 1)
    narrow = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, directory, 0)

    with pytest.raises((InvalidArchive, LimitExceeded)):
        unpacked(honest[:-22] + record + locator + narrow)


def test_bomb_by_count_that_the_end_record_hides() -> None:
    """The end record counts modulo 65,536. The limit applies to the real number of entries."""
    archive = forged((Forged(f"{number}") for number in range(65_536 + 5)), count=5)

    assert_beyond_limit(archive, "entries of the archive is 11", ZipLimits(entries=10))


def test_comment_that_holds_another_end() -> None:
    """The comment contains another archive. Tools would choose differently."""
    other = forged([Forged("other", b"evil")])

    assert_refused(forged([HONEST], comment=other + b"!"), "", "another one")


def test_archive_behind_an_archive() -> None:
    """Two archives follow each other. The first would be hidden in the preamble of the second."""
    assert_refused(forged([Forged("first", b"evil")]) + forged([HONEST]), "", "begins with an entry")


@pytest.mark.parametrize("behind", [b"x", b"\r\nx", b"\r\n\r\n", b"\n\r", b"\0\r\n", b"\r", b" "])
def test_bytes_behind_the_end(behind: bytes) -> None:
    """Bytes are hidden after the end of the archive."""
    assert_refused(forged([HONEST]) + behind, "", "bytes follow its end record")


def test_bytes_before_the_end_record() -> None:
    """Bytes are hidden between the directory and the end record."""
    with pytest.raises(InvalidArchive):
        unpacked(forged([HONEST], before_end=b"garbage"))


@pytest.mark.parametrize(
    "forgery",
    [
        {"signature": b"PK\6\5"},
        {"rest": 45},
        {"rest": 1 << 63},
        {"count": 2},
        {"size": 1 << 62},
        {"offset": 1 << 63},
        {"located": 1},
        {"disks": 2},
        {"disk": 1},
    ],
)
def test_zip64_end_record_that_lies(forgery: dict[str, int | bytes]) -> None:
    """The second end record contradicts the first one, or its locator."""
    honest = forged([HONEST])
    directory = honest.index(b"PK\1\2")
    size = len(honest) - 22 - directory
    truth: dict[str, int | bytes] = {"signature": b"PK\6\6", "rest": 44, "disk": 0, "count": 1, "size": size, "offset": directory}
    numbers = truth | {"located": directory + size, "disks": 1} | forgery
    record = struct.pack(
        "<4sQ2H2I4Q",
        numbers["signature"],
        numbers["rest"],
        45,
        45,
        numbers["disk"],
        0,
        numbers["count"],
        numbers["count"],
        numbers["size"],
        numbers["offset"],
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, numbers["located"], numbers["disks"])

    assert {"honest.txt"} == set(unpacked(honest))
    with pytest.raises(InvalidArchive):
        unpacked(honest[:-22] + record + locator + honest[-22:])


@pytest.mark.parametrize("extra", [b"", b"\1\0\4\0aaaa", b"\1\0\x10\0" + bytes(8)])
def test_zip64_field_that_is_missing(extra: bytes) -> None:
    """A size has only the mark that refers to a missing field."""
    assert_refused(forged([Forged("a", b"12345", size=0xFFFFFFFF, extra=extra)]), "a", "Zip64")


@pytest.mark.parametrize("flags", [0, FLAG_DESCRIPTOR])
@pytest.mark.parametrize("value", [3, 0xFFFFFFFF])
def test_saturated_local_size_that_lies(flags: int, value: int) -> None:
    """The mark of Zip64 has no descriptor, or a field with another size."""
    local = {"size": 0xFFFFFFFF, "stored_size": 0xFFFFFFFF}
    extra = b"" if not flags else struct.pack("<HHQQ", 1, 16, value, value)
    descriptor = struct.pack("<4s3I", b"PK\7\10", zlib.crc32(b"12345"), 5, 5) if flags else b""
    entry = Forged("a", b"12345", flags=flags, local=local, local_extra=extra, descriptor=descriptor)

    assert_refused(forged([entry]), "a", "Zip64|local header states the")


def test_zip64_field_that_is_there_twice() -> None:
    """Some tools take the first field, and others the last."""
    fields = [struct.pack("<HHQ", 1, 8, size) for size in (5, 6)]
    for extra in (b"".join(fields), b"".join(reversed(fields)), fields[0] + b"\1\0\0\0", fields[0] + fields[0] + fields[1]):
        assert_refused(forged([Forged("a", b"12345", size=0xFFFFFFFF, extra=extra)]), "a", "there twice")
        local = {"size": 0xFFFFFFFF}
        assert_refused(forged([Forged("a", b"12345", local=local, local_extra=extra)]), "a", "there twice")


def test_wrapped_archives_are_right_but_for_the_forgery() -> None:
    """An archive with wrapped offsets and no forgery is unpacked, whatever its files contain elsewhere."""
    archive = wrapped(HONEST, decoys={2 * SMALL_SPACE - 1000: forged([HONEST]), SMALL_SPACE: forged([HONEST])})

    assert b"all is well" == unpacked(archive, offset_space=SMALL_SPACE)["honest.txt"].content


@pytest.mark.parametrize(("offset", "name"), [(2 * SMALL_SPACE, "filler 0"), (1_400_076 - SMALL_SPACE, "filler 2")])
def test_wrapped_offsets_that_another_reading_finds_an_entry_by(offset: int, name: str) -> None:
    """Some readers correct offsets by the error of the end record, and some do not.

    One would unpack another file of that name.
    """
    decoy = forged([Forged(name, b"evil", in_directory=False)])[:-22]

    assert_refused(wrapped(HONEST, decoys={offset: decoy}), "", "lead to two different entries", offset_space=SMALL_SPACE)


def test_wrapped_offsets_that_lie() -> None:
    """Offsets are out of order, leave space for more entries, or are shared; or the end of the data is not clear."""
    more = Forged("more", b"m" * 200)
    for entries in (
        [HONEST, more._replace(offset=5)],
        [more._replace(gap=bytes(200_000)), HONEST],
        [HONEST._replace(offset=0)],
        [HONEST._replace(flags=FLAG_DESCRIPTOR, descriptor=struct.pack("<3I", zlib.crc32(HONEST.content), 11, 11))],
        [more, HONEST._replace(in_body=False, offset=(3 * 700_038) % SMALL_SPACE)],
    ):
        assert_refused(wrapped(*entries), "", "the positions of its entries are not known", offset_space=SMALL_SPACE)
    hidden = wrapped(more, HONEST._replace(in_directory=False))
    assert_refused(hidden, "more", "bytes follow its data", offset_space=SMALL_SPACE)
    assert_refused(wrapped(more._replace(local_name=b"evil")), "more", "another name", offset_space=SMALL_SPACE)


def test_archive_behind_a_preamble_that_looks_wrapped() -> None:
    """A preamble of a multiple of 4 GiB is accepted only if it does not begin like an entry.

    Otherwise its meaning is unclear.
    """
    archive = forged([HONEST])

    assert {"honest.txt"} == set(unpacked(bytes(SMALL_SPACE) + archive, offset_space=SMALL_SPACE))
    other = forged([Forged("first", b"evil")]).ljust(SMALL_SPACE, b"\0")
    assert_refused(other + archive, "", "are not known", offset_space=SMALL_SPACE)


def test_offset_beyond_the_file() -> None:
    """A local header would be after the end of the file."""
    assert_refused(forged([HONEST, Forged("a", b"", offset=0xFFFFFF00, in_body=False)]), "a", "no local header")


def test_one_of_several_parts() -> None:
    """The archive continues in another file."""
    honest = forged([HONEST])

    assert_refused(honest[:-18] + b"\1\0" + honest[-16:], "", "several parts")


def test_truncated_at_every_byte() -> None:
    """An archive that lacks bytes at its end or start is refused, always with an error of filestore."""
    archive = forged([HONEST, Forged("folder/", mode=0o40755), Forged("b", b"b" * 999, deflated=True)], comment=b"a comment")

    assert 3 == len(unpacked(archive))
    for size in range(len(archive)):
        with pytest.raises(InvalidArchive):
            unpacked(archive[:size])
        with pytest.raises(InvalidArchive):
            unpacked(archive[len(archive) - size :])


def test_every_bit_flipped() -> None:
    """An archive with a flipped bit is refused or is another valid archive.

    Wrong content and other errors do not occur.
    """
    archive = forged([HONEST, Forged("l", b"honest.txt", mode=0o120777), Forged("b", b"b" * 99, deflated=True)])
    contents = {found.content for found in unpacked(archive).values()}

    for place in range(8 * len(archive)):
        damaged = bytearray(archive)
        damaged[place // 8] ^= 1 << place % 8
        try:
            tree = unpacked(bytes(damaged))
        except FilestoreError:
            continue
        assert {found.content for found in tree.values()} <= contents | {b"honest.txt", b""}


def test_not_a_zip_file() -> None:
    """The file has other content, or none."""
    for archive in (b"", b"PK", b"PK\5\6", bytes(100_000), b"#!/bin/sh\n" * 10_000):
        assert_refused(archive, "", "no end record")


def test_content_of_another_entry() -> None:
    """Two entries of one size are swapped."""
    members = members_of(forged([Forged("a", b"1"), Forged("b", b"2")]))

    with pytest.raises(InvalidArchive, match="checksum"):
        content_in(b"2", members[0])
