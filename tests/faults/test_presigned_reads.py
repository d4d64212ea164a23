"""Frames are read by URLs that a server signs, without the server. Whatever goes wrong, the server gives them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filestore.backends import connect
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import Codec, Frame
from filestore.http import wire
from filestore.http.client.frame_urls import FramePlaces
from filestore.http.server.frame_urls import LEAST_SIZE
from filestore.repository.protocol import NamesPlaces, Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from filestore.transfer.receive_batch import BatchReceiver
from tests.support.daemons import lasting_port
from tests.support.frame_urls import FrameServer, serving_frames
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.links import Link, running_link
from tests.support.server import OTHER_TOKEN, TOKEN, RunningServer, running_server

FRAME_SIZE = 1_000_000
COUNT = 12


def frames(seed: int, *, count: int = COUNT, size: int = FRAME_SIZE) -> list[Frame]:
    """Frames that are as large as their content."""
    return [encoded(octets(1000 * seed + number, size), codec=Codec.RAW) for number in range(count)]


class World(NamedTuple):
    """A server that gives URLs, the server of frames to which they lead, and a link to the first one."""

    server: RunningServer
    store: FrameServer
    link: Link
    repository: Repository

    async def get(self, wanted: list[Frame]) -> None:
        """Get frames, and check that they are those that are wanted."""
        moved: list[int] = []
        digests = [frame.digest for frame in wanted]
        found = await self.repository.get(digests, buffer_for(len(wanted)), moved=moved.append)
        assert [frame.data for frame in wanted] == found
        assert sum(len(frame.data) for frame in wanted) == sum(moved)

    def asks(self) -> list[bytes]:
        """Return a list that gets an item for each request for frames to the server from now on."""
        asked: list[bytes] = []

        async def note(piece: bytes) -> bytes:
            asked.extend(re.findall(rb"POST /native/v1/chunks/get ", piece))
            return piece

        self.link.up = note
        return asked


@asynccontextmanager
async def world(folder: Path, *, url: str | None = None, **options: Any) -> AsyncIterator[World]:
    """`url` is what the URLs of frames begin with. Of the `options`, those that end with `_` are for the server."""
    of_server = {name.rstrip("_"): value for name, value in options.items() if name.endswith("_")}
    of_client = {name: value for name, value in options.items() if not name.endswith("_")}
    async with serving_frames(folder / "root") as store:
        with running_server(folder / "root", check=False, frame_urls=url or store.url, **of_server) as server:
            async with running_link(server.port) as link:
                address = f"http://127.0.0.1:{link.port}"
                async with connect(address, token=TOKEN, **of_client) as repository:
                    yield World(server, store, link, repository)


async def test_frames_do_not_pass_the_server(tmp_path: Path) -> None:
    """All of them come from the store, side by side, and the server sends some hundred bytes for each."""
    async with world(tmp_path) as here:
        sent = frames(1)
        await here.repository.put(sent)
        before = here.link.down_size
        await here.get(sent)
        assert COUNT * FRAME_SIZE < here.store.sent_size < COUNT * FRAME_SIZE + 1000
        assert here.link.down_size - before < 1000 * COUNT
        assert here.store.most_open > 1


async def test_the_store_gets_no_token(tmp_path: Path) -> None:
    """A request to it has no header that says who asks."""
    async with world(tmp_path) as here:
        sent = frames(2, count=2)
        await here.repository.put(sent)
        await here.get(sent)
        assert {"GET", "Host:", "User-Agent:"} == {line.split()[0] for head in here.store.heads for line in head}
        assert TOKEN not in str(here.store.heads)


async def test_a_file_is_fetched_from_the_store(tmp_path: Path) -> None:
    """The manifest is from the server, and the frames are not."""
    source = tmp_path / "source"
    source.write_bytes(octets(3, 24 * FRAME_SIZE))
    async with world(tmp_path) as here:
        pushed = await push(here.repository, source, codec="raw")
        before = here.link.down_size
        fetched = await fetch(here.repository, pushed.record, target=tmp_path / "target")
        assert here.link.down_size - before < FRAME_SIZE
    assert source.read_bytes() == fetched.path.read_bytes()


@pytest.mark.parametrize("presigned_reads", [True, False])
async def test_few_requests_tell_where_all_frames_are(tmp_path: Path, presigned_reads: bool) -> None:  # noqa: FBT001  # of a test
    """The first answer shows that the server gives URLs. One more request asks about all frames that follow in the manifest."""
    async with world(tmp_path, presigned_reads_=int(presigned_reads)) as here:
        sent = frames(17, count=16)
        await here.repository.put(sent)
        chunks = [Chunk(frame.digest, FRAME_SIZE) for frame in sent]
        record = await here.repository.commit(Manifest.build(chunks, chunking_version=CHUNKING_VERSION).encoded, name="file")
        asked = here.asks()
        await here.repository.manifest(record.digest)
        await asyncio.gather(*(here.get(sent[start : start + 2]) for start in range(0, len(sent), 2)))
        assert (2 if presigned_reads else 8) == len(asked)


@pytest.mark.parametrize("presigned_reads", [True, False])
async def test_worker_processes_take_the_same_way(tmp_path: Path, presigned_reads: bool) -> None:  # noqa: FBT001  # of a test
    """What opens the repository in another process has the setting."""
    async with world(tmp_path, presigned_reads=presigned_reads) as here:
        sent = frames(16, count=3)
        await here.repository.put(sent)
        opening = here.repository.opening()
        assert opening is not None
        async with opening.open(share=2) as other:
            await here._replace(repository=other).get(sent)
        assert 3 * presigned_reads == len(here.store.heads)


async def test_small_and_absent_frames_are_for_the_server(tmp_path: Path) -> None:
    """A small one costs more as a request of its own. They arrive in the order in which they were asked for."""
    async with world(tmp_path) as here:
        large, small, absent = frames(4, count=3), frames(5, count=3, size=LEAST_SIZE // 2), frames(6, count=1)
        await here.repository.put([*large, *small])
        asked = [small[0], absent[0], large[0], large[1], small[1], large[2], small[2]]
        found = await here.repository.get([frame.digest for frame in asked], buffer_for(len(asked)))
        assert [None if frame is absent[0] else frame.data for frame in asked] == found
        assert 3 == len(here.store.heads)
        await here.get(small)
        assert 3 == len(here.store.heads)


async def test_worker_processes_are_told_the_places(tmp_path: Path) -> None:
    """One process asks about all frames that follow in the manifest. What it gives another process is used there once."""
    async with world(tmp_path) as here:
        sent = frames(20, count=12)
        await here.repository.put(sent)
        digests = [frame.digest for frame in sent]
        chunks = [Chunk(digest, FRAME_SIZE) for digest in digests]
        record = await here.repository.commit(Manifest.build(chunks, chunking_version=CHUNKING_VERSION).encoded, name="file")
        first = here.repository
        assert isinstance(first, NamesPlaces)
        await here.repository.manifest(record.digest)
        assert await first.name_places(digests[2:4]) is None  # it is not known yet whether the server gives URLs
        await here.get(sent[:2])
        opening = here.repository.opening()
        assert opening is not None
        asked = here.asks()
        async with opening.open(share=2) as other:
            assert isinstance(other, NamesPlaces)
            for start in range(2, 10, 4):
                wanted = digests[start : start + 4]
                places = await first.name_places(wanted)
                assert places is not None
                other.take_places(wanted, pickle.loads(pickle.dumps(places)))  # as between two processes
                await here._replace(repository=other).get(sent[start : start + 4])
            assert 1 == len(asked)
            await here._replace(repository=other).get(sent[2:6])
            assert 2 == len(asked)


async def test_places_that_ended_on_the_way_to_a_worker_process_are_asked_for_again(tmp_path: Path) -> None:
    """The process was stopped for minutes, or the machine slept."""
    async with world(tmp_path) as here:
        sent = frames(21, count=4)
        await here.repository.put(sent)
        digests = [frame.digest for frame in sent]
        await here.get(sent)
        first = here.repository
        assert isinstance(first, NamesPlaces)
        places = await first.name_places(digests)
        assert isinstance(places, FramePlaces)
        asked = here.asks()
        first.take_places(digests, places._replace(end=time.monotonic() - 1))
        await here.get(sent)
        assert 1 == len(asked)
        assert 2 * len(sent) == len(here.store.heads)


async def test_a_few_small_frames_among_large_ones_come_from_the_store(tmp_path: Path) -> None:
    """Each of them would be a request to the server of its own."""
    async with world(tmp_path) as here:
        sent = [*frames(18, count=3), *frames(19, count=2, size=1000)]
        await here.repository.put(sent)
        before = here.link.down_size
        await here.get(sent)
        assert 5 == len(here.store.heads)
        assert here.link.down_size - before < 1000 * len(sent)


async def test_a_url_that_has_ended_is_renewed(tmp_path: Path) -> None:
    """The client asks for new ones, and for no frame."""
    async with world(tmp_path) as here:
        sent = frames(7)
        await here.repository.put(sent)
        before = here.link.down_size
        refused: set[str] = set()

        def once(target: str, answer: bytes) -> bytes:
            path = target.partition("?")[0]
            if path in refused:
                return answer
            refused.add(path)
            here.store.sent_size -= FRAME_SIZE
            return b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"

        here.store.change = once
        await here.get(sent)
        assert COUNT * FRAME_SIZE <= here.store.sent_size < COUNT * FRAME_SIZE + 1000
        assert here.link.down_size - before < 2000 * COUNT


async def test_a_store_that_refuses_new_urls_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its clock is ahead, or the server may not read. The frames come through the server, and the log says it once."""
    async with world(tmp_path) as here:
        sent = frames(8)
        await here.repository.put(sent)
        here.store.seconds_on = 3600
        with caplog.at_level(logging.WARNING):
            for _ in range(8):
                await here.get(sent)
        assert 2 * COUNT * 5 >= len(here.store.heads)
    assert 1 == caplog.text.count("frames are read through the server")
    assert "signature" not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 503 SlowDown\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ntoo short",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        b"not HTTP\r\n\r\n",
    ],
)
async def test_a_frame_that_the_store_does_not_give_comes_from_the_server(tmp_path: Path, answer: bytes | None) -> None:
    """That frame alone, after one try."""
    async with world(tmp_path) as here:
        sent = frames(9)
        await here.repository.put(sent)
        wrong = str(sent[3].digest)
        here.store.change = lambda target, right: answer if wrong in target else right
        before = here.link.down_size
        await here.get(sent)
        assert FRAME_SIZE < here.link.down_size - before < FRAME_SIZE + 1000 * COUNT
        assert COUNT == len(here.store.heads)


async def test_a_frame_that_the_store_damages_is_had_from_the_server(tmp_path: Path) -> None:
    """It is verified as one of the server is, and asked for again alone, which goes through the server."""
    async with world(tmp_path) as here:
        sent = frames(10)
        await here.repository.put(sent)
        here.store.change = lambda _, right: right[:-1] + bytes([right[-1] ^ 1])
        taken: list[bytes] = []

        class Writer:
            writes_files = False

            def begin(self) -> None:
                pass

            def take(self, number: int, content: memoryview) -> None:
                assert number == len(taken)
                taken.append(bytes(content))

        chunks = [Chunk(frame.digest, FRAME_SIZE) for frame in sent]
        await BatchReceiver(here.repository, moved=lambda _: None).receive(chunks, buffer_for(COUNT), Writer())
        assert [octets(10_000 + number, FRAME_SIZE) for number in range(COUNT)] == taken
        assert [] == await here.repository.missing([frame.digest for frame in sent])


async def test_a_store_that_cannot_be_reached_is_tried_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its address may be for servers only. One request finds that out for all."""
    async with world(tmp_path, url=f"http://127.0.0.1:{lasting_port()}") as here:
        sent = frames(11)
        await here.repository.put(sent)
        with caplog.at_level(logging.WARNING):
            await here.get(sent)
            await here.get(sent)
    assert 1 == caplog.text.count("frames are read through the server")
    assert "Connection refused" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1",
        "file:///etc",
        "http://user:password@127.0.0.1",
        "//127.0.0.1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1\r\nX: 1",
        "http://",
    ],
)
async def test_an_address_that_may_not_be_used_is_not(tmp_path: Path, url: str) -> None:
    """The frames come through the server."""
    async with world(tmp_path, url=url) as here:
        sent = frames(12, count=2)
        await here.repository.put(sent)
        await here.get(sent)
        assert [] == here.store.heads


@pytest.mark.parametrize("options", [{"presigned_reads": False}, {"presigned_reads_": 0}])
async def test_both_ends_can_turn_it_off(tmp_path: Path, options: dict[str, Any]) -> None:
    """Then all frames pass the server."""
    async with world(tmp_path, **options) as here:
        sent = frames(13, count=3)
        await here.repository.put(sent)
        await here.get(sent)
        assert [] == here.store.heads


async def test_a_limit_of_connections_holds_for_the_store_too(tmp_path: Path) -> None:
    """Those to the server and those to the store are never more together."""
    async with world(tmp_path, connections=2) as here:
        sent = frames(14)
        await here.repository.put(sent)
        await here.get(sent)
        assert COUNT * FRAME_SIZE < here.store.sent_size
        assert here.store.most_open <= 2
        assert here.store.open_now + here.link.open_now <= 2


async def test_the_server_says_where_frames_are_only_to_those_who_ask(tmp_path: Path) -> None:
    """An earlier client gets frames. The document is as docs/http-api.md has it."""
    async with world(tmp_path) as here:
        [sent] = frames(15, count=1)
        await here.repository.put([sent])
        plain = here.server.ask("POST", f"{wire.API}/chunks/get", sent.digest)
        assert wire.OCTETS == plain.headers["Content-Type"]
        asked = here.server.ask("POST", f"{wire.API}/chunks/get", sent.digest, headers={"Accept": wire.FRAME_URLS})
        assert (wire.FRAME_URLS, "no-store") == (asked.headers["Content-Type"], asked.headers["Cache-Control"])
        [place] = asked.json["frames"]
        assert (300, len(sent.data)) == (asked.json["expires_in"], place["size"])
        assert place["url"].startswith(f"{here.store.url}/default/{sent.digest}?")


def places_of(server: RunningServer, wanted: list[Frame], **headers: str) -> dict[str, Any]:
    """Return the document that says where frames are."""
    fields = {"Accept": wire.FRAME_URLS} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = server.ask("POST", f"{wire.API}/chunks/get", b"".join(frame.digest for frame in wanted), headers=fields)
    document: dict[str, Any] = answer.json
    return document


async def test_urls_are_given_again(tmp_path: Path) -> None:
    """Many machines read one file at the same time. A client that the store has refused gets new ones."""
    async with world(tmp_path) as here:
        sent = frames(22, count=3)
        await here.repository.put(sent)
        first, second = places_of(here.server, sent), places_of(here.server, sent)
        assert first["frames"] == second["frames"]
        assert first["expires_in"] > second["expires_in"] > 200
        assert first["expires_in"] == places_of(here.server, sent, Cache_Control="no-cache")["expires_in"]
        await here.get(sent)
        assert 3 == len(here.store.heads)


async def test_a_client_that_the_store_has_refused_asks_for_new_urls(tmp_path: Path) -> None:
    """Those that the server would give again may be refused too."""
    async with world(tmp_path) as here:
        sent = frames(23, count=3)
        await here.repository.put(sent)
        heads: list[bytes] = []

        async def note(piece: bytes) -> bytes:
            heads.extend(re.findall(rb"Cache-Control: no-cache", piece))
            return piece

        here.link.up = note
        here.store.change = lambda *_: b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"
        await here.get(sent)
        assert 1 == len(heads)


async def test_an_absent_frame_is_looked_for_again(tmp_path: Path) -> None:
    """It may be stored a moment after a client has asked for it."""
    async with world(tmp_path) as here:
        sent = frames(24, count=2)
        await here.repository.put(sent[:1])
        assert [FRAME_SIZE, 0] == [min(place["size"], FRAME_SIZE) for place in places_of(here.server, sent)["frames"]]
        await here.repository.put(sent[1:])
        assert all("url" in place for place in places_of(here.server, sent)["frames"])


async def test_urls_that_are_given_again_stay_in_their_namespace(tmp_path: Path) -> None:
    """Whoever knows the digests gets no URL in another namespace, and none with a token that is unknown."""
    async with world(tmp_path) as here:
        sent = frames(25, count=2)
        await here.repository.put(sent)
        assert all("url" in place for place in places_of(here.server, sent)["frames"])
        body, fields = b"".join(frame.digest for frame in sent), {"Accept": wire.FRAME_URLS}
        other = here.server.ask("POST", f"{wire.API}/chunks/get", body, headers=fields, token=OTHER_TOKEN)
        assert [{"size": 0}, {"size": 0}] == other.json["frames"]
        for token in (None, "unknown"):
            assert 401 == here.server.ask("POST", f"{wire.API}/chunks/get", body, headers=fields, token=token).status
