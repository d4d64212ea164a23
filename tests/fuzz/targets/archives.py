"""Zip files that are unpacked: the central directory, local headers, and entries that arrive in pieces."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib

from filestore.errors import InvalidArchive, LimitExceeded
from filestore.format.zip import read
from filestore.format.zip import structures as zip_
from filestore.format.zip.checksum import crc32
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import (
    TAIL_SIZE,
    End,
    Member,
    Members,
    ZipLimits,
    check_crc,
    check_descriptor,
    check_links,
    check_local_header,
    check_other_reading,
    check_preamble,
    find_end,
    link_target,
    other_readings,
    parse_central_directory,
    repeated_names,
)
from filestore.format.zip.tree import path_problem
from filestore.transfer.sinks.zip_stream import EntryStream
from tests.fuzz.target import PlantedFault, Target, pieces_of

_LIMITS = ZipLimits(entries=40, total_size=1 << 20, ratio=200, name_size=300, depth=8, directory_size=8192)
_ERRORS = (InvalidArchive, LimitExceeded)
_ENTRY_LIMIT = 1 << 20


def _members(data: bytes) -> tuple[list[Member], End]:
    """Parse the structure of a zip file, and check what holds of every one."""
    end = find_end(data[-TAIL_SIZE:], len(data), limits=_LIMITS)
    assert 0 <= end.start <= end.start + end.size <= len(data)
    assert end.shift >= 0
    directory = data[end.start : end.start + end.size]
    repeated_names(directory, end)
    members = parse_central_directory(directory, end, limits=_LIMITS)
    assert members == list(Members(directory, end, limits=_LIMITS))
    reached = 0
    for member in members:
        assert reached <= member.start < member.end <= end.start
        assert member.head_size >= zip_.LOCAL_HEADER.size + len(member.raw_name)
        assert path_problem(member.path) is None
        reached = member.end
    assert len(members) <= _LIMITS.entries
    assert sum(member.size for member in members) <= _LIMITS.total_size
    return members, end


def _check_directory(data: bytes) -> None:
    """Members do not overlap, are inside the file, and are the same when they are made on request."""
    _members(data)


def _check_archive(data: bytes) -> None:
    """What is unpacked is what Python's own reader of zip files finds."""
    members, end = _members(data)
    check_preamble(data[:4], members, end)
    for place in other_readings(members, end):
        check_other_reading(data[place : place + 4])
    targets, contents = {}, {}
    for member in members:
        extent = check_local_header(member, data[member.start : member.start + member.head_size])
        assert member.start < extent.start <= extent.end <= member.end
        assert member.extent in {None, extent}
        check_descriptor(member, data[extent.end : member.end])
        content = _content(member, data[extent.start : extent.end])
        if member.is_link:
            targets[member.path] = link_target(member, content)
        contents[member.start] = content
    check_links(members, targets)
    assert _as_python_reads_it(data) in {None, tuple(sorted(contents.items()))}


def _as_python_reads_it(data: bytes) -> tuple[tuple[int, bytes], ...] | None:
    """Return the contents by their offsets, or None if Python refuses the file: two readers must not see two trees."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return tuple(sorted((info.header_offset, archive.read(info)) for info in archive.infolist()))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, EOFError, zlib.error):
        return None


def _content(member: Member, data: bytes) -> bytes:
    if not member.is_deflated:
        check_crc(member, crc32(data))
        return data
    inflater, content = Inflater(member), bytearray()
    for piece in inflater.inflate(data):
        content += piece
        assert len(content) <= member.size
    inflater.finish()
    return bytes(content)


def _archives() -> list[bytes]:
    return [_archive(zipfile.ZIP_STORED), _archive(zipfile.ZIP_DEFLATED), _streamed(), _wide(), _with_link(), _empty()]


def _archive(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.comment = b"a comment"
        made.mkdir("folder")
        made.writestr("folder/one.txt", b"one, one, one, one, one, one")
        made.writestr("two", b"")
    return file.getvalue()


def _streamed() -> bytes:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise io.UnsupportedOperation

    file = Pipe()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("streamed", b"content " * 9)
        made.writestr("naïve.txt", b"more")
    return file.getvalue()


def _wide() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made, made.open("wide", "w", force_zip64=True) as entry:
        entry.write(b"zip64")
    return file.getvalue()


def _with_link() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        made.writestr(link, "target")
        made.writestr("target", b"x")
    return file.getvalue()


def _empty() -> bytes:
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return b"\x00preamble" + file.getvalue()


ZIP_DIRECTORY = Target(
    check=_check_directory,
    errors=_ERRORS,
    seeds=_archives,
    fault=PlantedFault(
        owner=read, function="_back_to_back", old="if spare < zip_.LOCAL_HEADER.size + len(member.raw_name):", new="if spare < 0:"
    ),
    parses=("filestore.format.zip",),
)
ZIP_ARCHIVE = Target(
    check=_check_archive,
    errors=_ERRORS,
    seeds=_archives,
    fault=PlantedFault(owner=read, function="_checked", old="if start < totals.offset:", new="if start < 0:"),
    parses=("filestore.format.zip",),
)


def _member_of(data: bytes) -> Member:
    """Return a member that agrees with the local header at the start of the input, so that the fuzzer gets past the header."""
    if len(data) < zip_.LOCAL_HEADER.size:
        raise InvalidArchive("", "it is shorter than a local header")
    _, _, flags, method, _, _, crc, stored_size, size, name_size, _ = zip_.LOCAL_HEADER.unpack_from(data)
    raw_name = data[zip_.LOCAL_HEADER.size :][:name_size]
    stored_size = min(stored_size, len(data) - zip_.LOCAL_HEADER.size - name_size)
    if stored_size < 0 or len(raw_name) < name_size:
        raise InvalidArchive("", "it is shorter than its name")
    method = zip_.DEFLATED if method else zip_.STORED
    size = min(size, _ENTRY_LIMIT) if method else stored_size
    return Member("path", raw_name, flags, method, 0o100644, crc, stored_size, size, 0, len(data))


def _check_entry(data: bytes) -> None:
    """An entry that arrives in pieces has the same content as a whole one, and never more than its size."""
    member = _member_of(data)
    extent = check_local_header(member, data[: member.head_size])
    if member.is_deflated:
        pieces = list(Inflater(member).inflate(data[extent.start : extent.end]))
        assert sum(map(len, pieces)) <= member.size
    whole = _written(member, [data])
    assert whole == _written(member, pieces_of(data))
    assert whole is None or len(whole) == member.size


def _written(member: Member, pieces: list[bytes]) -> bytes | None:
    """Feed an entry. Return what was written, or None if the entry was refused."""
    descriptor = os.memfd_create("entry")
    stream, start = EntryStream(member, lambda _: os.dup(descriptor)), 0
    try:
        for piece in pieces:
            stream.feed(start, memoryview(piece))
            start += len(piece)
            assert os.fstat(descriptor).st_size <= member.size
    except InvalidArchive:
        assert os.fstat(descriptor).st_size <= member.size
        return None
    else:
        return os.pread(descriptor, _ENTRY_LIMIT + 1, 0)
    finally:
        stream.close()
        os.close(descriptor)


def _entries() -> list[bytes]:
    content = b"some content that repeats, that repeats"
    packed = zlib.compress(content, wbits=-15)

    def entry(flags: int, method: int, data: bytes, behind: bytes = b"") -> bytes:
        head = zip_.LOCAL_HEADER.pack(b"PK\3\4", 20, flags, method, 0, 0, zlib.crc32(content), len(data), len(content), 4, 0)
        return head + b"name" + data + behind

    descriptor = struct.pack("<4s3I", b"PK\7\10", zlib.crc32(content), len(packed), len(content))
    return [entry(0, 0, content), entry(0, 8, packed), entry(8, 8, packed, descriptor), entry(8, 8, packed, descriptor[4:])]


ZIP_ENTRY = Target(
    check=_check_entry,
    errors=(InvalidArchive,),
    seeds=_entries,
    fault=PlantedFault(
        owner=Inflater, function="_pieces", old="if self.size > self._member.size:", new="if self.size > 1 << 40:"
    ),
    parses=("filestore.transfer.sinks.zip_stream", "filestore.format.zip"),
)
