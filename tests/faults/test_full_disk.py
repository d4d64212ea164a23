"""A full disk on either side, seen by a user: one sentence, nothing half, and the same command completes when there is room."""

from __future__ import annotations

import filecmp
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import Home

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """More than fits."""
    path = tmp_path / "model.bin"
    path.write_bytes(random.Random(7).randbytes(SIZE))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of 16 MiB, and what makes it larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"needs the right to mount: {made.stderr}")

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=256m", folder], check=True)

    yield folder, grow
    subprocess.run(["umount", "-l", folder], check=True)


def test_the_target_s_disk_is_full(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """Said before anything is fetched, since it can be known; then the fetch completes."""
    folder, grow = small
    pushed = home.result("push", source)
    sentence = home.failure("fetch", pushed["id"], "-o", folder / "back")
    assert f"{folder} is full" in sentence
    assert not (folder / "back").exists()
    grow()
    home.result("fetch", pushed["id"], "-o", folder / "back")
    assert filecmp.cmp(source, folder / "back", shallow=False)


def test_the_target_s_disk_fills_up(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """Somebody else takes the room: what was written before is used by the fetch that completes."""
    folder, grow = small
    pushed = home.result("push", source)
    # A sparse file that claims nothing yet passes the look at free space of a smaller fetch; this one takes 10 MiB for real.
    (folder / "other").write_bytes(bytes(10 * MIB))
    small_source = tmp_path / "small.bin"
    small_source.write_bytes(source.read_bytes()[: 8 * MIB])
    home.result("push", small_source)
    sentence = home.failure("fetch", "small.bin", "-o", folder / "back")
    assert f"{folder} is full" in sentence
    (folder / "other").unlink()
    home.result("fetch", "small.bin", "-o", folder / "back")
    assert filecmp.cmp(small_source, folder / "back", shallow=False)
    grow()
    home.result("fetch", pushed["id"], "-o", folder / "back")
    assert filecmp.cmp(source, folder / "back", shallow=False)


def test_the_server_s_disk_is_full(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """The pusher is told in one sentence, no record is made, the server lives on; then only the rest is sent."""
    folder, grow = small
    with home.server(root=folder / "root", complains=True) as server:
        sentence = home.failure("push", source, environ=server.environ)
        assert "is full" in sentence
        assert [] == home.result("ls", environ=server.environ)["files"]
        grow()
        pushed = home.result("push", source, environ=server.environ)
        assert 0 <= pushed["bytes_shared"] < SIZE
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=server.environ)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
