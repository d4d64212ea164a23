"""Messages between a transfer and its worker processes, in one process."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from typing import Any

from filestore.transfer.workers.link import _HEAD, Link


async def test_files_that_did_not_arrive_lose_the_link() -> None:
    """The kernel leaves out those for which the process has no free descriptor. Nobody waits for the message then."""
    lost = asyncio.Event()
    ours, theirs = socket.socketpair()
    received: list[Any] = []
    link = Link(ours, received=lambda message, _: received.append(message), lost=lost.set)
    content = pickle.dumps("job")
    with theirs:
        theirs.sendall(_HEAD.pack(len(content), 1) + content)
        async with asyncio.timeout(10):
            await lost.wait()
    assert not link.is_open
    assert not received


async def test_a_message_that_cannot_be_read_loses_the_link() -> None:
    """And the open files that came with it are closed."""
    lost = asyncio.Event()
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    link = Link(ours, received=lambda *_: None, lost=lost.set)
    with theirs:
        socket.send_fds(theirs, [_HEAD.pack(3, 1) + b"abc"], [writing])
        os.close(writing)
        async with asyncio.timeout(10):
            await lost.wait()
    assert not link.is_open
    assert os.read(reading, 1) == b""
    os.close(reading)
