"""A disk is full at one end. The user sees one sentence, and with more space the same command completes."""

from __future__ import annotations

import filecmp
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home
from tests.support.disks import small_disk
from tests.support.server import eventually

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that is larger than the disk."""
    path = tmp_path / "model.bin"
    path.write_bytes(random.Random(7).randbytes(SIZE))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of 16 MiB, with a function that makes it larger."""
    with small_disk(tmp_path / "small", "size=16m") as change:
        yield tmp_path / "small", lambda: change("size=256m")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file."""
    return path.read_text().splitlines()


@pytest.mark.slow
def test_the_target_s_disk_is_full(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """The error comes before anything is fetched, since the size is known. Then the fetch completes."""
    folder, grow = small
    pushed = home.result("push", source)
    sentence = home.failure("fetch", pushed["id"], "-o", folder / "back")
    assert f"{folder} is full" in sentence
    assert not (folder / "back").exists()
    grow()
    home.result("fetch", pushed["id"], "-o", folder / "back")
    assert filecmp.cmp(source, folder / "back", shallow=False)


@pytest.mark.slow
def test_the_target_s_disk_fills_up(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """Another program fills the disk. The fetch that completes uses what was written before."""
    folder, grow = small
    pushed = home.result("push", source)
    # A sparse file of a smaller fetch has no blocks yet, so it passes the check of free space. This one takes 10 MiB
    # for real.
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


@pytest.mark.slow
def test_the_server_s_disk_is_full(home: Home, source: Path, small: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    """The push fails with one sentence, and no record is made. The server lives on. Then only the rest is sent."""
    folder, grow = small
    log = tmp_path / "log"
    logged = ("sh", "-c", f'exec "$@" 2>{log}', "sh", SCRIPTS / "filestore", "serve")
    with home.server(root=folder / "root", command=logged) as server:
        sentence = home.failure("push", source, environ=server.environ)
        assert "is full" in sentence
        # A thread of the server writes the log.
        eventually(lambda: lines_of(log) != [])
        assert [] == home.result("ls", environ=server.environ)["files"]
        grow()
        pushed = home.result("push", source, environ=server.environ)
        assert 0 <= pushed["bytes_shared"] < SIZE
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=server.environ)
    # Each failed request has one line, with the id of the request that the client got.
    failure = r" failed, request [0-9a-f]{16}: .* is full: (No space left on device|database or disk is full|.* min_free); "
    assert all(re.search(failure, line) for line in lines_of(log))
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
