"""How long a reader waits for peers that are full, in simulated time."""

from __future__ import annotations

import asyncio

import pytest

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.http.client.exchange import AnswerBody, Request
from filestore.peers.addresses import ListedPeers, Peer
from filestore.peers.choice import FULL_SECONDS
from filestore.peers.frames import PeerFrames
from tests.storm.clock import now, run_simulated
from tests.storm.network import FRAME_SIZE, Machine, Pipe, Server, SimulatedLink, digests_of

RATE = 1e9
COUNT = 32
CALLS = 20
PEERS = [Peer(f"{name}:8600", f"http://{name}:8600") for name in ("full", "other")]


class FullLink:
    """The connections to a peer that is full whenever it is asked: a `Link`."""

    def __init__(self, asked: float) -> None:
        self.asked = asked

    async def exchange(self, request: Request, body: AnswerBody) -> float:  # noqa: ARG002  # of the protocol
        """Answer 503 with Retry-After."""
        error = Busy("the peer", "its origin does not answer")
        error.retry_after_seconds = self.asked
        raise error

    async def close(self) -> None:
        """There is nothing to close."""


async def read(server: Server, peers: list[Peer], digests: list[Digest], *, asked: float) -> float:
    """Get all frames in many calls; return how many seconds that takes. The first peer asks for a pause each time."""
    machine = Machine(server, Pipe(RATE), requests_limit=64)
    frames = PeerFrames(
        ListedPeers(peers),
        get=server.get,
        ticket=server.ticket,
        open_link=lambda peer: FullLink(asked) if peer == PEERS[0] else SimulatedLink(peer, machine, Pipe(RATE)),
        clock=now,
        sleep=asyncio.sleep,
        client=b"reader",
    )
    for _ in range(CALLS):
        assert None not in await frames.get(digests, memoryview(bytearray(FRAME_SIZE * COUNT)), None)
    await frames.close()
    return now()


def test_a_peer_that_stays_full_holds_up_a_reader_once() -> None:
    """It is left out afterwards, as one that fails."""
    server = Server(RATE)
    assert run_simulated(read(server, PEERS[:1], digests_of(COUNT), asked=1.0)) < 2 * FULL_SECONDS
    assert CALLS * COUNT == server.given_to_readers


@pytest.mark.parametrize("asked", [1.0, 1e6])
def test_the_other_peer_is_asked(asked: float) -> None:
    """Nothing comes from the server, however long a pause the one peer asks for."""
    server = Server(RATE)
    assert run_simulated(read(server, PEERS, digests_of(COUNT), asked=asked)) < FULL_SECONDS
    assert 0 == server.given_to_readers
