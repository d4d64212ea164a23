"""Servers say when to ask again, by `Retry-After` in seconds or as a date. Both the client and downloads obey."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from filestore.core.references import FileURL
from filestore.download.download import DownloadLimits, download
from filestore.errors import FilestoreError, ServerError, TooManyGuesses
from filestore.http import wire
from filestore.http.client.repository import RemoteRepository
from filestore.system.http_answers import Said, said_by
from filestore.system.retries import RETRY_SECONDS, Retries
from tests.support.frames import encoded
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


class Waits:
    """Time that passes only while a client waits, as soon as `together` requests wait."""

    def __init__(self, together: int = 1) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self._together = together
        self._all_wait = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        until = self.now + seconds
        self.waits.append(seconds)
        if len(self.waits) == self._together:
            self._all_wait.set()
        await self._all_wait.wait()
        self.now = max(self.now, until)

    def go_on(self) -> None:
        """Let the time pass, although not all wait."""
        self._all_wait.set()


def problem(status: int, slug: str, *headers: str) -> bytes:
    """Return an answer with an error of a filestore server."""
    body = json.dumps({"type": f"urn:filestore:error:{slug}", "status": status, "detail": "not now"}).encode()
    lines = [f"HTTP/1.1 {status} No", "Content-Type: application/problem+json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@asynccontextmanager
async def waiting(url: str, waits: Waits) -> AsyncIterator[RemoteRepository]:
    """A client whose waits take no time. Eight of its requests may be sent at once."""
    repository = RemoteRepository(url, token="secret", connections=8)
    repository._requests.retries = Retries(clock=waits, sleep=waits.sleep)
    try:
        yield repository
    finally:
        await repository.close()


@pytest.mark.parametrize("said", [seconds, date])
async def test_all_requests_wait_when_the_server_limits_them(said: Callable[[int], list[str]]) -> None:
    """Eight at once are refused once, and come back after the time, one after the other. A ninth waits before it is sent."""
    waits, came = Waits(together=9), []
    all_came = asyncio.Event()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        came.append(waits.now)
        if len(came) > 8:
            writer.write(OK)
            return
        all_came.set() if len(came) == 8 else await all_came.wait()
        writer.write(problem(429, "of-a-newer-server", *said(30)))

    async with running_origin(answer) as origin, waiting(origin.url, waits) as repository:
        first = [asyncio.create_task(repository.status()) for _ in range(8)]
        while repository.asked_pause is None:
            await asyncio.sleep(0)
        await asyncio.gather(*first, repository.status())

    assert 17 == len(origin.asked)
    assert [0.0] * 8 == came[:8]
    assert min(came[8:]) >= 29  # a date has whole seconds
    assert 9 == len(set(waits.waits))


async def test_a_reader_goes_on_while_a_push_has_no_room() -> None:
    """Only the request that was refused waits. It is tried again once, and the error then is that of the server."""
    waits = Waits(together=2)  # so it waits until the test lets it go on

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if asked.path.endswith("/status") else problem(507, "quota-exceeded", "Retry-After: 12"))

    async with running_origin(answer) as origin, waiting(origin.url, waits) as repository:
        pushing = asyncio.create_task(repository.usage())
        while repository.asked_pause is None:
            await asyncio.sleep(0)
        assert "the server has no room for it now" == repository.asked_pause[1]
        assert 0 == waits.now
        await repository.status()
        assert 0 == waits.now
        waits.go_on()
        with pytest.raises(FilestoreError) as caught:
            await pushing

    assert 12 == caught.value.retry_after_seconds
    assert 3 == len(origin.asked)
    assert 1 == len(waits.waits)
    assert waits.waits[0] >= 12


@pytest.mark.parametrize("headers", [(), ("Retry-After: 60",), ("Retry-After: soon",)])
async def test_a_server_that_stays_full_is_asked_once(headers: tuple[str, ...]) -> None:
    """Without a time at which there may be room soon, nothing is tried again: users learn of their quota at once."""
    waits = Waits()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(problem(507, "quota-exceeded", *headers))

    async with running_origin(answer) as origin, waiting(origin.url, waits) as repository:
        with pytest.raises(FilestoreError):
            await repository.status()

    assert (1, []) == (len(origin.asked), waits.waits)


@pytest.mark.parametrize("text", ["nan", "inf", "-5", "0", "1e9", "", "Mon, 02 Nov 2015 00:00:00 GMT"])
async def test_a_limit_without_a_time_gets_our_own_pauses(text: str) -> None:
    """They grow, are never 0, and do not go on for ever."""
    waits = Waits()

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(problem(429, "of-a-newer-server", f"Retry-After: {text}"))

    async with running_origin(answer) as origin, waiting(origin.url, waits) as repository:
        with pytest.raises(ServerError):
            await repository.status()

    assert min(waits.waits) > 0
    assert RETRY_SECONDS <= waits.now < RETRY_SECONDS + 1
    assert len(waits.waits) + 1 == len(origin.asked) < 200


LIMITED = problem(429, "of-a-newer-server", "Retry-After: 1")
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("gets", "asked"),
    [
        ([LIMITED, LIMITED, DONE], ["put", "put", "put"]),
        ([b"", LIMITED, "missing", LIMITED, DONE], ["put", "missing", "missing", "put", "put"]),
    ],
    ids=["limited", "cut and limited"],
)
async def test_a_push_whose_requests_are_limited_moves_on(gets: list[bytes | str], asked: list[str]) -> None:
    """A batch that was one request too many is sent again at once: a question before it would be the next one too many."""
    waits = Waits()
    frame = encoded(b"content")
    body = bytes(frame.digest)
    missing = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
    answered = iter([OK, *(missing if each == "missing" else each for each in gets)])

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        raw = next(answered)
        assert isinstance(raw, bytes)
        writer.write(raw)

    async with running_origin(answer) as origin, waiting(origin.url, waits) as repository:
        await repository.status()  # so that the server is known
        await repository.put([frame])

    words = {f"{wire.API}/chunks": "put", f"{wire.API}/chunks/missing": "missing"}
    assert asked == [words[each.path] for each in origin.asked[1:]]


async def test_an_error_names_the_url_of_the_server() -> None:
    """A server does not know its URL, and calls itself the server."""
    facts = {"type": "urn:filestore:error:too-many-guesses", "where": "the server", "limit": 100}
    body = json.dumps(facts).encode()
    lines = ["HTTP/1.1 429 No", "Content-Type: application/problem+json", f"Content-Length: {len(body)}", "Connection: close"]
    raw = "\r\n".join([*lines, "", ""]).encode() + body

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    async with running_origin(answer) as origin, waiting(origin.url, Waits()) as repository:
        with pytest.raises(TooManyGuesses, match=f"^{origin.url} refused the token"):
            await repository.status()

    assert 1 == len(origin.asked)


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1.5", "nan", "inf", "1e3", "+1", "0x1", "\u0663", "Mon, 99 Nov 2026 00:00:00 GMT"]
)
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
