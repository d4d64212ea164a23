"""A client that fetches a file of two million tiny chunks, whose manifest has 64 MiB, from a server that has such a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.core.records import Record
from tests.support.commands import start_module
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
    """A fetch that has ended."""

    error: str
    memory: int
    """The most memory that its process had, in bytes."""


def fetched(server: RunningServer, record: Record, target: Path) -> Ended:
    """Fetch a file in a process of its own."""
    with start_module("tests.support.fetch_memory", server.url, server.token, record.id, target) as process:
        output, errors = process.communicate()
    assert (0, "") == (process.returncode, errors)
    return Ended(**json.loads(output))


@pytest.mark.slow
def test_a_file_of_two_million_equal_chunks_is_fetched_in_bounded_memory(server: RunningServer, tmp_path: Path) -> None:
    """Its manifest is in memory once, and each chunk costs a few bytes besides it."""
    server.put([encoded(b"x")])
    record = planted(server.root, repeated(b"x", TINY_COUNT), "tiny.bin")
    done = fetched(server, record, tmp_path / "back")
    assert ("", b"x" * TINY_COUNT) == (done.error, (tmp_path / "back").read_bytes())
    assert done.memory < 300 * MIB


@pytest.mark.slow
def test_a_file_of_two_million_different_chunks_is_refused_in_bounded_memory(server: RunningServer, tmp_path: Path) -> None:
    """The server has none of them, so that the fetch ends with the first batch, after it has planned all of them."""
    done = fetched(server, planted(server.root, distinct(TINY_COUNT), "tiny.bin"), tmp_path / "back")
    assert "ChunksMissing" == done.error
    assert done.memory < 300 * MIB
    assert not (tmp_path / "back").exists()
