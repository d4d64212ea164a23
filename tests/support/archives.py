"""Make honest and forged zip files in memory, and read them as a fetch does."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.zip.checksum import Checksum, crc32
from filestore.format.zip.chunker import WINDOW_MIN, Cut, RecalledCut, TreeChunker
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import (
    DEFAULT_LIMITS,
    OFFSET_SPACE,
    TAIL_SIZE,
    Member,
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
)
from filestore.format.zip.write import Entry, PlacedEntry, central_directory, local_header, sorted_entries
from tests.support.generator import octets, prose
from tests.support.golden import Vector, weights
from tests.support.models import ZipEntry, safetensors_file, zip_file

Contents = Mapping[str, bytes]


def zip_of(entries: Iterable[Entry], contents: Contents) -> bytes:
    """Return the whole zip of a tree. `contents` has the contents of its files by name."""
    archive = bytearray()
    placed = []
    for entry in sorted_entries(entries):
        content = content_of(entry, contents)
        placed.append(PlacedEntry(entry, crc32(content), len(archive)))
        archive += local_header(entry, placed[-1].crc) + content
    return bytes(archive + central_directory(placed, len(archive)))


def content_of(entry: Entry, contents: Contents) -> bytes:
    """Return the content of an entry."""
    if entry.target is not None:
        return entry.target.encode()
    return b"" if entry.is_folder else contents[entry.name]


def tree_chunker(entries: Iterable[Entry], contents: Contents, reads: list[tuple[str, int, int]] | None = None) -> TreeChunker:
    """Return a chunker of a tree in memory. It appends each read to `reads`: name, offset and size."""

    def read(place: int, offset: int, memory: memoryview) -> None:
        name = chunker.entries[place].name
        memory[:] = contents[name][offset : offset + len(memory)]
        if reads is not None:
            reads.append((name, offset, len(memory)))

    chunker = TreeChunker(entries, read)
    return chunker


def scanned(
    chunker: TreeChunker, window: int, recalled: Callable[[RecalledCut], Sequence[bytes]] | None = None
) -> list[list[bytes]]:
    """Return the chunks of each segment, read in windows of that size. `recalled` gives those that are recalled."""
    chunks: list[list[bytes]] = [[] for _ in chunker.segments]
    buffer = memoryview(bytearray(window))
    while not chunker.is_finished:
        for cut in chunker.scan(buffer):
            if isinstance(cut, Cut):
                chunks[cut.segment] += pieces(cut)
            else:
                assert recalled is not None
                chunks[cut.segment] += recalled(cut)
    return chunks


def pieces(cut: Cut) -> list[bytes]:
    """Return the chunks of a cut. They are copied, because the cut's memory is reused."""
    found, start = [], 0
    for size in cut.sizes:
        found.append(bytes(cut.content[start : start + size]))
        start += size
    assert start == len(cut.content)
    return found


class Pipe(io.BytesIO):
    """A file that can be written to and cannot seek."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation


class UnpackedArchive(NamedTuple):
    """The result of unpacking an entry."""

    content: bytes
    is_executable: bool = False
    is_folder: bool = False
    target: str | None = None


def unpacked(
    archive: bytes, *, limits: ZipLimits = DEFAULT_LIMITS, offset_space: int = OFFSET_SPACE
) -> dict[str, UnpackedArchive]:
    """Return the tree of an archive, by path, after all checks."""
    end = find_end(archive[-TAIL_SIZE:], len(archive), limits=limits, offset_space=offset_space)
    members = members_of(archive, limits=limits, offset_space=offset_space)
    check_preamble(archive[:4], members, end)
    for offset in other_readings(members, end):
        check_other_reading(archive[offset : offset + 4])
    tree = {member.path: _unpacked_member(archive, member, offset_space) for member in members}
    check_links(members, {path: found.target for path, found in tree.items() if found.target is not None})
    return tree


def members_of(archive: bytes, *, limits: ZipLimits = DEFAULT_LIMITS, offset_space: int = OFFSET_SPACE) -> list[Member]:
    """Return the members in the central directory of an archive."""
    end = find_end(archive[-TAIL_SIZE:], len(archive), limits=limits, offset_space=offset_space)
    return parse_central_directory(archive[end.start : end.start + end.size], end, limits=limits)


def _unpacked_member(archive: bytes, member: Member, offset_space: int) -> UnpackedArchive:
    extent = check_local_header(member, archive[member.start : member.start + member.head_size])
    assert member.extent in {extent, None}
    check_descriptor(member, archive[extent.end : member.end])
    content = content_in(archive[extent.start : extent.end], member, offset_space=offset_space)
    target = link_target(member, content) if member.is_link else None
    return UnpackedArchive(b"" if member.is_link else content, member.is_executable, member.is_folder, target)


def content_in(data: bytes, member: Member, *, offset_space: int = OFFSET_SPACE) -> bytes:
    """Return the content that the data of an entry decodes to, after all checks."""
    if member.is_deflated:
        inflater = Inflater(member, offset_space=offset_space)
        content = b"".join(inflater.inflate(data))
        inflater.finish()
        return content
    checksum = Checksum()
    middle = len(data) // 2
    for start, end in ((middle, len(data)), (0, middle)):
        checksum.add(start, data[start:end])
    check_crc(member, checksum.of(len(data)))
    return data


SMALL_SPACE = 1 << 20
"""Replaces 4 GiB as `offset_space` in tests of offsets that are written modulo it."""


class Forged(NamedTuple):
    """Describe an entry, right or wrong. A field that is None gets its right value."""

    name: str | bytes
    content: bytes = b""
    deflated: bool = False
    mode: int = 0o100644
    host: int = 3
    flags: int = 0
    method: int | None = None
    size: int | None = None
    stored_size: int | None = None
    crc: int | None = None
    extra: bytes = b""
    offset: int | None = None
    """The offset of the local header, as the central directory says it."""
    local: Mapping[str, int] | None = None
    """Fields of the local header that differ: flags, method, crc, size, stored_size."""
    local_name: bytes | None = None
    local_extra: bytes = b""
    descriptor: bytes = b""
    gap: bytes = b""
    """Bytes after the entry."""
    data: bytes | None = None
    """Bytes that are written instead of the content."""
    in_directory: bool = True
    in_body: bool = True

    @property
    def raw_name(self) -> bytes:
        """The name as it is written."""
        return self.name.encode() if isinstance(self.name, str) else self.name


def deflated(content: bytes, *, level: int = 9) -> bytes:
    """Return the deflated form of `content`. Level 9 takes seconds for each MiB of `prose`."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def wrapped(*entries: Forged, decoys: Mapping[int, bytes] | None = None) -> bytes:
    """Return a zip with 2 MiB of fillers before `entries`, and with offsets modulo 1 MiB.

    `decoys` overwrite the fillers at their offsets.
    """
    size, header_size = 700_000, 30 + len("filler 0")
    fillers = [bytearray(b"." * size) for _ in range(3)]
    for at, decoy in (decoys or {}).items():
        number, offset = divmod(at, header_size + size)
        fillers[number][offset - header_size : offset - header_size + len(decoy)] = decoy
    packed = [Forged(f"filler {number}", bytes(filler)) for number, filler in enumerate(fillers)]
    return forged([*packed, *entries], space=SMALL_SPACE)


def finder_entry(name: str, content: bytes, *, space: int = 1 << 32) -> Forged:
    """Return a file as macOS Finder packs it: deflated, with its sizes, modulo `space`, in a descriptor."""
    data = deflated(content)
    stored_size, size = len(data) % space, len(content) % space
    descriptor = struct.pack("<4s3I", b"PK\7\10", crc32(content), stored_size, size)
    local = {"crc": 0, "stored_size": 0, "size": 0}
    entry = Forged(name, content, flags=8, method=8, data=data, local=local, descriptor=descriptor)
    return entry._replace(stored_size=stored_size, size=size)


def forged(
    entries: Iterable[Forged],
    *,
    preamble: bytes = b"",
    before_end: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    space: int = 1 << 32,
) -> bytes:
    """Return a zip file of these entries. `count` goes into its end record, and offsets are written modulo `space`."""
    body, directory, found = bytearray(preamble), bytearray(), 0
    for entry in entries:
        data = entry.data
        if data is None:
            data = deflated(entry.content) if entry.deflated else entry.content
        truth = {
            "flags": entry.flags,
            "method": (8 if entry.deflated else 0) if entry.method is None else entry.method,
            "crc": crc32(entry.content) if entry.crc is None else entry.crc,
            "stored_size": len(data) if entry.stored_size is None else entry.stored_size,
            "size": len(entry.content) if entry.size is None else entry.size,
        }
        offset = len(body) % space if entry.offset is None else entry.offset
        if entry.in_body:
            body += _forged_local(entry, truth | dict(entry.local or {})) + data + entry.descriptor + entry.gap
        if entry.in_directory:
            directory += _forged_central(entry, truth, offset)
            found += 1
    found = found if count is None else count
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, found, found, len(directory), len(body) % space, len(comment))
    return bytes(body + directory + before_end) + end + comment


def _forged_local(entry: Forged, numbers: Mapping[str, int]) -> bytes:
    name = entry.raw_name if entry.local_name is None else entry.local_name
    flags, method, crc, stored_size, size = numbers.values()
    fields = (20, flags, method, 0, 33, crc, stored_size, size, len(name), len(entry.local_extra))
    return struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + name + entry.local_extra


def _forged_central(entry: Forged, numbers: Mapping[str, int], offset: int) -> bytes:
    name = entry.raw_name
    flags, method, crc, stored_size, size = numbers.values()
    made = (entry.host << 8 | 20, 20, flags, method, 0, 33, crc, stored_size, size)
    rest = (len(name), len(entry.extra), 0, 0, 0, entry.mode << 16, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *made, *rest) + name + entry.extra


GOLDEN = Path(__file__).parent.parent / "golden/archive.json"
"""`python -m tests.support.archives` writes this file again, which is a change of the format."""


def golden_trees() -> dict[str, tuple[list[Entry], dict[str, bytes]]]:
    """Return the trees of the golden vectors: a small one, and one whose files have segments."""
    small = {"b.txt": b"b\n", "a/run.sh": b"#!/bin/sh\n", "a.txt": b"", "größe/naïve.txt": "grüße\n".encode()}
    large = {
        "config.json": prose(40, 700),
        "model.safetensors": safetensors_file(weights()),
        "model.bin": octets(41, 3 << 20),
        "nested.zip": zip_file([ZipEntry("model.safetensors", safetensors_file(weights())), ZipEntry("readme", b"read me")]),
        "tokenizer/vocabulary.txt": prose(42, (256 << 10) - 1),
        "tokenizer/merges.txt": prose(43, 256 << 10),
    }
    extras = [Entry("empty", is_folder=True), Entry("a/link", 8, target="../b.txt")]
    return {
        "empty": ([], {}),
        "small": ([*_entries(small), *extras], small),
        "large": (_entries(large), large),
    }


def _entries(contents: Contents) -> list[Entry]:
    return [Entry(name, len(content), is_executable=name.endswith(".sh")) for name, content in contents.items()]


def golden_vector(entries: Sequence[Entry], contents: Contents) -> Vector:
    """Return the vector of one tree, with its whole bytes if they are few."""
    chunks = [chunk for segment in scanned(tree_chunker(entries, contents), WINDOW_MIN) for chunk in segment]
    archive = b"".join(chunks)
    manifest = Manifest.build([Chunk(chunk_digest(chunk), len(chunk)) for chunk in chunks], chunking_version=CHUNKING_VERSION)
    return {
        "size": len(archive),
        "content": str(chunk_digest(archive)),
        "chunks": [len(chunk) for chunk in chunks],
        "file": str(manifest.digest),
        "bytes": archive.hex() if len(archive) < 2000 else None,
    }


if __name__ == "__main__":
    vectors = {name: golden_vector(*tree) for name, tree in golden_trees().items()}
    GOLDEN.write_text(json.dumps(vectors, indent=1) + "\n")
