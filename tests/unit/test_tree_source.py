from __future__ import annotations

import os
import struct
import time
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest

from filestore.core.manifest import Chunk, Manifest
from filestore.errors import SourceChanged
from filestore.format.chunking import CHUNKING_VERSION
from filestore.transfer.sources.file import WINDOW_SIZE, CachedPush, FileState
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.tree_fingerprint import Fingerprint
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


def test_only_large_files_that_are_read_are_located(tmp_path: Path) -> None:
    """What worker processes can take of a changed tree: neither small files nor those that have not changed."""
    root = plant(tmp_path / "tree", {"a": octets(1, 6 * MIB), "b": octets(2, 5 * MIB), "c": octets(3, MIB), "d": b"small"})
    with TreeSource(walk(root)) as source:
        assert (11 * MIB, 12 * MIB, 6 * MIB) == tuple(map(source.located_size, (4 * MIB, MIB, 6 * MIB)))
    cached = _cached(root)
    (root / "a").write_bytes(octets(4, 6 * MIB))
    (root / "d").write_bytes(b"other")
    with TreeSource(walk(root)) as source:
        source.load_fingerprint(cached)
        assert 6 * MIB == source.located_size(MIB)
        _scanned(source)
        assert 0 == source.located_size(0)


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


def _small_files(root: Path) -> Path:
    """Make a tree with 12 MiB of small files in one header segment; return it."""
    return plant(root, {f"{place:03}": octets(place, 60_000) for place in range(200)})


def _pushed_again(root: Path, cached: CachedPush) -> tuple[int, Manifest]:
    """Return the bytes that are read with the push cache, and the manifest. It must be that of a push without one."""
    with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
        source.load_fingerprint(cached)
        found = _scanned(source)
        assert _cached(root).manifest == found
        assert source.file_count == source.files_done
        return source.read, found


@pytest.mark.parametrize("change", ["write", "grow", "shrink", "empty", "touch", "mode", "remove", "add", "rename"])
def test_only_the_chunks_around_a_change_are_read(tmp_path: Path, change: str) -> None:
    """And not the segment: the bytes of the new chunks, of those that hold the change, and at most one file more."""
    root = _small_files(tmp_path / "tree")
    cached = _cached(root)
    path = root / "100"
    content = path.read_bytes()
    match change:
        case "write":
            path.write_bytes(content[::-1])
        case "grow":
            path.write_bytes(content * 2)
        case "shrink":
            path.write_bytes(content[:-7])
        case "empty":
            path.write_bytes(b"")
        case "touch":
            os.utime(path, (1, 1))
        case "mode":
            path.chmod(0o755)
        case "remove":
            path.unlink()
        case "add":
            (root / "100a").write_bytes(content)
        case _:
            path.rename(root / "150a")
    read, found = _pushed_again(root, cached)
    known = {chunk.digest for chunk in cached.manifest.chunks}
    new = sum(chunk.size for chunk in found.chunks if chunk.digest not in known)
    # A touched file is read with the chunk that holds it, and the last chunk holds the central directory.
    assert read <= max(new, 4 * MIB) + 60_000
    assert read < found.size // 2


def test_a_file_whose_changes_may_go_unnoticed_is_read_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size counts for the layout of the zip, and nothing else of it is trusted."""
    root = _small_files(tmp_path / "tree")
    with monkeypatch.context() as patches:
        patches.setattr(TreeSource, "_is_written_back", lambda _source, place, _offset, _size: place != 100)
        cached = _cached(root)
    before = (root / "100").stat()
    (root / "100").write_bytes(octets(1000, 60_000))
    os.utime(root / "100", ns=(before.st_atime_ns, before.st_mtime_ns))
    read, found = _pushed_again(root, cached)
    assert 60_000 <= read < found.size // 2


def _earlier_fingerprint(root: Path, crcs: dict[str, int]) -> bytes:
    """Return the fingerprint that an earlier version recorded: files only, and a key for each segment."""
    walked = walk(root, symlinks=Symlinks.KEEP)
    files = [(name, walked.states.packed(place)) for place, entry in enumerate(walked.entries) if (name := entry.name) in crcs]
    records = [struct.pack("<HI", len(name), crcs[name]) + name.encode() + state for name, state in files]
    return b"tree2" + struct.pack("<II", len(files), 1) + bytes(36) + b"".join(records)


@pytest.mark.parametrize("others", [{}, {"150a": Folder()}, {"150a": Link("150")}])
def test_the_fingerprint_of_an_earlier_version(tmp_path: Path, others: dict[str, Planted]) -> None:
    """It is used where the tree has only files. It does not name the other entries, so it is not used where there are any."""
    root = plant(_small_files(tmp_path / "tree"), others)
    crcs = {path.name: crc32(path.read_bytes()) for path in root.iterdir() if path.is_file() and not path.is_symlink()}
    cached = _cached(root)._replace(fingerprint=_earlier_fingerprint(root, crcs))
    read, found = _pushed_again(root, cached)
    assert cached.manifest == found
    assert 200 * 60_000 == read if others else read < 4 * MIB


@pytest.mark.parametrize("size", [0, 3, 5, 8, 9, 12, 100, 700, 1500, -1])
def test_a_fingerprint_that_was_cut_short_has_no_effect(tmp_path: Path, size: int) -> None:
    """Also one of an earlier version."""
    root = plant(tmp_path / "tree", {f"{place:02}": octets(place, 100) for place in range(40)})
    cached = _cached(root)
    crcs = {path.name: crc32(path.read_bytes()) for path in root.iterdir()}
    for fingerprint in (cached.fingerprint, _earlier_fingerprint(root, crcs)):
        read, _ = _pushed_again(root, cached._replace(fingerprint=fingerprint[:size]))
        assert 4000 == read


def test_a_fingerprint_of_files_that_cannot_exist_has_no_effect(tmp_path: Path) -> None:
    """Their sizes add up to more than 64 bits."""
    root = plant(tmp_path / "tree", {"a": octets(1, 100), "b": octets(2, 100)})
    cached = _cached(root)
    fingerprint = Fingerprint.parse(cached.fingerprint)
    states = FileState(2**64 - 1, 0, 0, 0, 0).pack() * 2
    planted = fingerprint._replace(listing=fingerprint.listing._replace(states=states)).pack()
    read, _ = _pushed_again(root, cached._replace(fingerprint=planted))
    assert 200 == read


def test_a_fingerprint_of_another_manifest_has_no_effect(tmp_path: Path) -> None:
    """Its chunks would not fit the entries."""
    root = plant(tmp_path / "tree", {"a": octets(1, 100), "b": octets(2, MIB)})
    cached = _cached(root)
    chunks = list(cached.manifest.chunks)
    moved = [Chunk(chunks[0].digest, chunks[0].size + 1), Chunk(chunks[1].digest, chunks[1].size - 1), *chunks[2:]]
    read, _ = _pushed_again(root, cached._replace(manifest=Manifest.build(moved, chunking_version=CHUNKING_VERSION)))
    assert MIB + 100 == read
