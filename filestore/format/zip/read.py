"""Reading any zip file, ours or foreign, from byte ranges that the caller gets: structure first, then content in any order.

    end = find_end(the last TAIL_SIZE bytes, size)
    members = parse_central_directory(the bytes of end.directory)
    check_preamble(the first 4 bytes, members)
    check_other_reading(4 bytes) for each of other_readings(members, end)
    for each member, as its bytes arrive: content = check_local_header(...), check_descriptor(...), `Inflater` or `Checksum`
    check_links(members, targets)

Nothing is trusted (I4). Two tools that read the same file must see the same tree, so that every byte must be explained: a
preamble, then entries back to back, each with the very header that the central directory promises, then the directory,
then the end records up to the last byte. Anything else is refused.

Source: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT; on what readers disagree about:
D. Fifield, "A better zip bomb", WOOT 2019.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, NoReturn, overload

from filestore.core.digest import Buffer
from filestore.errors import InvalidArchive, LimitExceeded
from filestore.format.zip import structures as zip_
from filestore.format.zip.tree import LINK_TARGET_LIMIT, Tree, link_target_problem, normalised, path_problem, shown

TAIL_SIZE = zip_.END_RECORD.size + zip_.U16_MAX + zip_.LOCATOR.size + zip_.END64_RECORD.size
"""The end of a file that `find_end` needs: its records, and the longest comment."""

WAY_OUT = "unpack the archive with the tool that made it or with 7z, and push the folder that comes out"
"""What to do with an archive that is honest and not taken."""
MAC_WAY_OUT = "unpack the archive on the Mac, and push the folder that comes out"
"""The same where other tools do not read the archive either."""

RATIO_ALLOWANCE = 1 << 20
"""Bytes that an archive may unpack to, whatever the ratio."""

OFFSET_SPACE = 1 << 32
"""Tools without Zip64 write an offset or a size modulo this, where it does not fit."""

_HEADER_SLACK = zip_.LOCAL_HEADER.size + 2 * zip_.U16_MAX + 24
"""The most that an entry has beside its data: local header, name, extra field, descriptor."""
_DESCRIPTORS = {
    12: struct.Struct("<3I"),
    16: struct.Struct("<4x3I"),
    20: struct.Struct("<I2Q"),
    24: struct.Struct("<4xI2Q"),
}
"""A descriptor's size says whether it has a signature, and how wide its sizes are: 32 or 64 bits."""
_OTHER_BEGINNINGS = (zip_.LOCAL_SIGNATURE, zip_.DESCRIPTOR_SIGNATURE, b"PK00")
"""An entry, and the two marks of an archive that was split, or was meant to be."""
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
    "it has more than 4 GiB and no Zip64 fields, as macOS Finder writes it, and where its entries lie cannot be told, "
    f"which is so if one of them takes 4 GiB or more; {MAC_WAY_OUT}"
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
    """What an archive may ask of whoever unpacks it. Each has a setting, `unpack_` and its name here."""

    entries: int = 1_000_000
    """Files, links and folders to be made; those folders that only names imply are counted too."""
    total_size: int = 2 << 40
    """Bytes that all entries unpack to."""
    ratio: int = 200
    """How many times its size an archive may unpack to. Deflate cannot do more than 1,032."""
    name_size: int = 4096
    """Bytes of an entry's path, in UTF-8."""
    depth: int = 128
    """Folders inside each other."""
    directory_size: int = 256 << 20
    """Bytes of the central directory, which is held in memory."""


DEFAULT_LIMITS = ZipLimits()


class End(NamedTuple):
    """Where the central directory lies, in the file as it is."""

    start: int
    size: int
    header_count: int
    shift: int
    """What is to be added to the offsets in it: bytes that were put before the archive after it was made."""
    is_zip64: bool = False
    """A Zip64 end record tells all this. Else the count is that of the headers modulo 65,536."""

    @property
    def may_be_wrapped(self) -> bool:
        """The offset of the directory is right modulo 4 GiB only."""
        return not self.is_zip64 and self.shift > 0 and self.shift % OFFSET_SPACE == 0


class Extent(NamedTuple):
    """Where an entry's data lies in the file; the descriptor, if there is one, lies between `end` and the member's end."""

    start: int
    end: int


class Member(NamedTuple):
    """An entry of an archive that can be unpacked, as far as the central directory tells."""

    path: str
    """Relative, normalised, inside the tree. Empty for the tree itself, which some tools write an entry for."""
    raw_name: bytes
    flags: int
    method: int
    mode: int
    """Kind and permissions as Unix writes them."""
    crc: int
    stored_size: int
    size: int
    start: int
    """Of its local header, in the file as it is."""
    end: int
    """Where the next local header, or the central directory, begins."""

    @property
    def is_folder(self) -> bool:
        """It has no content."""
        return self.mode & zip_.MODE_KIND == zip_.MODE_FOLDER

    @property
    def is_link(self) -> bool:
        """Its content is where the link leads. To be made last, when nothing can be written through it any more."""
        return self.mode & zip_.MODE_KIND == zip_.MODE_LINK

    @property
    def is_executable(self) -> bool:
        """The one permission that is kept."""
        return bool(self.mode & zip_.MODE_OWNER_EXECUTES) and not self.is_folder and not self.is_link

    @property
    def is_deflated(self) -> bool:
        """Its data is to be inflated. Else it is the content."""
        return self.method == zip_.DEFLATED

    @property
    def head_size(self) -> int:
        """Bytes from `start` on in which the local header lies as a whole. They end before `end`."""
        return self.end - self.start - self.stored_size

    @property
    def extent(self) -> Extent | None:
        """What `check_local_header` will return, if it does not refuse: data can be put in its place before its header is here.

        None where a descriptor, of whatever size, follows the data.
        """
        if self.flags & zip_.FLAG_DESCRIPTOR:
            return None
        return Extent(self.end - self.stored_size, self.end)


def find_end(tail: Buffer, size: int, *, limits: ZipLimits = DEFAULT_LIMITS) -> End:
    """Read the end records. `tail`: the last bytes of a file of `size` bytes, `TAIL_SIZE` or all of them.

    Raises InvalidArchive, LimitExceeded.
    """
    data = bytes(tail)
    base = size - len(data)
    # The last signature must be the true one, or readers that search in other ways would find other archives.
    at = data.rfind(zip_.END_SIGNATURE)
    if at < 0 or at + zip_.END_RECORD.size > len(data):
        _refuse("it has no end record; it is no zip file, or its end is missing")
    _, *numbers, comment_size = zip_.END_RECORD.unpack_from(data, at)
    behind = at + zip_.END_RECORD.size + comment_size
    # bsdtar fills the last block with zeros, and a web form or a mail may add the end of a line: these hide nothing.
    if behind > len(data) or (any(data[behind:]) and data[behind:] != b"\r\n"):
        _refuse("bytes follow its end record, or its comment holds another one")
    narrow = _Totals(*numbers)
    located = at - zip_.LOCATOR.size
    if located >= 0 and data.startswith(zip_.LOCATOR_SIGNATURE, located):
        wide = _wide_totals(data, located, narrow)
        return _checked(wide, base + located - zip_.END64_RECORD.size, limits)._replace(is_zip64=True)
    return _checked(narrow, base + at, limits)


def parse_central_directory(directory: Buffer, end: End, *, limits: ZipLimits = DEFAULT_LIMITS) -> list[Member]:
    """The entries in the order of their data. `directory`: the bytes from `end.start` on, `end.size` of them or more.

    Raises InvalidArchive with the entry's name, LimitExceeded.
    """
    data = bytes(directory)
    parser = _Parser(end, limits)
    at = 0
    while at < end.size:
        at = parser.take(data, at)
    _check_count(end, at, len(parser.members))
    members = _placed(parser.members, end)
    parser.check_ratio()
    return members


class Members(Sequence[Member]):
    """`parse_central_directory`, where its checks were made before: each member is made when it is asked for.

    200,000 of them take 3 MB instead of 100.
    """

    def __init__(self, directory: bytes, end: End, *, limits: ZipLimits = DEFAULT_LIMITS) -> None:
        """Raises InvalidArchive, LimitExceeded."""
        self._directory = directory
        self._end = end
        self._limits = limits
        starts, places, at = array("Q"), array("Q"), 0
        while at < end.size:
            member, following = self._parse(at)
            starts.append(member.start)
            places.append(at)
            at = following
        _check_count(end, at, len(places))
        if end.may_be_wrapped:
            found = parse_central_directory(directory, end, limits=limits)
            if _is_wrapped(found, end):
                starts = array("Q", (member.start for member in found))
        order = sorted(range(len(starts)), key=starts.__getitem__)
        self.starts = array("Q", (starts[number] for number in order))
        """Where local headers stand."""
        self._places = array("Q", (places[number] for number in order))

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
        return self._parse(self._places[number])[0]._replace(start=self.starts[number], end=end)

    def _parse(self, at: int) -> tuple[Member, int]:
        parser = _Parser(self._end, self._limits)
        following = parser.take(self._directory, at)
        return parser.members[0], following


def check_preamble(head: Buffer, members: Sequence[Member]) -> None:
    """What stands before the first entry may be anything that no zip tool takes for an entry. `head`: the first 4 bytes.

    Raises InvalidArchive.
    """
    if (not members or members[0].start) and bytes(head).startswith(_OTHER_BEGINNINGS):
        if members and not members[0].start % OFFSET_SPACE:
            # This many bytes are no preamble: they are what sizes and offsets modulo 4 GiB do not tell.
            _refuse(_UNPLACED)
        _refuse("it begins with an entry that its central directory does not name")


def other_readings(members: Sequence[Member], end: End) -> list[int]:
    """Where readers that do not know of wrapped offsets look for local headers; none where offsets are what they say.

    Some add what the end record is off by, others add nothing. Of each kind it is one place at which there is no local header
    if the archive is honest, so that such a reader fails. `members`: all of them.
    """
    if not _is_wrapped(members, end):
        return []
    wrapped = [member.start % OFFSET_SPACE for member in members if member.start >= OFFSET_SPACE]
    return [end.shift, *wrapped[:1]]


def check_other_reading(head: Buffer) -> None:
    """There is no second archive for readers that take offsets in another way. `head`: 4 bytes of one of `other_readings`.

    Raises InvalidArchive.
    """
    if bytes(head) == zip_.LOCAL_SIGNATURE:
        _refuse("its offsets, which are written modulo 4 GiB, find an entry in two ways, so that two tools would see two files")


def check_local_header(member: Member, head: Buffer) -> Extent:
    """Compare a local header with the central directory; where the entry's data lies.

    `head`: `member.head_size` bytes from `member.start` on. Raises InvalidArchive.
    """
    data = bytes(head)
    if not data.startswith(zip_.LOCAL_SIGNATURE) or len(data) < zip_.LOCAL_HEADER.size:
        raise _refused(member.path, "its local header is missing")
    fields = zip_.LOCAL_HEADER.unpack_from(data)
    _, _, flags, method, _, _, crc, stored_size, size, name_size, extra_size = fields
    name_end = zip_.LOCAL_HEADER.size + name_size
    data_start = name_end + extra_size
    if data_start > len(data):
        raise _refused(member.path, "its local header is longer than there is room for it")
    if data[zip_.LOCAL_HEADER.size : name_end] != member.raw_name:
        raise _refused(member.path, "its local header has another name")
    if (flags ^ member.flags) & _COMPARED_FLAGS or method != member.method:
        raise _refused(member.path, "its local header says that it is packed in another way")
    extra = data[name_end:data_start]
    other_name = _unicode_path(member.raw_name, extra)
    if other_name is not None and member.path not in {normalised(other_name), normalised(other_name.replace("\\", "/"))}:
        raise _refused(member.path, "its local header has another name in its extra field")
    if flags & zip_.FLAG_DESCRIPTOR and not _has_zip64(extra):
        # Some tools write the mark of Zip64 for a size that only the descriptor tells, and no field that would hold it.
        size, stored_size = (0 if value == zip_.U32_MAX else value for value in (size, stored_size))
    size, stored_size = _wide(member.path, extra, size, stored_size)
    for what, stated, true in (
        ("checksum", crc, member.crc),
        ("size", size, member.size),
        ("packed size", stored_size, member.stored_size),
    ):
        if stated != true and (stated or not flags & zip_.FLAG_DESCRIPTOR):
            raise _refused(member.path, f"its local header says that its {what} is {stated}, the central directory says {true}")
    extent = Extent(member.start + data_start, member.start + data_start + member.stored_size)
    behind = member.end - extent.end
    if behind not in (_DESCRIPTORS if flags & zip_.FLAG_DESCRIPTOR else (0,)):
        raise _refused(member.path, f"{behind} bytes lie behind its data")
    return extent


def check_descriptor(member: Member, descriptor: Buffer) -> None:
    """Compare the bytes between an entry's data and its end, if there are any, with the central directory.

    Raises InvalidArchive.
    """
    data = bytes(descriptor)
    if not data:
        return
    layout = _DESCRIPTORS[len(data)]
    has_signature = len(data) % 8 == 0
    if has_signature and not data.startswith(zip_.DESCRIPTOR_SIGNATURE):
        raise _refused(member.path, "bytes that are no descriptor lie behind its data")
    if layout.unpack(data) != (member.crc, member.stored_size, member.size):
        raise _refused(member.path, "the descriptor behind its data says something else than the central directory")


def check_crc(member: Member, crc: int | None) -> None:
    """Compare what the content, inflated, sums up to; None: a part of it is missing. Raises InvalidArchive."""
    if crc is None:
        raise _refused(member.path, "a part of its content is missing")
    if crc != member.crc:
        raise _refused(member.path, f"its content has the checksum {crc:08x}, not {member.crc:08x}")


def link_target(member: Member, content: Buffer) -> str:
    """Where a link leads, by its content. Raises InvalidArchive for what no link may lead to, whatever else there is."""
    try:
        target = bytes(content).decode()
    except UnicodeDecodeError:
        raise _refused(member.path, "the link's target is not UTF-8") from None
    if reason := link_target_problem(target):
        raise _refused(member.path, reason)
    return target


def check_links(members: Iterable[Member], targets: Mapping[str, str]) -> None:
    """Links (path to target) lead to somewhere inside the tree, also by way of each other. Raises InvalidArchive."""
    if not targets:
        return
    tree = Tree()
    for member in members:
        tree.add(member.path, is_folder=member.is_folder)
    if found := tree.links_problem(targets):
        raise InvalidArchive(*found)


class _Totals(NamedTuple):
    """What both end records say of the directory."""

    disk: int
    directory_disk: int
    on_this_disk: int
    in_all: int
    size: int
    offset: int


_SATURATED = (*[zip_.U16_MAX] * 4, *[zip_.U32_MAX] * 2)


def _wide_totals(data: bytes, located: int, narrow: _Totals) -> _Totals:
    """What the Zip64 end record says, which must stand right before its locator."""
    at = located - zip_.END64_RECORD.size
    if at < 0 or not data.startswith(zip_.END64_SIGNATURE, at):
        _refuse("its Zip64 end record is not where it must be")
    _, rest, _, _, *numbers = zip_.END64_RECORD.unpack_from(data, at)
    wide = _Totals(*numbers)
    _, disk, offset, disks = zip_.LOCATOR.unpack_from(data, located)
    if rest != zip_.END64_RECORD_REST or disk or disks > 1 or offset != wide.offset + wide.size:
        _refuse("its Zip64 end record and the locator of it do not fit together")
    for short, long, saturated in zip(narrow, wide, _SATURATED, strict=True):
        if short not in (long, saturated):
            _refuse("its two end records do not say the same")
    return wide


def _checked(totals: _Totals, position: int, limits: ZipLimits) -> End:
    """The directory that ends at `position`, where the first end record begins."""
    if totals.disk or totals.directory_disk or totals.on_this_disk != totals.in_all:
        _refuse("it is one of several parts")
    start = position - totals.size
    if start < totals.offset:
        _refuse("its central directory is not where its end record says")
    if totals.size > limits.directory_size:
        what = "the size of the archive's central directory"
        raise LimitExceeded(what, totals.size, limits.directory_size, "unpack_directory_size")
    if totals.in_all > limits.entries:
        raise _too_many(totals.in_all, limits)
    return End(start, totals.size, totals.in_all, start - totals.offset)


def _check_count(end: End, directory_size: int, count: int) -> None:
    """The headers of the directory are as many, and take as many bytes, as the end records say.

    Old tools, and Finder of macOS, write more than 65,535 entries without a Zip64 end record. Readers then go by the size.
    """
    stated = count if end.is_zip64 else count & zip_.U16_MAX
    if directory_size != end.size or stated != end.header_count:
        _refuse("its central directory holds more or less than its end record says")


def _too_many(count: int, limits: ZipLimits) -> LimitExceeded:
    return LimitExceeded("the number of entries of the archive", count, limits.entries, "unpack_entries")


class _Parser:
    """Takes the headers of a central directory one after the other."""

    def __init__(self, end: End, limits: ZipLimits) -> None:
        self.members: list[Member] = []
        """As they stand in the directory; where they end is not known yet."""
        self.total_size = 0
        self._modes: dict[int, int] = {}
        self._end = end
        self._limits = limits
        self._tree = Tree()

    def take(self, data: bytes, at: int) -> int:
        """Parse the header at `at`; where the next one stands."""
        name_at = at + zip_.CENTRAL_HEADER.size
        if name_at > len(data) or not data.startswith(zip_.CENTRAL_SIGNATURE, at):
            _refuse("its central directory is cut short, or holds something that is no header")
        if len(self.members) == self._limits.entries:
            # The end record was checked, but it may count modulo 65,536.
            raise _too_many(len(self.members) + 1, self._limits)
        fields: tuple[int, ...] = zip_.CENTRAL_HEADER.unpack_from(data, at)
        _, made_by, _, flags, method, _, _, crc, stored_size, size = fields[:10]
        name_size, extra_size, comment_size, disk, _, attributes, offset = fields[10:]
        extra_at = name_at + name_size
        following = extra_at + extra_size + comment_size
        if following > len(data):
            _refuse("its central directory is cut short")
        raw_name = data[name_at:extra_at]
        extra = data[extra_at : extra_at + extra_size]
        name = _decoded(raw_name, extra, flags=flags, host=made_by >> 8)
        size, stored_size, offset = _wide(name, extra, size, stored_size, offset)
        if disk:
            raise _refused(name, "it lies in another part of the archive")
        _check_packing(name, flags, method, stored_size=stored_size, size=size)
        mode = _mode(name, attributes >> 16, size)
        path = self._path(name, mode)
        self._count(name, size)
        if offset >= self._end.start:
            raise _refused(name, "it has no local header before the central directory")
        start = offset + self._end.shift
        # One number where two are equal: a million members are held in memory.
        stored_size, mode = (size if stored_size == size else stored_size), self._modes.setdefault(mode, mode)
        self.members.append(Member(path, raw_name, flags, method, mode, crc, stored_size, size, start, start))
        return following

    def check_ratio(self) -> None:
        """Against bombs: what all entries unpack to, by what they are packed in."""
        packed = self._end.start
        if self.total_size > RATIO_ALLOWANCE + packed * self._limits.ratio:
            found = -(-self.total_size // max(packed, 1))
            what = "the ratio of what the archive unpacks to and its size"
            raise LimitExceeded(what, found, self._limits.ratio, "unpack_ratio")

    def _path(self, name: str, mode: int) -> str:
        """Where the entry is unpacked to."""
        path = normalised(name)
        if reason := path_problem(name):
            raise _refused(name, reason)
        for what, found, limit, setting in (
            ("the size of the name", len(path.encode()), self._limits.name_size, "unpack_name_size"),
            ("the depth of the folders", path.count("/"), self._limits.depth, "unpack_depth"),
        ):
            if found > limit:
                raise LimitExceeded(f"{what} of the entry {shown(name)!r}", found, limit, setting)
        is_folder = mode & zip_.MODE_KIND == zip_.MODE_FOLDER
        # Every reader makes the same one folder of two entries for it. Two files would not be one file.
        if is_folder and self._tree.has_folder(path):
            return path
        if reason := self._tree.add(path, is_folder=is_folder):
            raise _refused(name, reason)
        return path

    def _count(self, name: str, size: int) -> None:
        self.total_size += size
        if self.total_size > self._limits.total_size:
            what = f"what the archive unpacks to, up to its entry {shown(name)!r},"
            raise LimitExceeded(what, self.total_size, self._limits.total_size, "unpack_total_size")
        if len(self._tree) - 1 > self._limits.entries:
            what = f"the number of files and folders of the archive, up to its entry {shown(name)!r},"
            raise LimitExceeded(what, len(self._tree) - 1, self._limits.entries, "unpack_entries")


def _decoded(raw_name: bytes, extra: bytes, *, flags: int, host: int) -> str:
    """An entry's name as text, its parts joined by `/`."""
    name = _unicode_path(raw_name, extra)
    if name is None:
        name = _text(raw_name, is_utf8=bool(flags & zip_.FLAG_UTF8))
    # .NET up to 4.6 wrote back slashes. Where they are separators, no name can hold one.
    return name.replace("\\", "/") if host in _BACK_SLASH_HOSTS else name


def _text(raw_name: bytes, *, is_utf8: bool) -> str:
    """Old zip tools mean code page 437. Many tools write UTF-8 and do not say so; hardly any other text is valid UTF-8."""
    try:
        return raw_name.decode()
    except UnicodeDecodeError:
        if is_utf8:
            raise _refused(raw_name.decode(errors="backslashreplace"), "its name is not UTF-8") from None
    return raw_name.decode("cp437")


def _unicode_path(raw_name: bytes, extra: bytes) -> str | None:
    """Info-ZIP's name in UTF-8, where it belongs to the name in the header."""
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
    """Those of `values` that do not fit into 32 bits stand in the Zip64 extra field, one after the other."""
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
        raise _refused(name, f"it is stored as it is, in {stored_size} bytes, and says to have {size}")


def _mode(name: str, mode: int, size: int) -> int:
    """Kind and permissions of an entry; setuid, setgid and sticky bits are dropped."""
    kind = mode & zip_.MODE_KIND
    permissions = mode & 0o777
    if size and kind == zip_.MODE_FIFO and not name.endswith("/"):
        # What `zip x.zip -` writes of content from a pipe. All readers make a file of it.
        kind = zip_.MODE_FILE
    if refused := _REFUSED_MODES.get(kind):
        raise _refused(name, f"it is {refused}")
    if kind not in (0, zip_.MODE_FILE, zip_.MODE_FOLDER, zip_.MODE_LINK):
        raise _refused(name, f"it is no file, folder or link, by its mode {mode:o}")
    if name.endswith("/") or kind == zip_.MODE_FOLDER:
        if size or kind == zip_.MODE_LINK:
            raise _refused(name, "it is a folder and something else at once")
        return zip_.MODE_FOLDER | permissions
    if kind == zip_.MODE_LINK and size > LINK_TARGET_LIMIT:
        raise _refused(name, f"the link's target has more than {LINK_TARGET_LIMIT} bytes")
    return (kind or zip_.MODE_FILE) | permissions


def _placed(members: list[Member], end: End) -> list[Member]:
    """The members in the order of their data, each with its end. No two may overlap, and no gap may be too large."""
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
    """Each of `members` with its end, which is the start of the next one."""
    if members and members[-1].start >= end.start:
        raise _refused(members[-1].path, "it has no local header before the central directory")
    placed = []
    for member, following in zip_longest(members, members[1:]):
        member_end = following.start if following else end.start
        spare = member_end - member.start - member.stored_size
        if spare < zip_.LOCAL_HEADER.size + len(member.raw_name):
            other = f"{shown(following.path)!r}" if following else "the central directory"
            raise _refused(member.path, f"it overlaps with {other}")
        if spare > _HEADER_SLACK:
            raise _refused(member.path, f"{spare - _HEADER_SLACK} bytes or more behind it belong to no entry")
        placed.append(member._replace(end=member_end))
    return placed


def _unwrapped(members: Sequence[Member], end: End) -> list[Member]:
    """The members, which stand in the order of their data, where they start if offsets are written modulo 4 GiB.

    Each starts at the first place behind the data of the one before it that its offset allows. Whether that is close enough is
    left to `_back_to_back`; it is not behind an entry whose packed size is written modulo 4 GiB too.
    """
    placed = []
    least = 0
    for member in members:
        offset = member.start - end.shift
        if offset >= OFFSET_SPACE:
            raise _refused(member.path, "its offset is not wrapped")
        if member.stored_size and member.extent is None and not member.is_deflated:
            # Readers of such archives go from one local header to the next, and would look for the descriptor in the data.
            raise _refused(member.path, "only its descriptor says where its data ends")
        start = least + (offset - least) % OFFSET_SPACE
        placed.append(member._replace(start=start))
        least = start + zip_.LOCAL_HEADER.size + len(member.raw_name) + member.stored_size
    return placed


def _is_wrapped(members: Sequence[Member], end: End) -> bool:
    """Whether members that were placed have offsets modulo 4 GiB. Else none of them starts before `end.shift`."""
    return bool(members) and members[0].start < end.shift


def _refuse(reason: str) -> NoReturn:
    raise InvalidArchive("", reason)


def _refused(name: str, reason: str) -> InvalidArchive:
    return InvalidArchive(shown(name), reason)
