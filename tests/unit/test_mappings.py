"""Writes of many threads and processes to one file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.system import mappings
from filestore.system.files import write_at
from filestore.system.mappings import MAPPED_MIN, SharedFile
from filestore.system.writeback import is_tmpfs
from tests.support.disks import small_disk
from tests.support.generator import octets

MIB = 1 << 20
CONTENT = octets(5, MAPPED_MIN + 5000)
OFFSET = 3 * MIB + 77


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a tmpfs of 8 MiB."""
    with small_disk(tmp_path / "disk", "size=8m"):
        yield tmp_path / "disk"


@pytest.fixture
def descriptor(disk: Path) -> Iterator[int]:
    """An open file of 7 MiB on the tmpfs, which has no content."""
    opened = os.open(disk / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(opened, 7 * MIB)
    yield opened
    os.close(opened)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Another thread always writes, so that a mapping is used. The list gets a value for each try: whether it was possible."""
    tries: list[bool] = []
    store = SharedFile.store

    def watched(self: SharedFile, content: memoryview, offset: int) -> bool:
        tries.append(store(self, content, offset))
        return tries[-1]

    monkeypatch.setattr(SharedFile, "_write_alone", lambda *_: False)
    monkeypatch.setattr(SharedFile, "store", watched)
    return tries


def memory(content: bytes) -> memoryview:
    """Return memory as a decoder has it."""
    return memoryview(bytearray(content))


def test_content_is_stored_at_any_offset(descriptor: int, stored: list[bool]) -> None:
    """Nothing before and after it changes, in the pages that it shares with its neighbours."""
    os.pwrite(descriptor, b"before", OFFSET - 6)
    os.pwrite(descriptor, b"after", OFFSET + len(CONTENT))
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)

    assert [True] == stored
    assert b"before" + CONTENT + b"after" == os.pread(descriptor, len(CONTENT) + 11, OFFSET - 6)
    assert 7 * MIB == os.fstat(descriptor).st_size


def test_the_rest_of_the_file_stays_a_hole(descriptor: int, stored: list[bool]) -> None:
    """So the next fetch sees what is missing."""
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert [True] == stored
    assert 3 * MIB == os.lseek(descriptor, 0, os.SEEK_DATA)
    end = OFFSET + len(CONTENT)
    assert end <= os.lseek(descriptor, OFFSET, os.SEEK_HOLE) < end + os.sysconf("SC_PAGESIZE")


def test_a_full_disk_is_an_error(descriptor: int, disk: Path, stored: list[bool]) -> None:
    """A store would end the process. The write that follows says why it was refused."""
    (disk / "other").write_bytes(bytes(8 * MIB - MAPPED_MIN))
    with pytest.raises(OSError, match="No space left") as refused:
        SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert [False] == stored
    assert errno.ENOSPC == refused.value.errno


@pytest.mark.parametrize("size", [0, OFFSET, OFFSET + len(CONTENT) - 1])
def test_a_file_that_ends_before_is_written(descriptor: int, stored: list[bool], size: int) -> None:
    """The last page would take stores behind the end, and the file would not get them."""
    os.ftruncate(descriptor, size)
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert [False] == stored
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


def test_a_file_that_cannot_be_read_is_written(descriptor: int, disk: Path, stored: list[bool]) -> None:
    """Such a file cannot be mapped."""
    closed_to_readers = os.open(disk / "file", os.O_WRONLY)
    SharedFile(closed_to_readers).write(memory(CONTENT), OFFSET)
    os.close(closed_to_readers)
    assert [False] == stored
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


LIMITED_PROCESS = """
import os, resource, sys
from filestore.system.mappings import SharedFile

def watched(self, content, offset, store=SharedFile.store):
    tries.append(store(self, content, offset))
    return tries[-1]

SharedFile._write_alone = lambda *_: False
SharedFile.store = watched
tries = []
shared = SharedFile(os.open(sys.argv[1], os.O_RDWR))
content = memoryview(bytearray(sys.stdin.buffer.read()))
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (1, before[1]))
try:
    shared.write(content, int(sys.argv[2]))
finally:
    resource.setrlimit(resource.RLIMIT_AS, before)
print(tries)
"""


def test_without_address_space_a_file_is_written(descriptor: int, disk: Path) -> None:
    """As in a process with a limit, which is not that of the tests: its other threads need memory meanwhile."""
    command = [sys.executable, "-c", LIMITED_PROCESS, str(disk / "file"), str(OFFSET)]
    done = subprocess.run(command, input=CONTENT, capture_output=True, check=False)
    assert (b"[False]\n", b"") == (done.stdout, done.stderr)
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


@pytest.mark.usefixtures("disk")
def test_what_is_written_without_a_mapping(descriptor: int, tmp_path: Path, stored: list[bool]) -> None:
    """Small content, and all content on a disk."""
    SharedFile(descriptor).write(memory(CONTENT)[: MAPPED_MIN - 1], OFFSET)
    assert CONTENT[: MAPPED_MIN - 1] == os.pread(descriptor, MAPPED_MIN - 1, OFFSET)
    elsewhere = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    if is_tmpfs(elsewhere):
        os.close(elsewhere)
        pytest.skip("the folder of the tests is in memory")
    os.ftruncate(elsewhere, 7 * MIB)
    SharedFile(elsewhere).write(memory(CONTENT), OFFSET)
    assert CONTENT == os.pread(elsewhere, len(CONTENT), OFFSET)
    os.close(elsewhere)
    assert [] == stored


def test_an_old_kernel(descriptor: int, stored: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot make pages before a store."""
    monkeypatch.setattr(mappings, "_calls", lambda: None)
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert [] == stored
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


def watched_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the way of each write of at least `MAPPED_MIN` bytes on a tmpfs."""
    ways: list[str] = []
    alone = SharedFile._write_alone

    def write_alone(self: SharedFile, content: memoryview, offset: int) -> bool:
        is_done = alone(self, content, offset)
        ways.append("write" if is_done else "map")
        return is_done

    monkeypatch.setattr(SharedFile, "_write_alone", write_alone)
    return ways


def test_a_thread_that_is_alone_writes(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write costs less."""
    ways = watched_ways(monkeypatch)
    for _ in range(2):
        SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert ["write", "write"] == ways
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


def test_two_threads(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one maps the file while the first one writes, and can write afterwards."""
    ways = watched_ways(monkeypatch)
    first = memory(CONTENT)

    def slow_write(descriptor: int, content: memoryview, offset: int) -> int:
        if content is first:
            thread = threading.Thread(target=SharedFile(descriptor).write, args=(memory(CONTENT), 5 * MIB))
            thread.start()
            thread.join()
        return write_at(descriptor, content, offset)

    monkeypatch.setattr(mappings, "write_at", slow_write)
    SharedFile(descriptor).write(first, 0)
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert ["map", "write", "write"] == ways
    for offset in (0, 5 * MIB, OFFSET):
        assert CONTENT == os.pread(descriptor, len(CONTENT), offset)


OTHER_PROCESS = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1)
print("writes", flush=True)
sys.stdin.readline()
"""


def test_two_processes(descriptor: int, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    ways = watched_ways(monkeypatch)
    command = [sys.executable, "-c", OTHER_PROCESS, str(disk / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert "writes\n" == other.stdout.readline()
        SharedFile(descriptor).write(memory(CONTENT), OFFSET)
        other.communicate("end\n")
    SharedFile(descriptor).write(memory(CONTENT), 0)
    assert ["map", "write"] == ways
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)


def test_nothing_is_held_after_an_error(descriptor: int, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one can write again."""
    ways = watched_ways(monkeypatch)
    (disk / "other").write_bytes(bytes(8 * MIB - MAPPED_MIN))
    with pytest.raises(OSError, match="No space left"):
        SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    (disk / "other").unlink()
    SharedFile(descriptor).write(memory(CONTENT), OFFSET)
    assert ["write"] == ways
    assert CONTENT == os.pread(descriptor, len(CONTENT), OFFSET)
