"""Frames come from peers, and whatever goes wrong with these, the fetch goes on through the server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from filestore.backends import connect
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.format.codec import Codec, Frame
from filestore.peers.repository import PeerRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.daemons import lasting_port
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.hostile_server import Answer, Asked, HostileServer, answering, head, hostile_server
from tests.support.links import Link, running_link
from tests.support.peer_answers import FULL, asked_digests, frames_answer, giving
from tests.support.relay import UNSPOILED, Spoiled, running_relay
from tests.support.server import TOKEN, running_server

FRAME_SIZE = 100_000
COUNT = 12


def frames(seed: int, *, count: int = COUNT) -> list[Frame]:
    """Frames that are as large as their content."""
    return [encoded(octets(1000 * seed + number, FRAME_SIZE), codec=Codec.RAW) for number in range(count)]


class World(NamedTuple):
    """A server that has some frames, a link to it, and a client that knows peers."""

    link: Link
    repository: PeerRepository
    sent: list[Frame]
    before: int

    async def get(self) -> None:
        """Get all frames in one call, and check them."""
        moved: list[int] = []
        digests = [frame.digest for frame in self.sent]
        size = sum(len(frame.data) for frame in self.sent)
        # As much room as the contract promises, and no more.
        found = await self.repository.get(digests, memoryview(bytearray(size)), moved=moved.append)
        assert [frame.data for frame in self.sent] == found
        assert size == sum(moved)

    @property
    def from_server(self) -> int:
        """How many frames the server has sent since the world began."""
        return round((self.link.down_size - self.before) / FRAME_SIZE)


@asynccontextmanager
async def world(folder: Path, peers: Sequence[str], sent: list[Frame], **options: Any) -> AsyncIterator[World]:
    """`options` are those of the client."""
    with running_server(folder / "origin", check=False) as server:
        async with running_link(server.port) as link:
            async with connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
                await repository.put(sent)
            async with connect(f"http://127.0.0.1:{link.port}", token=TOKEN, peers=peers, **options) as repository:
                client = cast("PeerRepository", repository)
                await client.peer_ticket()
                yield World(link, client, sent, link.down_size)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens until its end."""
    with ExitStack() as stack:
        yield stack


def hostile(stack: ExitStack, answer: Answer) -> HostileServer:
    """Run a peer until the end of the test."""
    return stack.enter_context(hostile_server(answer))


def dead_url() -> str:
    """A URL where nothing listens."""
    return f"http://localhost:{lasting_port()}"


async def test_frames_come_from_peers(tmp_path: Path, stack: ExitStack) -> None:
    """Both peers are asked, and the server sends no frame. Peers get the ticket, and never the token."""
    sent = frames(1)
    peers = [hostile(stack, giving(sent)) for _ in range(2)]
    async with world(tmp_path, [peer.url for peer in peers], sent) as here:
        await here.get()
        assert (0, COUNT * FRAME_SIZE) == (here.from_server, here.repository.peers_size - 8 * COUNT)
        ticket = (await here.repository.peer_ticket()).ticket
        assert [{f"Bearer {ticket}"}] * 2 == [{asked.fields["authorization"] for asked in peer.asked} for peer in peers]
        assert TOKEN not in str([peer.asked for peer in peers])
        assert {"/native/v1/chunks/get"} == {"/native/v1" + asked.path.removeprefix("/native/v1") for asked in peers[0].asked}


def broken(_: Asked) -> bytes:
    """It answers that something went wrong."""
    return answering(b"{}", status="500 Internal Server Error")


def refusing(_: Asked) -> bytes:
    """It does not accept the ticket."""
    return answering(b"{}", status="401 Unauthorized")


def not_a_batch(_: Asked) -> bytes:
    """It answers something else than frames."""
    return answering(b"no batch at all")


def other_chunks(asked: Asked) -> bytes:
    """It names other chunks than those that were asked for."""
    return frames_answer([Digest(bytes(32))] * len(asked_digests(asked)), {})


def absent(asked: Asked) -> bytes:
    """It says that it has none of them."""
    return frames_answer(asked_digests(asked), {})


def too_large(asked: Asked) -> bytes:
    """It announces more than the buffer has room for."""
    return frames_answer(asked_digests(asked), {digest: bytes(4_000_000) for digest in asked_digests(asked)})


def cut(asked: Asked) -> bytes:
    """The last frame does not arrive."""
    return giving(frames(1))(asked)[:-FRAME_SIZE]  # type: ignore[index]


def without_end(_: Asked) -> Iterable[bytes]:
    """It never stops."""
    yield head(None)
    while True:
        yield bytes(1 << 16)


BAD = [broken, refusing, not_a_batch, other_chunks, absent, too_large, without_end]


@pytest.mark.parametrize("answer", BAD, ids=lambda answer: answer.__name__)
async def test_peer_that_fails(tmp_path: Path, stack: ExitStack, answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    """The server gives all frames, and it is said once why."""
    sent = frames(3)
    peer = hostile(stack, answer)
    async with world(tmp_path, [peer.url], sent) as here:
        with caplog.at_level(logging.WARNING, "filestore"):
            await here.get()
            await here.get()
        assert 2 * COUNT == here.from_server
        assert [logging.WARNING] == [record.levelno for record in caplog.records if record.name.startswith("filestore")]
        assert 0 == here.repository.peers_size
        assert ("refuses the ticket" in caplog.text) is (answer is refusing)
        # It was left out for the second call. A connection that is cut may be an old one, so it is made once more. That one may
        # be the kept one, on which the end has not arrived before, and the peer then does not see the request.
        assert len(peer.asked) in ({1, 2} if answer is not_a_batch else {1})


@pytest.mark.parametrize("answer", BAD, ids=lambda answer: answer.__name__)
async def test_other_peer_takes_the_place(tmp_path: Path, stack: ExitStack, answer: Answer) -> None:
    """Where another peer works, the server sends no frame, except one that it alone can say to be absent."""
    sent = frames(4)
    good, bad = hostile(stack, giving(sent)), hostile(stack, answer)
    async with world(tmp_path, [good.url, bad.url, dead_url()], sent) as here:
        await here.get()
        asked = {digest for each in bad.asked for digest in asked_digests(each)}
        assert (len(asked) if answer is absent else 0) == here.from_server
        await here.get()
        assert (len(asked) if answer is absent else 0) == here.from_server


async def test_cut_answer(tmp_path: Path, stack: ExitStack) -> None:
    """Frames that arrived whole are not asked for again."""
    sent = frames(1)
    peer = hostile(stack, cut)
    async with world(tmp_path, [peer.url], sent) as here:
        await here.get()
        assert 1 == here.from_server


async def test_full_peer_is_asked_again(tmp_path: Path, stack: ExitStack) -> None:
    """A peer that has no room has not failed: the client waits, and asks the other one and it again. The server is not asked."""
    sent = frames(5)
    count = iter(range(1000))

    def answer(asked: Asked) -> bytes | Iterable[bytes]:
        return FULL if next(count) < 5 else giving(sent)(asked)

    peers = [hostile(stack, answer), hostile(stack, answer)]
    async with world(tmp_path, [peer.url for peer in peers], sent) as here:
        await here.get()
        assert 0 == here.from_server


async def test_wrong_frames(tmp_path: Path, stack: ExitStack) -> None:
    """A batch with wrong bytes costs the receiver two more requests for a frame. The peer is left out from then on."""
    source = tmp_path / "source"
    source.write_bytes(octets(6, 6_000_000))
    held: dict[Digest, bytes] = {}

    def wrong(asked: Asked) -> bytes:
        return frames_answer(asked_digests(asked), {digest: held[digest][:-1] + b"!" for digest in asked_digests(asked)})

    peers = [
        hostile(stack, wrong),
        hostile(stack, lambda asked: frames_answer(asked_digests(asked), held)),
    ]
    async with world(tmp_path, [peer.url for peer in peers], []) as here:
        async with connect(here.repository.location, token=TOKEN) as plain:
            pushed = await push(plain, source, codec="raw")
            wanted = [chunk.digest for chunk in Manifest.parse(await plain.manifest(pushed.record.digest)).chunks]
            for digest, data in zip(wanted, await plain.get(wanted, buffer_for(len(wanted))), strict=True):
                assert data is not None
                held[digest] = bytes(data)
        before = here.link.down_size
        fetched = await fetch(here.repository, pushed.record, target=tmp_path / "target")
        assert source.read_bytes() == fetched.path.read_bytes()
        assert here.link.down_size - before < FRAME_SIZE
        assert len(peers[0].asked) <= 2  # none if the other peer is the first one of all chunks
        assert not await here.repository.verify_chunks(wanted)


async def test_frame_alone_is_verified(tmp_path: Path, stack: ExitStack) -> None:
    """One that is asked for alone is verified here, and then another peer gives it."""
    sent = frames(7, count=1)
    peers = [hostile(stack, giving([Frame(sent[0].digest, bytes(FRAME_SIZE + 8))])), hostile(stack, giving(sent))]
    async with world(tmp_path, [peer.url for peer in peers], sent) as here:
        for _ in range(3):
            await here.get()
        assert 0 == here.from_server
        assert len(peers[0].asked) <= 1


async def test_frames_that_are_asked_for_again_accuse_nobody(tmp_path: Path, stack: ExitStack) -> None:
    """A caller may have another reason to do so, such as a second fetch of a small file. Both peers are still asked."""
    sent = frames(11)
    peers = [hostile(stack, giving(sent)) for _ in range(2)]
    async with world(tmp_path, [peer.url for peer in peers], sent) as here:
        await here.get()
        for frame in sent:
            await here._replace(sent=[frame]).get()
        assert 0 == here.from_server
        asked = [digest for peer in peers for asked in peer.asked for digest in asked_digests(asked)]
        assert sorted(2 * [frame.digest for frame in sent]) == sorted(asked)
        assert all(len(peer.asked) > 1 for peer in peers)
        await here.get()
        assert [False, False] == [len(asked_digests(peer.asked[-1])) in {0, COUNT} for peer in peers]


async def test_server_without_tickets(tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """A server of an earlier version gives no ticket. No peer is asked, and the server is asked for one once."""
    sent = frames(8, count=2)
    peer = hostile(stack, giving(sent))
    with running_server(tmp_path / "origin") as server:

        def spoil(_: str, target: str) -> Spoiled:
            return Spoiled(status=404, body=b"{}") if target.endswith("/peer-ticket") else UNSPOILED

        with running_relay(server.url, spoil=spoil) as relay:
            async with connect(relay.url, token=TOKEN, peers=peer.url) as repository:
                await repository.put(sent)
                for _ in range(2):
                    found = await repository.get([frame.digest for frame in sent], buffer_for(2))
                    assert [frame.data for frame in sent] == found
            assert 1 == [asked.path for asked in relay.asked].count("/native/v1/peer-ticket")
    assert [] == peer.asked
    assert 1 == len([record for record in caplog.records if record.levelno == logging.WARNING])


async def test_limited_connections(tmp_path: Path, stack: ExitStack) -> None:
    """A limit of the connections holds for peers too."""
    sent = frames(9)
    peers = [hostile(stack, giving(sent)) for _ in range(3)]
    async with world(tmp_path, [peer.url for peer in peers], sent, connections=1) as here:
        await here.get()
        assert 0 == here.from_server


async def test_worker_process(tmp_path: Path, stack: ExitStack) -> None:
    """What opens the repository in another process has the peers."""
    sent = frames(10)
    peer = hostile(stack, giving(sent))
    async with world(tmp_path, [peer.url], sent) as here:
        opening = here.repository.opening()
        assert opening is not None
        async with opening.open(share=2) as other:
            await here._replace(repository=cast("PeerRepository", other)).get()
        assert 0 == here.from_server
