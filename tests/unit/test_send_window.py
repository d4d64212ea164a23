"""The window that a worker process reads again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.errors import SourceChanged
from filestore.format.zip.checksum import crc32
from filestore.transfer.send_window import SendWindow


def test_what_is_read_again_is_what_was_cut(tmp_path: Path) -> None:
    """A store through a mapping may change no time of the file, so the checksum is compared."""
    content = bytes(range(200))
    (tmp_path / "source").write_bytes(b"before" + content)
    job = SendWindow("source", 6, [150, 50], crc32(content), codec=None, slots=1)
    memory = memoryview(bytearray(300))
    descriptor = os.open(tmp_path / "source", os.O_RDWR)
    try:
        _, chunks = job._hashed(descriptor, memory)
        assert [chunk_digest(content[:150]), chunk_digest(content[150:])] == [digest for digest, _ in chunks]
        os.pwrite(descriptor, b"?", 100)
        with pytest.raises(SourceChanged, match="the bytes at offset 6 changed while they were read"):
            job._hashed(descriptor, memory)
    finally:
        os.close(descriptor)
