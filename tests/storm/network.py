"""A server, peers and the links between them, in simulated time. A frame is 16 bytes, and takes the time of its real size."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from filestore.core.digest import DIGEST_SIZE, Digest, chunk_digest
from filestore.core.tickets import PeerTicket
from filestore.errors import Busy, Interrupted, Unreachable
from filestore.http import wire
from filestore.http.client.exchange import AnswerBody, Request
from filestore.peers.addresses import Peer
from filestore.repository.protocol import Moved
from tests.storm.clock import now

CHUNK_SIZE = 3 << 19
"""Bytes of a frame: 1.5 MiB."""
FRAME_SIZE = 16
LATENCY_SECONDS = 0.0005
WAIT_SECONDS = 20.0
"""How long a peer lets a request wait for the server."""


def frame_of(digest: Digest) -> bytes:
    """Return the frame of a chunk."""
    return digest[:FRAME_SIZE]


class Pipe:
    """One direction of the network card of a machine."""

    def __init__(self, rate: float) -> None:
        """`rate` is bytes per second."""
        self._rate = rate
        self._free_at = 0.0
        self.size = 0
        """Bytes that have passed."""

    async def pass_through(self, size: int) -> None:
        """Wait until `size` bytes have passed, after all that came before them."""
        self.size += size
        self._free_at = max(now(), self._free_at) + size / self._rate
        await asyncio.sleep(self._free_at - now() + LATENCY_SECONDS)


class Server:
    """The server, which counts how often each frame leaves it."""

    def __init__(self, rate: float) -> None:
        self._up = Pipe(rate)
        self.given = Counter[Digest]()
        self.given_to_readers = 0

    async def ticket(self) -> PeerTicket:
        """Return a ticket for peers."""
        await asyncio.sleep(LATENCY_SECONDS)
        return PeerTicket("a ticket", 3600.0)

    async def give(self, digests: Sequence[Digest]) -> None:
        """Send some frames."""
        self.given.update(digests)
        await self._up.pass_through(CHUNK_SIZE * len(digests))

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:  # noqa: ARG002  # of the protocol
        """Do what `Repository.get` does, for a reader."""
        self.given_to_readers += len(digests)
        await self.give(digests)
        found: list[memoryview | None] = []
        for number, digest in enumerate(digests):
            part = buffer[number * FRAME_SIZE : (number + 1) * FRAME_SIZE]
            part[:] = frame_of(digest)
            found.append(part)
        return found


@dataclass
class Machine:
    """A machine with a peer on it."""

    server: Server
    up: Pipe
    requests_limit: int
    """How many requests the peer answers at a time. Another one is refused for a second."""
    is_dead: bool = False
    requests: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._held: dict[Digest, asyncio.Task[None]] = {}

    async def answer(self, digests: Sequence[Digest]) -> None:
        """Send some frames, after those that are not here have come from the server, each of them once."""
        if self.requests >= self.requests_limit:
            self.refused += 1
            raise _busy()
        self.requests += 1
        try:
            new = [digest for digest in digests if digest not in self._held]
            if new:
                pulling = asyncio.create_task(self.server.give(new))
                self._held |= dict.fromkeys(new, pulling)
            _, late = await asyncio.wait({self._held[digest] for digest in digests}, timeout=WAIT_SECONDS)
            if late:
                raise _busy()
            await self.up.pass_through(CHUNK_SIZE * len(digests))
        finally:
            self.requests -= 1


def _busy() -> Busy:
    error = Busy("the peer", "it is full")
    error.retry_after_seconds = 1.0
    return error


class SimulatedLink:
    """The connections of one reader to one peer: a `Link`."""

    def __init__(self, peer: Peer, machine: Machine, down: Pipe) -> None:
        """`down` is the network card of the reader."""
        self._peer = peer
        self._machine = machine
        self._down = down

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        await asyncio.sleep(LATENCY_SECONDS)
        if self._machine.is_dead:
            raise Unreachable(self._peer.url, "nobody answers")
        asked = request.body or b""
        digests = [Digest(asked[start : start + DIGEST_SIZE]) for start in range(0, len(asked), DIGEST_SIZE)]
        await self._machine.answer(digests)
        await self._down.pass_through(CHUNK_SIZE * len(digests))
        if self._machine.is_dead:
            raise Interrupted(self._peer.url, "it is dead")
        entries = [wire.BatchEntry(digest, FRAME_SIZE) for digest in digests]
        answer = wire.encode_batch_header(entries) + b"".join(map(frame_of, digests))
        body.expect(len(answer), wire.OCTETS)
        while answer:
            memory = body.memory()
            size = min(len(memory), len(answer))
            memory[:size] = answer[:size]
            body.add(size)
            answer = answer[size:]
        body.end()
        return 0.0

    async def close(self) -> None:
        pass


def digests_of(count: int) -> list[Digest]:
    """Return the digests of the chunks of a file."""
    return [chunk_digest(str(number).encode()) for number in range(count)]
