"""kill -9 in the middle of an unpack: no half tree ever appears, and the same command completes with what is there."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.records import Record
from filestore.transfer.fetch_tree import FetchTreeResult, fetch_tree
from filestore.transfer.push import push
from tests.support.disks import small_disk
from tests.support.trees import standing

MIB = 1 << 20
UNPACK = """
import asyncio, sys
from filestore.backends import connect
from filestore.core.references import Reference
from filestore.transfer.fetch_tree import fetch_tree

async def main(root, id, target):
    async with connect(root) as repository:
        await fetch_tree(repository, Reference(id=id), target=target, force=True)

asyncio.run(main(*sys.argv[1:]))
"""


def kill_everywhere(folder: Path, way: str) -> int:
    """At how many calls an unpack was killed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fetch_tree_crashes", folder, way],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (0, "") == (done.returncode, done.stderr)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["new", "inside", "force"])
def test_an_unpack_is_killed_at_every_system_call(tmp_path: Path, way: str) -> None:
    """After a kill at any call, the next fetch completes, and leaves no other files."""
    assert kill_everywhere(tmp_path, way) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["mounted", "image", "staged"])
def test_a_replacement_in_place_is_killed_at_every_change(tmp_path: Path, way: str) -> None:
    """The next command finds the whole old tree or the whole new one, never a mixture. `--force` works again."""
    with small_disk(tmp_path / "probe", "size=1m"):
        assert kill_everywhere(tmp_path, way) > 5


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of large files and many small ones. To move it takes longer than a watching process needs to strike."""
    root = tmp_path_factory.mktemp("source") / "model"
    rng = random.Random(6)
    for number in range(3):
        (root / f"{number}").mkdir(parents=True)
        (root / f"{number}/weights.bin").write_bytes(rng.randbytes(32 * MIB))
        for small in range(200):
            (root / f"{number}/{small}.txt").write_bytes(rng.randbytes(rng.randrange(20_000)))
    return root


async def pushed(root: Path, tree: Path) -> Record:
    """The record of a tree in a repository of its own."""
    async with connect(str(root), create=True) as repository:
        return (await push(repository, tree)).record


async def unpacked(root: Path, record: Record, target: Path) -> FetchTreeResult:
    """Fetch the tree in this process, and return the result."""
    async with connect(str(root)) as repository:
        return await fetch_tree(repository, record, target=target)


def held(folder: Path) -> int:
    """Return the bytes in files of staging folders."""
    found = 0
    for path in folder.glob(".*.filestore-partial/**/*"):
        try:
            found += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def start(root: Path, record: Record, target: Path) -> subprocess.Popen[bytes]:
    """Fetch the tree in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", UNPACK, root, record.id, target])


@pytest.mark.slow
def test_a_process_is_killed_in_the_middle_of_an_unpack(tree: Path, tmp_path: Path) -> None:
    """No tree has the name. The second fetch keeps what the first has written, receives only the rest, and completes."""
    record = asyncio.run(pushed(tmp_path / "root", tree))
    place = tmp_path / "place"
    place.mkdir()
    process = start(tmp_path / "root", record, place / "model")
    while held(place) < 16 * MIB:
        assert process.poll() is None, "the unpack ended before it could be cut"
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    assert -signal.SIGKILL == process.wait()
    assert not (place / "model").exists()

    found = asyncio.run(unpacked(tmp_path / "root", record, place / "model"))

    assert standing(tree) == standing(place / "model")
    assert 8 * MIB < found.bytes_reused
    # The bytes that are read to find the central directory are added to that.
    assert found.bytes_received <= found.size - found.bytes_reused + 5 * MIB
    assert ["model"] == [path.name for path in place.iterdir()]


@pytest.mark.slow
def test_processes_unpack_to_one_target(tree: Path, tmp_path: Path) -> None:
    """All succeed, also one that begins after the tree is there. There is one tree, and nothing else."""
    record = asyncio.run(pushed(tmp_path / "root", tree))
    place = tmp_path / "place"
    place.mkdir()
    processes = [start(tmp_path / "root", record, place / "model") for _ in range(3)]
    statuses = [process.wait(60) for process in processes]

    assert [0, 0, 0] == statuses
    assert standing(tree) == standing(place / "model")
    assert ["model"] == [path.name for path in place.iterdir()]
