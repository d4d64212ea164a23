"""What a request costs in opened files: the server writes down each one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key
from filestore.format.codec import Codec, Frame
from filestore.http import wire
from filestore.http.server.body.frames import OPEN_TOGETHER
from filestore.http.wire import API
from tests.support.frames import contents, encoded, frames
from tests.support.generator import octets
from tests.support.opens import OpenLog
from tests.support.server import Reply, RunningServer, running_server
from tests.support.uploads import PartsUpload


@pytest.fixture
def log(tmp_path: Path) -> OpenLog:
    """The files that the server opens."""
    return OpenLog(tmp_path / "opens")


@pytest.fixture
def server(tmp_path: Path, log: OpenLog) -> Iterator[RunningServer]:
    """A server with one worker."""
    with running_server(tmp_path / "root", opens=str(tmp_path / "opens")) as server:
        log.read()
        yield server


def identity_reads(server: RunningServer, log: OpenLog) -> list[str]:
    """The opens since the last call that only the repository's identity needs: its format file, and its folder to sync it."""
    return [path for path in log.read() if path in {str(server.root), str(server.root / "format")}]


def test_a_part_url_needs_only_the_namespace_of_its_token(server: RunningServer, log: OpenLog) -> None:
    """The token gives the namespace, so the format file is not read and the folder not synced."""
    upload = PartsUpload(server, "model.bin")
    assert [200, 200] == [upload.url(number).status for number in (1, 2)]
    assert 200 == server.ask("GET", "/v3/validate").status
    assert 200 == server.ask("GET", f"{API}/status").status
    assert [] == identity_reads(server, log)


@pytest.mark.slow
def test_a_server_reads_the_identity_of_a_namespace_once(server: RunningServer, log: OpenLog) -> None:
    """A later part, finish or form of the same namespace does not read the format file again."""
    first = PartsUpload(server, "first.bin")
    assert 201 == first.finish([first.put(1, octets(1, 100_000))]).status
    identity_reads(server, log)
    second = PartsUpload(server, "second.bin")
    parts = [second.put(1, octets(2, 100_000)), second.put(2, octets(3, 100_000))]
    assert 201 == second.finish(parts).status
    assert 201 == server.upload("third.bin", octets(4, 100_000)).status
    assert [] == identity_reads(server, log)


def path_of(server: RunningServer, frame: Frame) -> Path:
    """Where the server keeps a frame."""
    return server.root / chunk_key(DEFAULT_NAMESPACE, frame.digest)


def ask(server: RunningServer, asked: Sequence[Frame]) -> Reply:
    """Ask for a batch of frames."""
    return server.ask("POST", f"{API}/chunks/get", b"".join(frame.digest for frame in asked))


def answered(reply: Reply) -> list[bytes]:
    """The frames of a batch, in order; empty where one is absent."""
    start = wire.batch_header_size(wire.decode_batch_count(reply.body))
    entries = wire.decode_batch_entries(reply.body[wire.batch_header_size(0) : start], absent_allowed=True)
    found = []
    for entry in entries:
        found.append(reply.body[start : start + entry.stored_size])
        start += entry.stored_size
    assert start == len(reply.body)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, OPEN_TOGETHER, OPEN_TOGETHER + 1, 5 * OPEN_TOGETHER])
def test_a_batch_opens_each_frame_once(server: RunningServer, log: OpenLog, count: int) -> None:
    """The sizes in the head of the answer are found without opening anything, so that a frame is opened only to be sent."""
    sent = frames(count, size=500)
    server.put(sent)
    log.read()
    assert [frame.data for frame in sent] == answered(ask(server, sent))
    kept = {str(path_of(server, frame)) for frame in sent}
    assert Counter(kept) == Counter(path for path in log.read() if path in kept)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["removed", "shorter", "longer", "encoded otherwise"])
def test_a_frame_of_another_size_is_sent_as_it_is(tmp_path: Path, change: str) -> None:
    """The head of an answer has the real size, not that of the index; the receiver verifies the frame."""
    changed = [OPEN_TOGETHER + 1, 3 * OPEN_TOGETHER]
    chunks = contents(4 * OPEN_TOGETHER, size=500)
    for place in changed:
        chunks[place] = bytes([place]) * 500
    # Its log tells of the change.
    with running_server(tmp_path / "root", check=False) as server:
        sent = [encoded(chunk, codec=Codec.RAW) for chunk in chunks]
        server.put(sent)
        expected = [bytes(frame.data) for frame in sent]
        for place in changed:
            path = path_of(server, sent[place])
            match change:
                case "removed":
                    path.unlink()
                    expected[place] = b""
                case "shorter":
                    os.truncate(path, 20)
                    expected[place] = path.read_bytes()
                case "longer":
                    path.write_bytes(expected[place] + b"more")
                    expected[place] += b"more"
                case _:
                    path.write_bytes(encoded(chunks[place], codec=Codec.ZSTD).data)
                    expected[place] = path.read_bytes()
        assert expected == answered(ask(server, sent))


def test_a_frame_without_a_row_is_sent_as_it_is(server: RunningServer) -> None:
    """A frame that the index has forgotten, because it is damaged, is still looked for in the store."""
    sent = frames(2 * OPEN_TOGETHER, size=500)
    server.put(sent)
    damaged = sent[-1]
    path = path_of(server, damaged)
    path.write_bytes(damaged.data[:-1])
    assert damaged.digest == server.ask("POST", f"{API}/chunks/verify", damaged.digest).body
    assert [*(frame.data for frame in sent[:-1]), damaged.data[:-1]] == answered(ask(server, sent))
