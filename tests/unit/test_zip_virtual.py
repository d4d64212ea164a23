from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import pytest

from filestore.format.zip.checksum import crc32
from filestore.format.zip.virtual import VirtualZip
from filestore.format.zip.write import Entry, local_header_size, sorted_entries
from tests.support.archives import content_of, zip_of
from tests.support.generator import octets, prose

CONTENTS = {"a.txt": prose(1, 100), "b/größe.bin": octets(2, 5_000), "c": b"", "z.bin": octets(3, 300_000)}
ENTRIES = [
    *(Entry(name, len(content), is_executable=name == "a.txt") for name, content in CONTENTS.items()),
    Entry("empty", is_folder=True),
    Entry("link", 5, target="a.txt"),
]

Asked = list[tuple[str, int, int]]


def _virtual(contents: Mapping[str, bytes], asked: Asked) -> tuple[VirtualZip, int]:
    """Return the zip of `ENTRIES`, and the offset of its central directory. `asked` records reads."""
    entries = sorted_entries(ENTRIES)
    offsets = [0]
    for entry in entries:
        offsets.append(offsets[-1] + local_header_size(len(entry.stored_name), entry.size) + entry.size)

    def read(place: int, offset: int, memory: memoryview) -> None:
        name = entries[place].name
        asked.append((name, offset, len(memory)))
        memory[:] = contents[name][offset : offset + len(memory)]

    crcs = [crc32(content_of(entry, contents)) for entry in entries]
    return VirtualZip(entries, crcs, offsets, read), offsets[-1]


def test_the_whole_is_the_zip() -> None:
    """It equals, byte for byte, the zip that is made in one piece, and other tools can read it."""
    expected = zip_of(ENTRIES, CONTENTS)
    virtual, _ = _virtual(CONTENTS, [])
    found = bytearray(len(expected))

    virtual.read_into(memoryview(found), 0)

    assert expected == found
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        assert None is archive.testzip()


@pytest.mark.parametrize("size", [1, 7, 31, 4_096, 100_003])
def test_any_part_is_a_part_of_the_zip(size: int) -> None:
    """Parts of headers, of contents, of the central directory, and across all of them."""
    expected = zip_of(ENTRIES, CONTENTS)
    virtual, _ = _virtual(CONTENTS, [])
    for offset in (*range(600), *range(600, len(expected), 4_999), *range(len(expected) - 300, len(expected))):
        found = bytearray(min(size, len(expected) - offset))

        virtual.read_into(memoryview(found), offset)

        assert expected[offset : offset + len(found)] == found


def test_only_what_is_asked_for_is_read() -> None:
    """Not a byte of content for headers, links, folders and the central directory; of a file no more than the part."""
    asked: Asked = []
    virtual, tail = _virtual(CONTENTS, asked)
    virtual.read_into(memoryview(bytearray(30)), 0)
    virtual.read_into(memoryview(bytearray(40)), tail)
    assert [] == asked
    virtual.read_into(memoryview(bytearray(10)), tail - 12)
    assert [("z.bin", 300_000 - 12, 10)] == asked
