"""Small files are read up to a limit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from filestore.system.small_files import JSON_LIMIT, read_small


def test_a_file_as_large_as_the_limit_is_read(tmp_path: Path) -> None:
    """One byte more is an error."""
    path = tmp_path / "small"
    path.write_bytes(b"x" * 1000)
    assert b"x" * 1000 == read_small(path, limit=1000)
    with pytest.raises(OSError, match="more than 999 bytes"):
        read_small(path, limit=999)


def test_a_file_that_says_to_be_empty_is_read_to_its_end() -> None:
    """A file that grows while it is read has more bytes than it said, like a file of the kernel."""
    path = Path("/proc/self/cmdline")
    assert 0 == path.stat().st_size
    assert path.read_bytes() == read_small(path, limit=JSON_LIMIT)


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """Each use of the cache reads one. To take memory for the limit was slower than all the rest of the read."""
    path = tmp_path / "small"
    path.write_bytes(b"{}")
    tracemalloc.start()
    try:
        assert b"{}" == read_small(path, limit=JSON_LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()
