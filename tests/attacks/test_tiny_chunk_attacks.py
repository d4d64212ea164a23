"""A client that fetches a file of two million tiny chunks, whose manifest has 64 MiB, from a server that has such a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.core.records import Record
from tests.support.frames import encoded
from tests.support.server import RunningServer, running_server
from tests.support.tiny_chunks import TINY_COUNT, distinct, planted, repeated

MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server, whose log may tell of absent chunks."""
    with running_server(tmp_path / "root", check=False) as server:
        yield server
        assert 0 == server.stop()[0]


class Ended(NamedTuple):
    """A command that has ended."""

    status: int
    errors: str
    memory: int
    """The most memory that it had, in bytes."""


def fetched(server: RunningServer, record: Record, target: Path, *options: str) -> Ended:
    """Fetch a file by the command, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "filestore", "fetch", record.id, "-o", target, *options],
        env={**os.environ, "HOME": str(target.parent), "FILESTORE_URL": server.url, "FILESTORE_TOKEN": server.token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, errors, usage.ru_maxrss << 10)


@pytest.mark.slow
def test_a_file_of_two_million_equal_chunks_is_fetched_in_bounded_memory(server: RunningServer, tmp_path: Path) -> None:
    """Its manifest is in memory once, and each chunk costs a few bytes besides it. The second fetch finds what is there."""
    server.put([encoded(b"x")])
    record = planted(server.root, repeated(b"x", TINY_COUNT), "tiny.bin")
    done = fetched(server, record, tmp_path / "back")
    assert (0, b"x" * TINY_COUNT) == (done.status, (tmp_path / "back").read_bytes())
    assert done.memory < 300 * MIB


@pytest.mark.slow
def test_a_file_of_two_million_different_chunks_is_refused_in_bounded_memory(server: RunningServer, tmp_path: Path) -> None:
    """The server has none of them, so that the fetch ends with the first batch, after it has planned all of them."""
    done = fetched(server, planted(server.root, distinct(TINY_COUNT), "tiny.bin"), tmp_path / "back")
    assert 0 != done.status
    assert "chunk" in done.errors
    assert done.memory < 300 * MIB
    assert not (tmp_path / "back").exists()
