from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest

from filestore.core.manifest import Manifest
from filestore.errors import SourceChanged
from filestore.transfer.sources.file import WINDOW_SIZE, CachedPush
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from tests.support.chunking import scan
from tests.support.generator import octets
from tests.support.trees import Folder, Link, Planted, plant

MIB = 1 << 20
LATER = 3_000_000_000
"""Nanoseconds after which a file that was just written counts as settled."""


def _scanned(source: TreeSource) -> Manifest:
    scan(source)
    return source.manifest()


def _cached(root: Path) -> CachedPush:
    with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
        return CachedPush(_scanned(source), source.fingerprint(), time.time_ns() + LATER)


def test_files_without_content_are_done_from_the_start(tmp_path: Path) -> None:
    """These are empty files and kept links; folders do not count as files."""
    things: dict[str, Planted] = {"a": b"", "b": b"b", "folder": Folder(), "link": Link("b")}
    with TreeSource(walk(plant(tmp_path / "tree", things), symlinks=Symlinks.KEEP)) as source:
        assert (3, 2) == (source.file_count, source.files_done)
        _scanned(source)
        assert (3, 1) == (source.files_done, source.read)


def test_a_large_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays open from window to window, and nothing stays open at the end."""
    root = tmp_path / "tree"
    root.mkdir()
    with (root / "large").open("xb") as file:
        file.truncate(3 * WINDOW_SIZE)
    opened = []
    really_open = os.open

    def counted(path: str, flags: int) -> int:
        opened.append(path)
        return really_open(path, flags)

    with TreeSource(walk(root)) as source:
        monkeypatch.setattr(os, "open", counted)
        before = set(Path("/proc/self/fd").iterdir())
        _scanned(source)
        assert before == set(Path("/proc/self/fd").iterdir())
    assert [f"{root}/large"] == opened


def test_what_is_known_of_an_unchanged_tree_stays_the_same(tmp_path: Path) -> None:
    """Nothing of it has to be put together again."""
    root = plant(tmp_path / "tree", {"a": b"a", "b": octets(1, MIB), "link": Link("a")})
    cached = _cached(root)
    with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
        source.load_fingerprint(cached)
        assert (True, 0, source.size) == (source.is_finished, source.read, source.cached_size)
        assert cached.fingerprint is source.fingerprint()
        assert cached.manifest == source.manifest()


@pytest.mark.slow
def test_where_a_kept_link_leads_is_not_told_by_its_checksum(tmp_path: Path) -> None:
    """Two targets of one size and one checksum are two trees."""
    seen: dict[int, str] = {}
    for number in count():
        second = f"{octets(number, 8).hex()}"
        first = seen.setdefault(crc32(second.encode()), second)
        if first != second:
            break
    root = plant(tmp_path / "tree", {"file": b"x", "link": Link(first)})
    cached = _cached(root)
    (root / "link").unlink()
    plant(root, {"link": Link(second)})
    with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as sparing:
        sparing.load_fingerprint(cached)
        found = _scanned(sparing)
    assert _cached(root).manifest == found != cached.manifest


def test_a_large_file_that_changes_while_it_is_read_is_found_at_its_end(tmp_path: Path) -> None:
    """Not only when all other files were read."""
    root = plant(tmp_path / "tree", {"large": octets(1, MIB), "later": b"x"})
    with (root / "large").open("r+b") as file:
        file.truncate(2 * WINDOW_SIZE)
    with TreeSource(walk(root)) as source:
        buffer = memoryview(bytearray(WINDOW_SIZE))
        source.scan(buffer)
        os.utime(root / "large", (0, 0))
        with pytest.raises(SourceChanged, match=r"large.*mtime"):
            _scanned(source)
        assert 2 * WINDOW_SIZE == source.read
