from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from filestore.errors import Stalled
from filestore.http.server.body import writer as answer_module
from filestore.http.server.body.writer import BodyWriter, FilePart
from filestore.system.threads import in_disk_thread
from tests.support.cancels import cancelled_at_every_await
from tests.support.generator import octets


class Line(NamedTuple):
    """The two ends of a connection whose buffers are smaller than the data that is sent here."""

    server: socket.socket
    client: socket.socket

    def answer(self, *, stall_seconds: float = 60) -> BodyWriter:
        """The bytes that the server sends."""
        return BodyWriter(self.server, stall_seconds=stall_seconds)

    async def received(self, size: int) -> bytes:
        """Take that many bytes at the client's end."""
        return await in_disk_thread(self._receive, size)

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size and (piece := self.client.recv(size - len(received))):
            received += piece
        return received


@pytest.fixture
def line() -> Iterator[Line]:
    """A connection."""
    server, client = socket.socketpair()
    with server, client:
        server.settimeout(0)
        client.settimeout(60)
        yield Line(server, client)


@pytest.fixture(params=["files", "memory"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[FilePart]]:
    """Parts of files with and without a descriptor, one of them of no bytes, and one whose file is longer than its part."""
    opened: list[BinaryIO] = []
    for number, size in enumerate([300_000, 0, 1, 2_000_000]):
        content = octets(number, size) + (b"more" if number == 3 else b"")
        if request.param == "memory":
            opened.append(BytesIO(content))
        else:
            path = tmp_path / str(number)
            path.write_bytes(content)
            opened.append(path.open("rb", buffering=0))
    yield [FilePart(file, size) for file, size in zip(opened, [300_000, 0, 1, 2_000_000], strict=True)]
    for file in opened:
        file.close()


def content_of(parts: list[FilePart]) -> bytes:
    """Return the bytes that must arrive."""
    content = b""
    for part in parts:
        part.file.seek(0)
        content += part.file.read(part.size)
    return content


async def test_pieces_arrive_in_order(line: Line) -> None:
    """Also those that the system takes a part of at a time."""
    pieces = [octets(seed, 1 << 18) for seed in range(8)]

    async def send() -> None:
        for piece in pieces:
            await line.answer().send(piece)

    _, received = await asyncio.gather(send(), line.received(8 << 18))
    assert b"".join(pieces) == received


async def test_files_arrive_in_order(line: Line, parts: list[FilePart], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many turns it takes."""
    expected = content_of(parts)
    for slice_size in (1, 100_000, 8 << 20):
        monkeypatch.setattr(answer_module, "SLICE_SIZE", slice_size)
        sent, received = await asyncio.gather(line.answer().send_files(parts), line.received(len(expected)))
        assert (len(expected), expected) == (sent, received)


async def test_zeros_take_the_place_of_what_a_file_does_not_have(line: Line, parts: list[FilePart]) -> None:
    """The receiver refuses that frame. The bytes of the files that follow are at their places."""
    short = [parts[0], FilePart(parts[2].file, 400_000), parts[0]]
    expected = content_of(parts[:1]) + content_of(parts[2:3]) + bytes(400_000 - parts[2].size) + content_of(parts[:1])
    sent, received = await asyncio.gather(line.answer().send_files(short), line.received(len(expected)))
    assert (len(expected), expected) == (sent, received)


async def test_slow_client_is_offered_no_more(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: the caller learns how much was taken, and can release the memory of the rest."""
    monkeypatch.setattr(answer_module, "PATIENCE_SECONDS", 0.01)
    content = octets(1, 1 << 22)
    buffer = bytearray(content)
    answer = line.answer()
    sent = await answer.offer(memoryview(buffer))
    assert 0 < sent < len(content)
    assert 0 == await answer.offer(memoryview(buffer))
    buffer.clear()  # raises BufferError while anything views it
    received = await line.received(sent)
    await answer.wait()
    _, rest = await asyncio.gather(answer.send(content[sent:]), line.received(len(content) - sent))
    assert content == received + rest


@pytest.mark.parametrize("what", ["piece", "files"])
async def test_client_that_takes_nothing(line: Line, parts: list[FilePart], what: str) -> None:
    """It is given up after the time that is set."""
    answer = line.answer(stall_seconds=0.05)
    with pytest.raises(Stalled):
        await (answer.send(bytes(1 << 22)) if what == "piece" else answer.send_files(parts))


@pytest.mark.parametrize("what", ["piece", "files"])
async def test_client_that_goes(line: Line, parts: list[FilePart], what: str) -> None:
    """A client may close its connection before or during the answer."""
    answer = line.answer()
    sending = asyncio.create_task(answer.send(bytes(1 << 22)) if what == "piece" else _counted(answer, parts))
    await line.received(1)
    line.client.close()
    with pytest.raises(ConnectionError):
        await sending
    with pytest.raises(ConnectionError):
        await (answer.send(b"x") if what == "piece" else _counted(answer, parts))


async def _counted(answer: BodyWriter, parts: list[FilePart]) -> None:
    await answer.send_files(parts)


async def test_cancelled_sending_leaves_nothing_behind(line: Line, parts: list[FilePart]) -> None:
    """After a cancel at any await, the event loop does not watch the connection any more."""
    expected = content_of(parts)

    async def send() -> None:
        await asyncio.gather(line.answer().send_files(parts), line.received(len(expected)))

    async for _ in cancelled_at_every_await(send):
        assert not asyncio.get_running_loop().remove_writer(line.server)
        line.client.settimeout(0)
        with suppress(BlockingIOError):
            while line.client.recv(1 << 20):
                pass
        line.client.settimeout(60)
