"""Servers say when to ask again, by `Retry-After` in seconds or as a date. Both the client and downloads obey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from filestore.core.references import FileURL
from filestore.download.download import DownloadLimits, download
from filestore.errors import ServerError
from filestore.http.client.repository import RemoteRepository
from filestore.system.http_answers import Said, said_by
from tests.support.origins import Asked, running_origin

LOOPBACK = DownloadLimits(private_allowed=True)
Use = Callable[[str, Path], Awaitable[object]]


async def by_client(url: str, _: Path) -> object:
    """Ask for a small document, as the client of a server does."""
    repository = RemoteRepository(url, token="secret")
    try:
        return await repository.status()
    finally:
        await repository.close()


async def by_download(url: str, folder: Path) -> object:
    """Ask as a download does."""
    return await download(FileURL(f"{url}/file"), folder, limits=LOOPBACK)


USES = pytest.mark.parametrize("use", [by_client, by_download], ids=["client", "download"])


def seconds(wait: int) -> list[str]:
    """Return the header with a number of seconds."""
    return [f"Retry-After: {wait}"]


def date(wait: int) -> list[str]:
    """Return the headers with a date, by a clock that is wrong by a day."""
    now = time.time() - 86400
    return [f"Date: {formatdate(now, usegmt=True)}", f"Retry-After: {formatdate(now + wait, usegmt=True)}"]


@pytest.mark.slow
@USES
@pytest.mark.parametrize("said", [seconds, date])
async def test_who_says_when_to_ask_again_is_not_asked_before(tmp_path: Path, use: Use, said: Callable[[int], list[str]]) -> None:
    """The server fails for good if the second request comes too early. It comes late enough."""
    loop = asyncio.get_running_loop()
    first: list[float] = []

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        first.append(loop.time())
        if len(first) == 1:
            lines = ["HTTP/1.1 503 Later", "Content-Length: 0", "Connection: close", *said(2)]
        elif loop.time() < first[0] + 1:
            lines = ["HTTP/1.1 500 Too early", "Content-Length: 0", "Connection: close"]
        else:
            lines = ["HTTP/1.1 200 OK", "Content-Length: 2", "Connection: close"]
        writer.write("\r\n".join([*lines, "", "{}" if "200" in lines[0] else ""]).encode())

    async with running_origin(answer) as origin:
        await use(origin.url, tmp_path)

    assert 2 == len(origin.asked)


@USES
async def test_who_asks_to_wait_for_too_long_is_asked_once(tmp_path: Path, use: Use) -> None:
    """The client does not wait for an hour. The error says how long the server asks to wait."""

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 3600\r\n\r\n")

    async with running_origin(answer) as origin:
        with pytest.raises(ServerError, match="asks to wait 3600 seconds before the next try"):
            await use(origin.url, tmp_path)

    assert 1 == len(origin.asked)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "\u0663", "Mon, 99 Nov 2026 00:00:00 GMT"])
def test_what_is_not_a_time_asks_for_no_wait(text: str) -> None:
    """A malformed Retry-After is ignored."""
    assert Said(retry_after=text).retry_after_seconds is None


def test_a_date_that_has_passed_asks_for_no_wait() -> None:
    """A date in the past means now. If the answer has no Date, our own clock counts."""
    assert 0.0 == Said(retry_after="Mon, 02 Nov 2015 00:00:00 GMT").retry_after_seconds


def test_date_that_no_clock_shows_is_none() -> None:
    """A date in a year that Python does not support is ignored."""
    said = said_by({"Retry-After": "Fri, 31 Dec 99999999999 23:59:59 GMT"})
    assert said.retry_after_seconds is None
