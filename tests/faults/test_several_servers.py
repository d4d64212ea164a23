"""Several servers of one repository: a client goes on at the next one when one fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from filestore.backends import connect
from filestore.core.progress import Progress
from filestore.errors import NoServerLeft, OtherRepository
from filestore.format.codec import Codec, Frame
from filestore.http.client.repository import FIRST_BATCH, RemoteRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.commands import Home
from tests.support.daemons import lasting_port
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.links import Link, running_link
from tests.support.listening import listening
from tests.support.server import TOKEN, RunningServer, running_server

FRAME_SIZE = 1_000_000
BUSY = b"HTTP/1.1 503 X\r\nContent-Type: text/plain\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"


def frames(seed: int, count: int = 16) -> list[Frame]:
    """Frames that are as large as their content."""
    return [encoded(octets(1000 * seed + number, FRAME_SIZE), codec=Codec.RAW) for number in range(count)]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[RunningServer]]:
    """Two servers of one folder, which a test may kill."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_server(tmp_path / "root", check=False)) for _ in range(2)]


@asynccontextmanager
async def linked(servers: list[RunningServer]) -> AsyncIterator[tuple[list[Link], list[str]]]:
    """A link to each server, and the URLs of the links."""
    async with running_link(servers[0].port) as first, running_link(servers[1].port) as second:
        yield [first, second], [f"http://127.0.0.1:{link.port}" for link in (first, second)]


def kill_after(server: RunningServer, size: int) -> Any:
    """Return a change of a link that lets pieces pass, and kills the server when so many bytes have passed."""
    passed = 0

    async def change(piece: bytes) -> bytes:
        nonlocal passed
        passed += len(piece)
        if passed >= size and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        return piece

    return change


async def test_a_server_that_never_answered_is_passed_over(servers: list[RunningServer]) -> None:
    """A refusal does not end the request, and nobody waits."""
    async with connect([f"http://127.0.0.1:{lasting_port()}", servers[1].url], token=TOKEN, retry_seconds=0) as repository:
        assert [] == await repository.records()


async def test_an_address_that_stalls_is_left_for_another_one(
    servers: list[RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name has two addresses, and the host of the first one is cut off after it has answered. Connections to it still begin.

    If then the other host refuses connections, the first one is asked again.
    """
    server = servers[0]
    away = asyncio.Event()
    link = Link(server.port)

    async def stop(piece: bytes) -> bytes:
        await asyncio.Event().wait() if away.is_set() else None
        return piece

    link.down = stop
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    addresses = ["127.0.0.2", "127.0.0.1"]

    async def two_addresses(host: str, port: int, **options: Any) -> Any:
        assert host == "models.test"
        return [found for address in addresses for found in await resolve(address, port, **options)]

    monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
    carried: list[asyncio.Task[None]] = []

    def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried.append(loop.create_task(link.carry(reader, writer)))

    first = await asyncio.start_server(carry, "127.0.0.2", server.port)
    try:
        async with connect(f"http://models.test:{server.port}", token=TOKEN, stall_seconds=5, retry_seconds=60) as repository:
            await repository.records()
            assert [1] == link.opened
            away.set()
            await repository.put(frames(1))
            used = len(link.opened)
            await repository.records()
            assert used == len(link.opened)
            away.clear()
            addresses[1] = "127.0.0.3"
            cast("RemoteRepository", repository)._requests.transport._channels.close_idle()
            await repository.records()
            assert used < len(link.opened)
    finally:
        first.close()
        for task in carried:
            task.cancel()
        await asyncio.wait(carried)


async def test_the_server_that_answered_is_named(servers: list[RunningServer], tmp_path: Path) -> None:
    """In results and messages, of the library and of commands. The first one is dead."""
    urls = [f"http://127.0.0.1:{lasting_port()}", servers[1].url]
    async with connect(urls, token=TOKEN) as repository:
        assert urls[0] == repository.location
        await repository.records()
        assert urls[1] == repository.location
    (tmp_path / "home").mkdir()
    (tmp_path / "model.bin").write_bytes(b"content")
    environ = {"FILESTORE_URL": ",".join(urls), "FILESTORE_TOKEN": TOKEN}
    home = Home(tmp_path / "home")
    for command in (("push", tmp_path / "model.bin"), ("ls",), ("fetch", "model.bin", "--output", tmp_path / "fetched")):
        done = await asyncio.to_thread(home.result, *command, environ=environ)
        assert urls[1] == done["repository"]
    done = await asyncio.to_thread(home.run, "push", tmp_path / "model.bin", environ=environ)
    assert urls[1] in done.stdout
    assert urls[0] not in done.stdout


async def test_all_servers_are_named_if_none_can_be_used() -> None:
    """A user sees why each of them failed."""
    urls = [f"http://127.0.0.1:{lasting_port()}", f"http://127.0.0.1:{lasting_port()}"]
    async with connect(",".join(urls), token=TOKEN) as repository:
        with pytest.raises(NoServerLeft) as raised:
            await repository.records()
    assert all(f"{url} cannot be reached: Connection refused" in str(raised.value) for url in urls)


async def test_a_server_of_another_repository_is_one_clear_error(servers: list[RunningServer], tmp_path: Path) -> None:
    """It is found before anything is sent to it."""
    with running_server(tmp_path / "other") as other:
        async with connect([servers[0].url, other.url], token=TOKEN) as repository:
            await repository.put(frames(1, 1))
            servers[0].process.kill()
            servers[0].process.wait()
            with pytest.raises(OtherRepository) as raised:
                await repository.put(frames(2, 1))
        assert (other.url, servers[0].url) == raised.value.args
        assert len(frames(2, 1)) == len(other.missing([frames(2, 1)[0].digest]))


async def test_a_server_that_asks_to_wait_is_passed_over(servers: list[RunningServer]) -> None:
    """However long it asks to wait, which alone would be an error."""
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(BUSY)
        await writer.drain()

    async with listening(answer) as port, connect([f"http://127.0.0.1:{port}", servers[0].url], token=TOKEN) as repository:
        assert [] == await repository.records()
        assert [] == await repository.records()
    assert 1 == asked


async def test_a_put_whose_server_is_killed_goes_on_and_sends_one_batch_twice(servers: list[RunningServer]) -> None:
    """What the first server has acknowledged is not sent again."""
    sent = frames(3)
    moved: list[int] = []
    async with linked(servers) as (links, urls), connect(urls, token=TOKEN, connections=1) as repository:
        links[0].up = kill_after(servers[0], 2 * FIRST_BATCH)
        await repository.put(sent, moved=moved.append)
        assert [] == await repository.missing([frame.digest for frame in sent])
    assert links[1].up_size > FRAME_SIZE
    assert links[0].up_size + links[1].up_size <= 2 * 16 * FRAME_SIZE - FIRST_BATCH + FRAME_SIZE
    assert 16 * FRAME_SIZE < sum(moved) < 16.1 * FRAME_SIZE


async def test_a_push_whose_server_is_killed_goes_on_at_the_next_one(servers: list[RunningServer], tmp_path: Path) -> None:
    """From the frames to the commit. The file is whole."""
    source = tmp_path / "source"
    source.write_bytes(octets(400, 24 * FRAME_SIZE))
    async with linked(servers) as (links, urls), connect(urls, token=TOKEN) as repository:
        links[0].up = kill_after(servers[0], 8 * FRAME_SIZE)
        pushed = await push(repository, source, codec="raw")
        fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
        assert min(link.up_size for link in links) > 1000
    assert source.read_bytes() == fetched.path.read_bytes()


async def test_a_commit_whose_server_is_killed_is_made_by_the_next_one(servers: list[RunningServer], tmp_path: Path) -> None:
    """It was killed after the frames had arrived, so that only the commit is left."""
    source = tmp_path / "source"
    source.write_bytes(octets(401, 3 * FRAME_SIZE))

    def report(progress: Progress) -> None:
        if progress.done == progress.total and servers[0].process.poll() is None:
            servers[0].process.kill()
            servers[0].process.wait()

    async with linked(servers) as (links, urls), connect(urls, token=TOKEN) as repository:
        pushed = await push(repository, source, codec="raw", report=report)
        assert pushed.record == await repository.record(pushed.record)
    assert links[0].up_size > 3 * FRAME_SIZE
    assert links[1].up_size < FRAME_SIZE


async def test_a_fetch_whose_server_is_killed_goes_on_at_the_next_one(servers: list[RunningServer], tmp_path: Path) -> None:
    """Frames that have arrived are not received again."""
    source = tmp_path / "source"
    source.write_bytes(octets(402, 24 * FRAME_SIZE))
    async with linked(servers) as (links, urls), connect(urls, token=TOKEN, connections=2) as repository:
        pushed = await push(repository, source, codec="raw")
        links[0].down = kill_after(servers[0], 8 * FRAME_SIZE)
        fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
        assert links[0].down_size + links[1].down_size < 28 * FRAME_SIZE
        assert links[1].down_size > FRAME_SIZE
    assert source.read_bytes() == fetched.path.read_bytes()


async def test_a_limit_of_connections_holds_for_all_servers_together(servers: list[RunningServer]) -> None:
    """Those to a server that failed are closed before others are made."""
    async with linked(servers) as (links, urls), connect(urls, token=TOKEN, connections=2) as repository:
        await asyncio.gather(*(repository.put([frame]) for frame in frames(5, 6)))
        assert 2 == links[0].open_now
        links[0].up = kill_after(servers[0], 0)
        await asyncio.gather(*(repository.put([frame]) for frame in frames(6, 6)))
        assert 0 == links[0].open_now
        assert 2 == links[1].open_now
        assert 2 == max(links[1].opened)


async def test_worker_processes_begin_with_a_server_that_works(servers: list[RunningServer]) -> None:
    """They need not find out again which one does not."""
    async with connect([f"http://127.0.0.1:{lasting_port()}", servers[1].url], token=TOKEN) as repository:
        await repository.records()
        opening = repository.opening()
        assert opening is not None
        async with opening.open(share=2) as other:
            assert servers[1].url == other.location
            assert repository.fingerprint == other.fingerprint


def test_the_fingerprint_does_not_depend_on_the_order() -> None:
    """It identifies a repository and a token, for a push cache and a cache."""
    urls = ["http://one.test", "http://two.test"]
    one, *others = (
        RemoteRepository(given, token="a").fingerprint
        for given in (urls, urls[::-1], "http://two.test, http://one.test/", "http://one.test http://two.test http://one.test")
    )
    assert [one] * 3 == others
    alone = RemoteRepository("http://one.test", token="a")
    assert alone.fingerprint == RemoteRepository(["http://one.test"], token="a").fingerprint != one


@contextmanager
def name_with_two_addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name that has two addresses of loopback."""
    known = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **named: Any) -> list[Any]:
        if host != "several.test":
            return known(host, port, *rest, **named)
        return [each for address in ("127.0.0.2", "127.0.0.3") for each in known(address, port, *rest, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield "several.test"


async def test_a_name_with_several_addresses_leads_to_the_server_that_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A push goes on at the other address when the server at the first one is killed."""
    sent = frames(7)
    port = lasting_port()
    with (
        running_server(tmp_path / "root", check=False, host="127.0.0.2", port=port) as first,
        running_server(tmp_path / "root", check=False, host="127.0.0.3", port=port),
        name_with_two_addresses(monkeypatch) as name,
    ):

        def kill(_: int) -> None:
            if first.process.poll() is None:
                first.process.kill()
                first.process.wait()

        async with connect(f"http://{name}:{port}", token=TOKEN) as repository:
            await repository.put(sent, moved=kill)
            assert first.process.poll() is not None
            found = await repository.get([frame.digest for frame in sent], buffer_for(16))
    assert [frame.data for frame in sent] == found


@pytest.mark.parametrize("given", ["options", "variable"])
def test_commands_take_several_servers(servers: list[RunningServer], tmp_path: Path, given: str) -> None:
    """As options that are repeated, or as one variable."""
    home = Home(tmp_path)
    dead = f"http://127.0.0.1:{lasting_port()}"
    options = ["--url", dead, "--url", servers[0].url] if given == "options" else []
    environ = {"FILESTORE_TOKEN": TOKEN, "FILESTORE_URL": "" if options else f"{dead} {servers[0].url}"}
    (tmp_path / "file").write_bytes(b"content")
    pushed = home.run("push", tmp_path / "file", *options, environ=environ)
    assert 0 == pushed.returncode, pushed.stderr
    servers[0].process.kill()
    servers[0].process.wait()
    failed = home.run("ls", *options, environ=environ)
    assert 1 == failed.returncode
    assert all(text in failed.stderr for text in ("none of the servers can be used", dead, servers[0].url))
