from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from filestore.core.manifest import Manifest
from filestore.transfer.sources.file import CachedPush, FileSource, FileState
from tests.support.chunking import scan
from tests.support.generator import octets


def _scanned(source: FileSource) -> Manifest:
    scan(source)
    return source.manifest()


def _settled(path: Path, size: int = 1000) -> Path:
    path.write_bytes(octets(1, size))
    os.utime(path, ns=(0, 1_600_000_000_000_000_000))
    return path


def test_a_file_in_the_same_state_is_not_read(tmp_path: Path) -> None:
    """For a settled file, the push cache gives its manifest."""
    path = _settled(tmp_path / "model.bin")
    with FileSource(path) as first:
        cached = CachedPush(_scanned(first), first.fingerprint(), time.time_ns() + 3_000_000_000)
    with FileSource(path) as again:
        again.load_fingerprint(cached)
        assert (True, 0, cached.manifest) == (again.is_finished, again.read, again.manifest())


@pytest.mark.parametrize("field", FileState._fields)
def test_a_file_in_another_state_is_read(tmp_path: Path, field: str) -> None:
    """Size, mtime, ctime, inode and device must all be those of the last push."""
    path = _settled(tmp_path / "model.bin")
    with FileSource(path) as source:
        manifest = _scanned(source)
        other = source.state._replace(**{field: getattr(source.state, field) + 1})
    with FileSource(path) as again:
        again.load_fingerprint(CachedPush(manifest, other.pack(), time.time_ns() + 3_000_000_000))
        assert False is again.is_finished


def test_a_file_that_changed_just_before_is_read(tmp_path: Path) -> None:
    """Within 2 s of its last change a file may change again without its times showing it."""
    path = _settled(tmp_path / "model.bin")
    with FileSource(path) as source:
        cached = CachedPush(_scanned(source), source.fingerprint(), source.state.ctime + 1_000_000_000)
    with FileSource(path) as again:
        again.load_fingerprint(cached)
        assert False is again.is_finished


def test_a_state_survives_packing() -> None:
    """Inode and device are unsigned 64-bit numbers, and times may be before 1970."""
    state = FileState(3, -1, 2**62, 2**64 - 1, 2**64 - 1)
    assert state == FileState.unpack(state.pack())


def test_a_file_with_an_mtime_in_the_future_is_not_read_again(tmp_path: Path) -> None:
    """Its mtime was set by hand; its ctime shows when it was last changed."""
    path = _settled(tmp_path / "model.bin")
    ahead = time.time_ns() + 10**17
    os.utime(path, ns=(0, ahead))
    with FileSource(path) as first:
        cached = CachedPush(_scanned(first), first.fingerprint(), first.state.ctime + 3_000_000_000)
    with FileSource(path) as again:
        again.load_fingerprint(cached)
        assert True is again.is_finished


@pytest.mark.parametrize("field", ["mtime", "ctime"])
@pytest.mark.parametrize("seconds", [-1, 0, 1])
def test_a_time_near_that_of_the_record_is_not_settled(field: str, seconds: int) -> None:
    """Neither just before, nor just after, as clocks differ a little."""
    now = 10**18
    state = FileState(3, 0, 0, 1, 1)._replace(**{field: now + seconds * 10**9})
    assert False is state.is_settled(now)
    assert True is FileState(3, 0, 0, 1, 1).is_settled(now)
