"""The stored form of a cache entry's state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from filestore.cache.entries import FileEntry, encode_entry, read_entry
from filestore.core.records import Kind

STORED = b'{"size": 30000000, "mtime": 1764347950464812345, "cutting": 1}'
"""The form that every version since commit 1423cff can read."""
ENTRY = FileEntry(30_000_000, 1_764_347_950_464_812_345, 1)


def test_the_keys_of_a_stored_entry_do_not_change() -> None:
    """A name in the code may change, and a stored key does not."""
    assert json.loads(STORED) == json.loads(encode_entry(ENTRY))


@pytest.mark.parametrize("key", [b"cutting", b"chunking_version"])
def test_an_entry_of_an_earlier_version_is_read(tmp_path: Path, key: bytes) -> None:
    """Both names that the key has had are read."""
    (tmp_path / "entry.json").write_bytes(STORED.replace(b"cutting", key))
    assert ENTRY == read_entry(tmp_path, Kind.FILE)
