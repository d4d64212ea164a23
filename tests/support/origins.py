"""Run servers that no real server behaves like: each request gets the bytes that a test chooses."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from filestore.download.download import DownloadOptions
from filestore.system.retries import RETRY_SECONDS
from tests.support.listening import listening

ATTEMPTS = 6
"""The attempts of a download with `options_without_pause` that makes no progress."""


def options_without_pause(*, attempt_seconds: float = RETRY_SECONDS / (ATTEMPTS - 1), **others: Any) -> DownloadOptions:
    """Make attempts follow each other at once. By the clock of the download, each one takes `attempt_seconds`."""
    return DownloadOptions(first_pause_seconds=0, clock=itertools.count(step=attempt_seconds).__next__, **others)


class Asked(NamedTuple):
    """One request."""

    number: int
    """The number of the request, from 1 on."""
    path: str
    headers: dict[str, str]
    """The headers by names in lower case."""
    until_gone: Callable[[], Awaitable[object]]
    """Wait until the client hangs up."""


class Origin(NamedTuple):
    """A server that is running."""

    url: str
    asked: list[Asked]
    """All requests so far."""


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def running_origin(
    answer: Answer, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Origin]:
    """Answer each request with `answer`, on a connection of its own, until the end of the block."""
    asked: list[Asked] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            asked.append(Asked(len(asked) + 1, head[0].split()[1], headers, reader.read))
            await answer(asked[-1], writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the peer is gone

    async with listening(serve, host=host, port=port, tls=tls) as port_taken:
        yield Origin(f"{'https' if tls else 'http'}://{host}:{port_taken}", asked)


def answers(*raw: bytes) -> Answer:
    """Give the answers one after the other, then the last one again and again."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(raw[min(asked.number, len(raw)) - 1])
        await writer.drain()

    return answer


def hanging(begun: bytes, *resumed: bytes) -> Answer:
    """Send `begun` and then nothing, until a request asks for a range.

    From then on, give the answers of `resumed` in order.
    """
    ranges = 0

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal ranges
        ranges += ranges > 0 or "range" in asked.headers
        writer.write(resumed[min(ranges, len(resumed)) - 1] if ranges else begun)
        await writer.drain()
        if not ranges:
            await asked.until_gone()

    return answer


def head(status: str, *headers: str) -> bytes:
    """Return the head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def whole(content: bytes, *headers: str) -> bytes:
    """Return an answer with content."""
    return head("200 OK", f"Content-Length: {len(content)}", *headers) + content
