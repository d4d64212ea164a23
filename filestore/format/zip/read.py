"""Reads any zip file, from byte ranges that the caller gets: first the structure, then content in any order.

    end = find_end(the last TAIL_SIZE bytes, size)
    members = parse_central_directory(the bytes of end.directory)
    check_preamble(the first 4 bytes, members, end)
    check_other_reading(4 bytes) for each of other_readings(members, end)
    for each member, as its bytes arrive: content = check_local_header(...), check_descriptor(...), `Inflater` or `Checksum`
    check_links(members, targets)

Nothing is trusted (I4). Two tools that read the same file must see the same tree, so every byte must be explained. A
file has a preamble, then entries without gaps, each with the same header as in the central directory, then the
directory, then the end records up to the last byte. Anything else is refused.

Source: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT; on the differences between
readers: D. Fifield, "A better zip bomb", WOOT 2019.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, NoReturn, Self, overload

from filestore.core.digest import Buffer
from filestore.errors import InvalidArchive, LimitExceeded
from filestore.format.zip import structures as zip_
from filestore.format.zip.tree import LINK_TARGET_LIMIT, Tree, for_display, link_target_problem, normalised, path_problem

TAIL_SIZE = zip_.END_RECORD.size + zip_.U16_MAX + zip_.LOCATOR.size + zip_.END64_RECORD.size
"""The bytes at the end of a file that `find_end` needs: the end records and the longest comment."""

WAY_OUT = "unpack the archive with the tool that made it or with 7z, and push the folder that comes out"
"""The advice for an honest archive that is not accepted."""
MAC_WAY_OUT = "unpack the archive on the Mac, and push the folder that comes out"
"""The advice if other tools cannot read the archive either."""

RATIO_ALLOWANCE = 1 << 20
"""Bytes that an archive may unpack to, with any ratio."""

OFFSET_SPACE = 1 << 32
"""Tools without Zip64 write an offset or a size modulo this number if it does not fit."""

_HEADER_SLACK = zip_.LOCAL_HEADER.size + 2 * zip_.U16_MAX + 24
"""The most bytes that an entry has besides its data: local header, name, extra field, descriptor."""
_DESCRIPTORS = {
    12: struct.Struct("<3I"),
    16: struct.Struct("<4x3I"),
    20: struct.Struct("<I2Q"),
    24: struct.Struct("<4xI2Q"),
}
"""The size of a descriptor shows whether it has a signature, and whether its sizes have 32 or 64 bits."""
_OTHER_BEGINNINGS = (zip_.LOCAL_SIGNATURE, zip_.DESCRIPTOR_SIGNATURE, b"PK00")
"""The start of an entry, and the two marks of an archive that was split, or was meant to be split."""
_COMPARED_FLAGS = zip_.FLAG_ENCRYPTED | zip_.FLAG_DESCRIPTOR | zip_.FLAG_UTF8
_LOCKED_FLAGS = zip_.FLAG_ENCRYPTED | zip_.FLAG_STRONGLY_ENCRYPTED | zip_.FLAG_MASKED
_FOREIGN_METHODS = {
    1: "shrunk",
    6: "imploded",
    9: "Deflate64, as Windows Explorer does with files above 2 GB",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "XZ",
    97: "WavPack",
    98: "PPMd",
    99: "AES encryption",
}
_UNPLACED = (
    "it has more than 4 GiB and no Zip64 fields, as macOS Finder writes it, and the positions of its entries are not known; "
    f"this happens if an entry takes 4 GiB or more; {MAC_WAY_OUT}"
)
_BACK_SLASH_HOSTS = (0, 6, 10, 11, 14)  # FAT, HPFS, NTFS as APPNOTE and as Info-ZIP number it, VFAT
_REFUSED_MODES = {
    zip_.MODE_FIFO: "a FIFO",
    zip_.MODE_CHARACTER_DEVICE: "a character device",
    zip_.MODE_BLOCK_DEVICE: "a block device",
    zip_.MODE_SOCKET: "a socket",
}


@dataclass(frozen=True, slots=True)
class ZipLimits:
    """The limits for unpacking an archive. Each has a setting with the prefix `zip_`.

    entries: Files, links and folders to make. Folders that are only implied by names count too.
    total_size: Bytes that all entries unpack to, in total.
    ratio: The size after unpacking, divided by the size of the archive. Deflate reaches at most 1,032.
    name_size: Bytes of an entry's path, in UTF-8.
    depth: The depth of folders.
    directory_size: Bytes of the central directory, which is held in memory.
    """

    entries: int = 1_000_000
    total_size: int = 2 << 40
    ratio: int = 200
    name_size: int = 4096
    depth: int = 128
    directory_size: int = 256 << 20


DEFAULT_LIMITS = ZipLimits()


class End(NamedTuple):
    """The position of the central directory in the file."""

    start: int
    size: int
    header_count: int
    shift: int
    """The number to add to the offsets in the directory: bytes that were put before the archive after it was made."""
    is_zip64: bool = False
    """True if a Zip64 end record states the numbers. Otherwise the count is the number of headers modulo 65,536."""
    offset_space: int = OFFSET_SPACE
    """The number modulo which offsets without Zip64 are written."""

    @property
    def may_be_wrapped(self) -> bool:
        """Whether the field for the offset of the directory may have overflowed, so that 4 GiB must be added once or more."""
        return not self.is_zip64 and self.shift > 0 and self.shift % self.offset_space == 0


class Extent(NamedTuple):
    """The range of an entry's data in the file. A descriptor is between `end` and the member's end."""

    start: int
    end: int


class Member(NamedTuple):
    """An entry of an archive that can be unpacked, as far as the central directory describes it."""

    path: str
    """Relative, normalised, inside the tree. Empty for the tree itself, for which some tools write an entry."""
    raw_name: bytes
    flags: int
    method: int
    mode: int
    """Kind and permissions, as Unix writes them."""
    crc: int
    stored_size: int
    size: int
    start: int
    """The offset of its local header in the file."""
    end: int
    """The offset of the next local header, or of the central directory."""
    full_path: str = ""
    """The path that the archive states, where `path` is only its end, in a folder of the tree. Otherwise empty."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has no content."""
        return self.mode & zip_.MODE_KIND == zip_.MODE_FOLDER

    @property
    def is_link(self) -> bool:
        """Whether it is a link.

        Its content is its target. Make links last, when nothing more is written through them.
        """
        return self.mode & zip_.MODE_KIND == zip_.MODE_LINK

    @property
    def is_executable(self) -> bool:
        """Whether its owner may execute it. No other permission is kept."""
        return bool(self.mode & zip_.MODE_OWNER_EXECUTES) and not self.is_folder and not self.is_link

    @property
    def is_deflated(self) -> bool:
        """Whether its data must be inflated. Otherwise the data is the content."""
        return self.method == zip_.DEFLATED

    @property
    def head_size(self) -> int:
        """The number of bytes from `start` on that contain the whole local header. They end before `end`."""
        return self.end - self.start - self.stored_size

    @property
    def extent(self) -> Extent | None:
        """The result of `check_local_header`, if that does not refuse the header.

        With it, data can be written to its position before its header has arrived. None if a descriptor follows the
        data, because its size is not known.
        """
        if self.flags & zip_.FLAG_DESCRIPTOR:
            return None
        return Extent(self.end - self.stored_size, self.end)


def find_end(tail: Buffer, size: int, *, limits: ZipLimits = DEFAULT_LIMITS, offset_space: int = OFFSET_SPACE) -> End:
    """Read the end records from `tail`, the last `TAIL_SIZE` bytes of a file of `size` bytes, or all of them.

    Offsets without Zip64 are taken modulo `offset_space`.

    Raises InvalidArchive, LimitExceeded.
    """
    data = bytes(tail)
    base = size - len(data)
    # The last signature must be the true one. Otherwise readers that search in another way would find another archive.
    at = data.rfind(zip_.END_SIGNATURE)
    if at < 0 or at + zip_.END_RECORD.size > len(data):
        _refuse("it has no end record; it is not a zip file, or its end is missing")
    _, *numbers, comment_size = zip_.END_RECORD.unpack_from(data, at)
    behind = at + zip_.END_RECORD.size + comment_size
    # bsdtar fills the last block with zeros, and a web form or a mail may add the end of a line. These bytes cannot
    # hide anything.
    if behind > len(data) or (any(data[behind:]) and data[behind:] != b"\r\n"):
        _refuse("bytes follow its end record, or its comment holds another one")
    narrow = _Totals(*numbers)
    located = at - zip_.LOCATOR.size
    if located >= 0 and data.startswith(zip_.LOCATOR_SIGNATURE, located):
        wide = _wide_totals(data, located, narrow)
        found = _checked(wide, base + located - zip_.END64_RECORD.size, limits)._replace(is_zip64=True)
    else:
        found = _checked(narrow, base + at, limits)
    return found._replace(offset_space=offset_space)


def parse_central_directory(directory: Buffer, end: End, *, limits: ZipLimits = DEFAULT_LIMITS) -> list[Member]:
    """Return the entries in the order of their data.

    `directory` has the bytes from `end.start` on, at least `end.size` of them. Raises InvalidArchive with the entry's
    name, LimitExceeded.
    """
    return _checked_directory(bytes(directory), end, limits)[0]


def _checked_directory(directory: bytes, end: End, limits: ZipLimits) -> tuple[list[Member], _Parser]:
    """Return the members in the order of their data, and the parser, which has them in the order of the directory."""
    parser = _Parser(end, limits)
    at = 0
    while at < end.size:
        at = parser.parse_header(directory, at)
    _check_count(end, at, len(parser.members))
    members = _placed(parser.members, end)
    parser.check_ratio()
    return members, parser


def repeated_names(directory: Buffer, end: End) -> list[str]:
    """Return the names of files that a central directory has more than once, in its order, each name once.

    Nothing else is checked: the list ends where a header is malformed.
    """
    data = bytes(directory)
    counts: dict[str, int] = {}
    at = 0
    while at < end.size and data.startswith(zip_.CENTRAL_SIGNATURE, at) and at + zip_.CENTRAL_HEADER.size <= len(data):
        fields: tuple[int, ...] = zip_.CENTRAL_HEADER.unpack_from(data, at)
        name_size, extra_size, comment_size = fields[10:13]
        name_at = at + zip_.CENTRAL_HEADER.size
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        try:
            name = _decoded(data[name_at:extra_at], data[extra_at : extra_at + extra_size], flags=fields[3], host=fields[1] >> 8)
        except InvalidArchive:
            break
        counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1 and not name.endswith("/")]


class Members(Sequence[Member]):
    """Holds the members of a directory that was checked, and makes each on request.

    200,000 members take 3 MB instead of 100 MB, besides the directory.
    """

    def __init__(self, directory: bytes, end: End, *, limits: ZipLimits = DEFAULT_LIMITS) -> None:
        """Raises InvalidArchive, LimitExceeded."""
        starts, places, at = array("Q"), array("Q"), 0
        while at < end.size:
            # Each by itself: what is between them was checked before.
            parser = _Parser(end, limits)
            following = parser.parse_header(directory, at)
            starts.append(parser.members[0].start)
            places.append(at)
            at = following
        _check_count(end, at, len(places))
        if end.may_be_wrapped:
            found, _ = _checked_directory(directory, end, limits)
            if _is_wrapped(found, end):
                starts = array("Q", (member.start for member in found))
        self._keep(directory, end, starts, places)

    @classmethod
    def checked(cls, directory: bytes, end: End, *, limits: ZipLimits = DEFAULT_LIMITS) -> Self:
        """Check the directory as `parse_central_directory` does, which takes more memory meanwhile.

        Raises InvalidArchive, LimitExceeded.
        """
        found, parser = _checked_directory(directory, end, limits)
        members = cls.__new__(cls)
        starts = array("Q", (member.start for member in (found if _is_wrapped(found, end) else parser.members)))
        del found
        members._keep(directory, end, starts, parser.places)  # noqa: SLF001  # its own class
        return members

    def _keep(self, directory: bytes, end: End, starts: array[int], places: array[int]) -> None:
        """Keep the offsets of the local headers, and those of the headers in the directory, given in the directory's order."""
        self._directory = directory
        self._end = end
        order = sorted(range(len(starts)), key=starts.__getitem__)
        self.starts = array("Q", (starts[number] for number in order))
        """The offsets of the local headers."""
        self._places = array("Q", (places[number] for number in order))

    @property
    def size_in_memory(self) -> int:
        """Bytes that the `directory` of the constructor and the arrays take."""
        return len(self._directory) + 2 * self.starts.itemsize * len(self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, number: int) -> Member: ...
    @overload
    def __getitem__(self, number: slice) -> list[Member]: ...
    def __getitem__(self, number: int | slice) -> Member | list[Member]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        end = self.starts[number + 1] if number + 1 < len(self) else self._end.start
        _, member, _ = _parsed_header(self._directory, self._places[number], self._end)
        return member._replace(start=self.starts[number], end=end)

    def path(self, number: int) -> str:
        """Return the path of a member. This is faster than to make the member."""
        at = self._places[number]
        fields: tuple[int, ...] = zip_.CENTRAL_HEADER.unpack_from(self._directory, at)
        name_at = at + zip_.CENTRAL_HEADER.size
        extra_at = name_at + fields[10]
        extra = self._directory[extra_at : extra_at + fields[11]]
        return normalised(_decoded(self._directory[name_at:extra_at], extra, flags=fields[3], host=fields[1] >> 8))


def check_preamble(head: Buffer, members: Sequence[Member], end: End) -> None:
    """Check that the bytes before the first entry cannot be read as an entry by a zip tool.

    `head` has the first 4 bytes. Raises InvalidArchive.
    """
    if (not members or members[0].start) and bytes(head).startswith(_OTHER_BEGINNINGS):
        if members and not members[0].start % end.offset_space:
            # A preamble is not this large: the sizes and offsets are written modulo 4 GiB.
            _refuse(_UNPLACED)
        _refuse("it begins with an entry that its central directory does not name")


def other_readings(members: Sequence[Member], end: End) -> list[int]:
    """Return where readers that do not know wrapped offsets look for local headers. Empty if offsets are not wrapped.

    Some readers add the difference that the end record shows, others add nothing. For each of the two kinds this gives
    one position. An honest archive has no local header there, so such a reader fails. `members` must be complete.
    """
    if not _is_wrapped(members, end):
        return []
    wrapped = [member.start % end.offset_space for member in members if member.start >= end.offset_space]
    return [end.shift, *wrapped[:1]]


def check_other_reading(head: Buffer) -> None:
    """Check that a zip tool that computes positions in another way finds no entry at such a position.

    `head` has the 4 bytes at one of the positions that `other_readings` returns. Raises InvalidArchive.
    """
    if bytes(head) == zip_.LOCAL_SIGNATURE:
        _refuse("its offsets are written modulo 4 GiB and lead to two different entries, so two tools would see different files")


def check_local_header(member: Member, head: Buffer) -> Extent:
    """Compare a local header with the central directory; return the range of the entry's data.

    `head` has `member.head_size` bytes from `member.start` on. Raises InvalidArchive.
    """
    data = bytes(head)
    if not data.startswith(zip_.LOCAL_SIGNATURE) or len(data) < zip_.LOCAL_HEADER.size:
        raise _refused(member.path, "its local header is missing")
    fields = zip_.LOCAL_HEADER.unpack_from(data)
    _, _, flags, method, _, _, crc, stored_size, size, name_size, extra_size = fields
    name_end = zip_.LOCAL_HEADER.size + name_size
    data_start = name_end + extra_size
    if data_start > len(data):
        raise _refused(member.path, "its local header is longer than the space before its data")
    if data[zip_.LOCAL_HEADER.size : name_end] != member.raw_name:
        raise _refused(member.path, "its local header has another name")
    if (flags ^ member.flags) & _COMPARED_FLAGS or method != member.method:
        raise _refused(member.path, "its local header states another way of packing")
    extra = data[name_end:data_start]
    other_name = _unicode_path(member.raw_name, extra)
    path = member.full_path or member.path
    if other_name is not None and path not in {normalised(other_name), normalised(other_name.replace("\\", "/"))}:
        raise _refused(member.path, "its local header has another name in its extra field")
    if flags & zip_.FLAG_DESCRIPTOR and not _has_zip64(extra):
        # Some tools write the Zip64 mark for a size that only the descriptor states, without a Zip64 field.
        size, stored_size = (0 if value == zip_.U32_MAX else value for value in (size, stored_size))
    size, stored_size = _wide(member.path, extra, size, stored_size)
    for what, stated, true in (
        ("checksum", crc, member.crc),
        ("size", size, member.size),
        ("packed size", stored_size, member.stored_size),
    ):
        if stated != true and (stated or not flags & zip_.FLAG_DESCRIPTOR):
            raise _refused(member.path, f"its local header states the {what} {stated}, but the central directory states {true}")
    extent = Extent(member.start + data_start, member.start + data_start + member.stored_size)
    behind = member.end - extent.end
    if behind not in (_DESCRIPTORS if flags & zip_.FLAG_DESCRIPTOR else (0,)):
        raise _refused(member.path, f"{behind} bytes follow its data")
    return extent


def check_descriptor(member: Member, descriptor: Buffer) -> None:
    """Compare the descriptor that follows an entry's data with the central directory.

    `descriptor` is empty if the entry has none. Raises InvalidArchive.
    """
    data = bytes(descriptor)
    if not data:
        return
    layout = _DESCRIPTORS[len(data)]
    has_signature = len(data) % 8 == 0
    if has_signature and not data.startswith(zip_.DESCRIPTOR_SIGNATURE):
        raise _refused(member.path, "the bytes after its data are not a descriptor")
    if layout.unpack(data) != (member.crc, member.stored_size, member.size):
        raise _refused(member.path, "the descriptor after its data differs from the central directory")


def check_crc(member: Member, crc: int | None) -> None:
    """Compare the checksum of the inflated content. None means that a part is missing. Raises InvalidArchive."""
    if crc is None:
        raise _refused(member.path, "a part of its content is missing")
    if crc != member.crc:
        raise _refused(member.path, f"its content has the checksum {crc:08x}, not {member.crc:08x}")


def link_target(member: Member, content: Buffer) -> str:
    """Return the target of a link from its content. Raises InvalidArchive for a target that is never allowed."""
    try:
        target = bytes(content).decode()
    except UnicodeDecodeError:
        raise _refused(member.path, "the link's target is not UTF-8") from None
    if reason := link_target_problem(target):
        raise _refused(member.path, reason)
    return target


def check_links(members: Iterable[Member], targets: Mapping[str, str]) -> None:
    """Check that links (path to target) lead to paths inside the tree, also through other links.

    Raises InvalidArchive.
    """
    if not targets:
        return
    tree = Tree()
    for member in members:
        tree.add(member.path, is_folder=member.is_folder)
    if found := tree.links_problem(targets):
        raise InvalidArchive(*found)


class _Totals(NamedTuple):
    """The numbers of the directory, which both end records state."""

    disk: int
    directory_disk: int
    on_this_disk: int
    in_all: int
    size: int
    offset: int


_SATURATED = (*[zip_.U16_MAX] * 4, *[zip_.U32_MAX] * 2)


def _wide_totals(data: bytes, located: int, narrow: _Totals) -> _Totals:
    """Return the numbers of the Zip64 end record, which must be directly before its locator."""
    at = located - zip_.END64_RECORD.size
    if at < 0 or not data.startswith(zip_.END64_SIGNATURE, at):
        _refuse("its Zip64 end record is not where it must be")
    _, rest, _, _, *numbers = zip_.END64_RECORD.unpack_from(data, at)
    wide = _Totals(*numbers)
    _, disk, offset, disks = zip_.LOCATOR.unpack_from(data, located)
    if rest != zip_.END64_RECORD_REST or disk or disks > 1 or offset != wide.offset + wide.size:
        _refuse("its Zip64 end record does not match the locator")
    for short, long, saturated in zip(narrow, wide, _SATURATED, strict=True):
        if short not in (long, saturated):
            _refuse("its two end records differ")
    return wide


def _checked(totals: _Totals, position: int, limits: ZipLimits) -> End:
    """Return the directory that ends at `position`, where the first end record begins."""
    if totals.disk or totals.directory_disk or totals.on_this_disk != totals.in_all:
        _refuse("it is one of several parts")
    start = position - totals.size
    if start < totals.offset:
        _refuse("its central directory is not at the position that its end record states")
    if totals.size > limits.directory_size:
        what = "the size of the archive's central directory"
        raise LimitExceeded(what, totals.size, limits.directory_size, "zip_directory_size")
    if totals.in_all > limits.entries:
        raise _too_many(totals.in_all, limits)
    return End(start, totals.size, totals.in_all, start - totals.offset)


def _check_count(end: End, directory_size: int, count: int) -> None:
    """Check that the count and the size of the directory's headers are those of the end records.

    Old tools, and Finder of macOS, write more than 65,535 entries without a Zip64 end record. Readers then use the
    size.
    """
    stated = count if end.is_zip64 else count & zip_.U16_MAX
    if directory_size != end.size or stated != end.header_count:
        _refuse("its central directory does not have the size or the count that its end record states")


def _too_many(count: int, limits: ZipLimits) -> LimitExceeded:
    return LimitExceeded("the number of entries of the archive", count, limits.entries, "zip_entries")


class _Parser:
    """Parses the headers of a central directory one after the other."""

    def __init__(self, end: End, limits: ZipLimits) -> None:
        self.members: list[Member] = []
        """In the order of the directory. Their ends are not known yet."""
        self.places = array("Q")
        """Where their headers begin in the directory."""
        self.total_size = 0
        self._modes: dict[int, int] = {}
        self._end = end
        self._limits = limits
        self._tree = Tree()

    def parse_header(self, data: bytes, at: int) -> int:
        """Parse the header at `at`; return where the next one begins."""
        if len(self.members) == self._limits.entries:
            # The end record was checked, but its count may be modulo 65,536.
            _check_header(data, at)
            raise _too_many(len(self.members) + 1, self._limits)
        name, member, following = _parsed_header(data, at, self._end)
        self._check_path(name, member)
        self._count(name, member.size)
        if member.start - self._end.shift >= self._end.start:
            raise _refused(name, "it has no local header before the central directory")
        # Equal numbers share one object, because a million members are held in memory.
        size, mode = member.size, self._modes.setdefault(member.mode, member.mode)
        stored_size = size if member.stored_size == size else member.stored_size
        self.members.append(member._replace(mode=mode, stored_size=stored_size, end=member.start))
        self.places.append(at)
        return following

    def check_ratio(self) -> None:
        """Check the total size after unpacking against the size of the archive. This stops zip bombs."""
        packed = self._end.start
        if self.total_size > RATIO_ALLOWANCE + packed * self._limits.ratio:
            found = -(-self.total_size // max(packed, 1))
            what = "the ratio of what the archive unpacks to and its size"
            raise LimitExceeded(what, found, self._limits.ratio, "zip_ratio")

    def _check_path(self, name: str, member: Member) -> None:
        """Check the path to which the entry is unpacked."""
        path, is_folder = member.path, member.is_folder
        if reason := path_problem(name):
            raise _refused(name, reason)
        for what, found, limit, setting in (
            ("the size of the name", len(path.encode()), self._limits.name_size, "zip_name_size"),
            ("the depth of the folders", path.count("/"), self._limits.depth, "zip_depth"),
        ):
            if found > limit:
                raise LimitExceeded(f"{what} of the entry {for_display(name)!r}", found, limit, setting)
        # Every reader makes one folder from two entries for the same folder. Two files with the same path would be
        # ambiguous.
        if is_folder and self._tree.has_folder(path):
            return
        if reason := self._tree.add(path, is_folder=is_folder):
            raise _refused(name, reason)

    def _count(self, name: str, size: int) -> None:
        self.total_size += size
        if self.total_size > self._limits.total_size:
            what = f"what the archive unpacks to, up to its entry {for_display(name)!r},"
            raise LimitExceeded(what, self.total_size, self._limits.total_size, "zip_total_size")
        if len(self._tree) - 1 > self._limits.entries:
            what = f"the number of files and folders of the archive, up to its entry {for_display(name)!r},"
            raise LimitExceeded(what, len(self._tree) - 1, self._limits.entries, "zip_entries")


def _check_header(data: bytes, at: int) -> None:
    if at + zip_.CENTRAL_HEADER.size > len(data) or not data.startswith(zip_.CENTRAL_SIGNATURE, at):
        _refuse("its central directory is cut short, or holds bytes that are not a header")


def _parsed_header(data: bytes, at: int, end: End) -> tuple[str, Member, int]:
    """Return the name that the header at `at` states, its member, and where the next header begins.

    The path and the position of the member are not checked, and its end is not known.
    """
    _check_header(data, at)
    fields: tuple[int, ...] = zip_.CENTRAL_HEADER.unpack_from(data, at)
    _, made_by, _, flags, method, _, _, crc, stored_size, size = fields[:10]
    name_size, extra_size, comment_size, disk, _, attributes, offset = fields[10:]
    name_at = at + zip_.CENTRAL_HEADER.size
    extra_at = name_at + name_size
    following = extra_at + extra_size + comment_size
    if following > len(data):
        _refuse("its central directory is cut short")
    raw_name = data[name_at:extra_at]
    extra = data[extra_at : extra_at + extra_size]
    name = _decoded(raw_name, extra, flags=flags, host=made_by >> 8)
    size, stored_size, offset = _wide(name, extra, size, stored_size, offset)
    if disk:
        raise _refused(name, "it is in another part of the archive")
    _check_packing(name, flags, method, stored_size=stored_size, size=size)
    mode = _mode(name, attributes >> 16, size)
    start = offset + end.shift
    return name, Member(normalised(name), raw_name, flags, method, mode, crc, stored_size, size, start, start), following


def _decoded(raw_name: bytes, extra: bytes, *, flags: int, host: int) -> str:
    """Return an entry's name as text, its parts joined by `/`."""
    name = _unicode_path(raw_name, extra)
    if name is None:
        name = _text(raw_name, is_utf8=bool(flags & zip_.FLAG_UTF8))
    # .NET up to 4.6 wrote back slashes. On the hosts where they are separators, a name cannot hold one.
    return name.replace("\\", "/") if host in _BACK_SLASH_HOSTS else name


def _text(raw_name: bytes, *, is_utf8: bool) -> str:
    """Decode a name without a Unicode path field.

    Old zip tools mean code page 437. Many tools write UTF-8 without the flag, and text in another encoding is almost
    never valid UTF-8.
    """
    try:
        return raw_name.decode()
    except UnicodeDecodeError:
        if is_utf8:
            raise _refused(raw_name.decode(errors="backslashreplace"), "its name is not UTF-8") from None
    return raw_name.decode("cp437")


def _unicode_path(raw_name: bytes, extra: bytes) -> str | None:
    """Return Info-ZIP's name in UTF-8, if it belongs to the name in the header."""
    for kind, field in zip_.extra_fields(extra):
        if kind == zip_.EXTRA_UNICODE_PATH and field[:1] == b"\1" and field[1:5] == zlib.crc32(raw_name).to_bytes(4, "little"):
            try:
                return field[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def _has_zip64(extra: bytes) -> bool:
    return any(kind == zip_.EXTRA_ZIP64 for kind, _ in zip_.extra_fields(extra))


def _wide(name: str, extra: bytes, *values: int) -> list[int]:
    """Return `values`, with those that do not fit into 32 bits read from the Zip64 extra field, in order."""
    if zip_.U32_MAX not in values:
        return list(values)
    fields = [field for kind, field in zip_.extra_fields(extra) if kind == zip_.EXTRA_ZIP64]
    missing = values.count(zip_.U32_MAX)
    if not fields or len(fields[0]) < 8 * missing:
        raise _refused(name, "its Zip64 extra field is missing or too short")
    if any(field[: 8 * missing] != fields[0][: 8 * missing] for field in fields):
        raise _refused(name, "its Zip64 extra field is there twice, with different values")
    numbers = iter(struct.unpack_from(f"<{missing}Q", fields[0]))
    return [next(numbers) if value == zip_.U32_MAX else value for value in values]


def _check_packing(name: str, flags: int, method: int, *, stored_size: int, size: int) -> None:
    if flags & _LOCKED_FLAGS:
        raise _refused(name, f"it is encrypted; {WAY_OUT}")
    if method not in (zip_.STORED, zip_.DEFLATED):
        found = _FOREIGN_METHODS.get(method, f"method {method}")
        raise _refused(name, f"it is packed with {found}, and only stored and deflated entries can be unpacked here; {WAY_OUT}")
    if flags & zip_.FLAG_PATCHED:
        raise _refused(name, "it holds a patch")
    if method == zip_.STORED and stored_size != size:
        raise _refused(name, f"it is stored without compression in {stored_size} bytes, but states {size}")


def _mode(name: str, mode: int, size: int) -> int:
    """Return kind and permissions of an entry. The setuid, setgid and sticky bits are dropped."""
    kind = mode & zip_.MODE_KIND
    permissions = mode & 0o777
    if size and kind == zip_.MODE_FIFO and not name.endswith("/"):
        # `zip x.zip -` writes this for content from a pipe. All readers make a file from it.
        kind = zip_.MODE_FILE
    if refused := _REFUSED_MODES.get(kind):
        raise _refused(name, f"it is {refused}")
    if kind not in (0, zip_.MODE_FILE, zip_.MODE_FOLDER, zip_.MODE_LINK):
        raise _refused(name, f"its mode {mode:o} is not that of a file, folder or link")
    if name.endswith("/") or kind == zip_.MODE_FOLDER:
        if size or kind == zip_.MODE_LINK:
            raise _refused(name, "it is a folder, but has content or is a link")
        return zip_.MODE_FOLDER | permissions
    if kind == zip_.MODE_LINK and size > LINK_TARGET_LIMIT:
        raise _refused(name, f"the link's target has more than {LINK_TARGET_LIMIT} bytes")
    return (kind or zip_.MODE_FILE) | permissions


def _placed(members: list[Member], end: End) -> list[Member]:
    """Return the members in the order of their data, each with its end.

    Members must not overlap, and the gaps between them must be small enough for headers and descriptors.
    """
    try:
        return _back_to_back(sorted(members, key=lambda member: member.start), end)
    except InvalidArchive:
        if not end.may_be_wrapped or members[0].start != end.shift:
            raise
    try:
        return _back_to_back(_unwrapped(members, end), end)
    except InvalidArchive:
        _refuse(_UNPLACED)


def _back_to_back(members: Sequence[Member], end: End) -> list[Member]:
    """Return `members` with their ends. The end of each is the start of the next one."""
    if members and members[-1].start >= end.start:
        raise _refused(members[-1].path, "it has no local header before the central directory")
    placed = []
    for member, following in zip_longest(members, members[1:]):
        member_end = following.start if following else end.start
        spare = member_end - member.start - member.stored_size
        if spare < zip_.LOCAL_HEADER.size + len(member.raw_name):
            other = f"{for_display(following.path)!r}" if following else "the central directory"
            raise _refused(member.path, f"it overlaps with {other}")
        if spare > _HEADER_SLACK:
            raise _refused(member.path, f"{spare - _HEADER_SLACK} bytes or more after it belong to no entry")
        placed.append(member._replace(end=member_end))
    return placed


def _unwrapped(members: Sequence[Member], end: End) -> list[Member]:
    """Return the members with their starts for offsets that are written modulo 4 GiB.

    `members` is in the order of the data.

    Each member starts at the first position after the previous member's data that its offset allows. `_back_to_back`
    checks whether that is close enough. It is not close enough after an entry whose packed size is also written modulo
    4 GiB.
    """
    placed = []
    least = 0
    for member in members:
        offset = member.start - end.shift
        if offset >= end.offset_space:
            raise _refused(member.path, "its offset is not wrapped")
        if member.stored_size and member.extent is None and not member.is_deflated:
            # Readers of such archives walk from one local header to the next, and would search the data for the
            # descriptor.
            raise _refused(member.path, "only its descriptor states where its data ends")
        start = least + (offset - least) % end.offset_space
        placed.append(member._replace(start=start))
        least = start + zip_.LOCAL_HEADER.size + len(member.raw_name) + member.stored_size
    return placed


def _is_wrapped(members: Sequence[Member], end: End) -> bool:
    """Return whether placed members have offsets modulo 4 GiB. Otherwise none starts before `end.shift`."""
    return bool(members) and members[0].start < end.shift


def _refuse(reason: str) -> NoReturn:
    raise InvalidArchive("", reason)


def _refused(name: str, reason: str) -> InvalidArchive:
    return InvalidArchive(for_display(name), reason)
