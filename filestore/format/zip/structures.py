r"""The structures of a zip file, shared by writer and reader. Numbers are little-endian.

Source: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

LOCAL_SIGNATURE = b"PK\3\4"
CENTRAL_SIGNATURE = b"PK\1\2"
DESCRIPTOR_SIGNATURE = b"PK\7\10"
END_SIGNATURE = b"PK\5\6"
END64_SIGNATURE = b"PK\6\6"
LOCATOR_SIGNATURE = b"PK\6\7"

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Signature; version needed, flags, method, time, date; checksum, stored size, size; sizes of name and extra field."""
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
"""Signature; version made by, version needed, flags, method, time, date; checksum, stored size, size; sizes of name, extra
field and comment, disk, internal attributes; external attributes, offset of the local header."""
END_RECORD = struct.Struct("<4s4H2IH")
"""Signature; this disk, the directory's disk, entries on this disk, entries; the directory's size and offset; comment size."""
END64_RECORD = struct.Struct("<4sQ2H2I4Q")
"""Signature; size of what follows; version made by, version needed; this disk, the directory's disk; entries on this disk,
entries, the directory's size and offset."""
LOCATOR = struct.Struct("<4sIQI")
"""Signature; disk of the Zip64 end record, its offset; number of disks."""
EXTRA_HEADER = struct.Struct("<2H")
U64 = struct.Struct("<Q")

END64_RECORD_REST = END64_RECORD.size - 12
"""The size that a Zip64 end record states: the bytes after its signature and this number."""

U16_MAX = 0xFFFF
U32_MAX = 0xFFFFFFFF
"""In a field of 32 bits it means: the value is in the Zip64 extra field."""

FLAG_ENCRYPTED = 1 << 0
FLAG_DESCRIPTOR = 1 << 3
FLAG_PATCHED = 1 << 5
FLAG_STRONGLY_ENCRYPTED = 1 << 6
FLAG_UTF8 = 1 << 11
FLAG_MASKED = 1 << 13

STORED = 0
DEFLATED = 8

EXTRA_ZIP64 = 0x0001
EXTRA_UNICODE_PATH = 0x7075

HOST_UNIX = 3

MODE_FIFO = 0o010000
MODE_CHARACTER_DEVICE = 0o020000
MODE_FOLDER = 0o040000
MODE_BLOCK_DEVICE = 0o060000
MODE_FILE = 0o100000
MODE_LINK = 0o120000
MODE_SOCKET = 0o140000
MODE_KIND = 0o170000
MODE_OWNER_EXECUTES = 0o100

DOS_FOLDER = 0x10


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield identifier and content of each extra field.

    Ends at the first bytes that are not a field, because some writers pad with a few bytes.
    """
    at = 0
    while at + EXTRA_HEADER.size <= len(extra):
        kind, size = EXTRA_HEADER.unpack_from(extra, at)
        at += EXTRA_HEADER.size
        if at + size > len(extra):
            return
        yield kind, extra[at : at + size]
        at += size
