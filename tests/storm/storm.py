"""Let all readers begin at the same moment, and count what leaves the server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from filestore.core.digest import Digest
from filestore.peers.addresses import ListedPeers, Peer
from filestore.peers.frames import PeerFrames
from tests.storm.clock import now, run_simulated
from tests.storm.network import CHUNK_SIZE, FRAME_SIZE, Machine, Pipe, Server, SimulatedLink, digests_of

BATCH = 10
"""Chunks of one batch of a reader."""
SLOTS = 3
"""Batches that a reader receives at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What happens."""

    readers: int = 1000
    """Machines. Each has a peer too."""
    chunks: int = 256
    dying: float = 0.0
    """The part of the peers that die while the readers read, and do not come back."""
    rate: float = 1.25e9
    """Bytes per second that each machine, and the server, sends and receives."""
    requests_limit: int = 64
    """Requests that a peer answers at a time."""
    seed: int = 1


class Outcome(NamedTuple):
    """What happened."""

    seconds: float
    """In simulated time, until the last reader had everything."""
    copies: float
    """How often the file left the server, by its bytes."""
    most_copies: int
    """How often the frame left it that left it most often."""
    given_to_readers: int
    """Frames that readers got from the server themselves."""
    refused: int
    """Requests that peers had no room for."""
    busiest: float
    """How often the bytes of the file left the peer that sent most."""


def simulate(storm: Storm) -> Outcome:
    """Run a storm. Raises AssertionError if a reader gets something wrong."""
    random.seed(storm.seed)
    return run_simulated(_run(storm))


async def _run(storm: Storm) -> Outcome:
    server = Server(storm.rate)
    peers = [Peer(f"{_host(number)}:8600", f"http://{_host(number)}:8600") for number in range(storm.readers)]
    machines = {peer: Machine(server, Pipe(storm.rate), storm.requests_limit) for peer in peers}
    digests = digests_of(storm.chunks)
    dying = asyncio.create_task(_let_die(random.sample(list(machines.values()), int(storm.dying * storm.readers)), storm))
    async with asyncio.TaskGroup() as group:
        for _ in range(storm.readers):
            group.create_task(_read(server, machines, digests, storm))
    seconds = now()
    dying.cancel()
    size = storm.chunks * CHUNK_SIZE
    return Outcome(
        seconds,
        server.given.total() / storm.chunks,
        max(server.given.values()),
        server.given_to_readers,
        sum(machine.refused for machine in machines.values()),
        max(machine.up.size for machine in machines.values()) / size,
    )


def _host(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250 + 1}"


async def _let_die(machines: list[Machine], storm: Storm) -> None:
    """Let peers die one by one, at about the same times in every storm: while the file would pass twice."""
    pause = 2 * storm.chunks * CHUNK_SIZE / storm.rate / max(1, len(machines))
    for machine in machines:
        await asyncio.sleep(pause)
        machine.is_dead = True


async def _read(server: Server, machines: dict[Peer, Machine], digests: list[Digest], storm: Storm) -> None:
    loop = asyncio.get_running_loop()
    down = Pipe(storm.rate)
    frames = PeerFrames(
        ListedPeers(list(machines)),
        get=server.get,
        ticket=server.ticket,
        open_link=lambda peer: SimulatedLink(peer, machines[peer], down),
        clock=loop.time,
        client=random.randbytes(16),  # the same for the same seed
    )
    batches = (digests[start : start + BATCH] for start in range(0, len(digests), BATCH))
    async with asyncio.TaskGroup() as group:
        for _ in range(SLOTS):
            group.create_task(_receive(frames, batches))
    await frames.close()


async def _receive(frames: PeerFrames, batches: Iterator[list[Digest]]) -> None:
    for batch in batches:
        found = await frames.get(batch, memoryview(bytearray(FRAME_SIZE * len(batch))), None)
        assert [digest[:FRAME_SIZE] for digest in batch] == list(map(bytes, filter(None, found)))
