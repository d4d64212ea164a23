"""The event loop of processes that filestore starts."""

from __future__ import annotations

import asyncio
import socket

from filestore.system.event_loop import run_in_loop
from filestore.system.metrics import StageTimes, count_into, own_usage


async def _talk() -> bytes:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.sendall(b"hello\n")
    found = await reader.readline()
    writer.close()
    theirs.close()
    await asyncio.sleep(0.01)
    return found


def test_sockets_timers_and_threads_wake_it() -> None:
    """It does what the loop of asyncio does, also while its waits are measured."""
    count_into(StageTimes())
    try:
        assert run_in_loop(_talk()) == b"hello\n"
        assert run_in_loop(asyncio.to_thread(lambda: 5)) == 5
        used = own_usage()
    finally:
        count_into(None)
    assert used.lock_seconds < used.cpu_seconds
