"""Get frames from peers, and from the server what they do not give."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Protocol

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest
from filestore.core.tickets import PeerTicket
from filestore.errors import FilestoreError, Interrupted, InvalidBatch, InvalidFrame, Unauthorized
from filestore.http import wire
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.exchange import AnswerBody, Request
from filestore.peers.addresses import Addresses, Peer
from filestore.peers.batch import PeerAnswer, PeerBatch, Place
from filestore.peers.choice import FULL_SECONDS, Health, choose
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage
from filestore.system.retries import Clock, Sleep
from filestore.system.threads import SingleFlight, abandon, in_cpu_thread, task_group

TRIES = 3
"""How many peers may fail for one frame. Then the server gives it."""
FIRST_FULL_PAUSE_SECONDS = 0.1
LONGEST_FULL_PAUSE_SECONDS = 2.0
"""The longest pause before a full peer is asked again, if it does not ask for a longer one."""
NEXT_TICKET_SECONDS = 30.0
"""How long the server is not asked for a ticket again after it gave none."""
SOONEST_TICKET_SECONDS = 5.0
"""How long it is not asked again after it gave one that a peer refuses."""
EARLY_SECONDS = 60.0
"""How long before its end a ticket is not used any more."""
LINKS_LIMIT = 64
"""How many peers keep connections that are not in use."""
_INLINE_LIMIT = 1 << 16
"""For so many pairs of a digest and a peer, a choice takes less than the way to a thread and back."""

logger = logging.getLogger("filestore.transfer")


class Get(Protocol):
    """Does what `Repository.get` does."""

    async def __call__(
        self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None
    ) -> list[memoryview | None]:
        """Read frames into `buffer`."""


class Link(Protocol):
    """The connections to one peer. `filestore.http.client.transport.Transport` is one."""

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        """Send a request, and receive the answer into `body`."""

    async def close(self) -> None:
        """Close all connections."""


class PeerFrames:
    """Gets frames from peers, and from the server what they do not give. For one event loop.

    A client asks one of the two peers of a chunk, then the other one. Only if both are left out, it asks the next one.
    A peer that is full is asked again after a pause. What no peer gives comes from the server.

    Frames that come in a batch are not verified here, because the caller's decoder does that, and to do it twice takes as much
    processor time as the whole rest of a fetch. A frame that is asked for alone is verified here: that is how a caller asks again
    for one that was damaged. The same peer is asked, and left out if it gives the wrong bytes again. It is not accused for what
    it gave before, because a caller may have other reasons to ask again.
    """

    def __init__(
        self,
        addresses: Addresses,
        *,
        get: Get,
        ticket: Callable[[], Awaitable[PeerTicket]],
        open_link: Callable[[Peer], Link],
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        client: bytes = b"",
    ) -> None:
        """`get` and `ticket` ask the server. `clock` returns monotonic seconds. `client` is random bytes, made if none are given.

        Without an event loop, it may be made and dropped.
        """
        self._addresses = addresses
        self._get = get
        self._open_link = open_link
        self._clock, self._sleep = clock, sleep
        self._client = client or secrets.token_bytes(16)
        self._tickets = _Tickets(ticket, clock=clock)
        self._health = Health(clock=clock)
        self._links = _Links(open_link)
        self._failure: FilestoreError | str | None = None
        """What a peer did wrong last."""
        self._has_warned = False
        self.received_size = 0
        """Bytes of the frames that peers have given."""

    async def get(self, digests: Sequence[Digest], buffer: memoryview, moved: Moved | None) -> list[memoryview | None]:
        """Do what `Repository.get` does."""
        batch = PeerBatch(digests, buffer)
        await self._ask_peers(batch, moved)
        await self._ask_server(batch, moved)
        return batch.frames()

    async def close(self) -> None:
        """Close all connections to peers."""
        await self._links.close()

    def after_fork(self) -> None:
        """Leave connections to the parent. The child opens new ones, and is another client."""
        abandon(self._links)
        self._links = _Links(self._open_link)
        self._client = secrets.token_bytes(16)
        self._tickets.after_fork()
        self._addresses.after_fork()

    async def _ask_peers(self, batch: PeerBatch, moved: Moved | None) -> None:
        """Ask peers for the frames of `batch`, round by round, until it has them or none is left to ask."""
        waiting = list(range(len(batch.digests)))
        failures = [0] * len(waiting)
        pauses = _Pauses(self._clock, self._sleep)
        for turn in count():
            peers = {peer.address: peer for peer in await self._addresses.peers()}
            groups = await self._groups(batch.digests, waiting, list(peers), turn)
            ticket = await self._tickets.current() if groups else None
            if ticket is None:
                return
            async with task_group() as group:
                asking = {
                    group.create_task(self._ask(peers[address], numbers, batch, ticket, moved)): (address, numbers)
                    for address, part in groups.items()
                    for numbers in batched_by_size(part, lambda _: 1, limit=wire.BATCH_COUNT_LIMIT)
                }
            waiting = []
            asked: list[float] = []
            for task, (address, numbers) in asking.items():
                error = task.result()
                left = [number for number in numbers if number not in batch.places and number not in batch.absent]
                pause = None if error is None else error.retry_after_seconds
                if pause is not None and self._health.note_full(address, pause):
                    self._failure = error
                    asked.append(pause)
                else:
                    if error is not None and not (isinstance(error, Unauthorized) and await self._tickets.renewed(ticket)):
                        self._note_failure(address, error)
                    for number in left:
                        failures[number] += 1
                waiting += [number for number in left if failures[number] < TRIES]
            if batch.lacks_room:
                await self._drop_wrong(batch, moved)
            batch.compact()
            if not waiting:
                return
            if asked and not await pauses.wait(max(asked)):
                return

    async def _groups(
        self, digests: Sequence[Digest], numbers: Sequence[int], peers: Sequence[str], turn: int
    ) -> dict[str, list[int]]:
        """Return which peer to ask for which frames, by their numbers. In the next turn, it is the other peer of a frame."""
        wanted = [digests[number] for number in numbers]
        how = partial(choose, wanted, peers, client=self._client, left_out=self._health.left_out())
        chosen = await in_cpu_thread(how) if len(wanted) * len(peers) > _INLINE_LIMIT else how()
        groups: dict[str, list[int]] = defaultdict(list)
        for number, ranked in zip(numbers, chosen, strict=True):
            if ranked:
                groups[peers[ranked[turn % len(ranked)]]].append(number)
        return groups

    async def _ask(
        self, peer: Peer, numbers: Sequence[int], batch: PeerBatch, ticket: str, moved: Moved | None
    ) -> FilestoreError | None:
        """Ask a peer for frames, which `batch` then has. Return the error if it did not give them all."""
        wanted = [batch.digests[number] for number in numbers]
        fields = {"Authorization": f"Bearer {ticket}"}
        request = Request(method="POST", path="/chunks/get", fields=fields, body=b"".join(wanted), stage=Stage.RECEIVE)
        for is_last in (False, True):
            meter = ByteCounter(moved)
            answer = PeerAnswer(peer.url, wanted, batch, moved=meter.add)
            failure: FilestoreError | None = None
            arrived: list[Place | None] = []
            try:
                async with self._links.link(peer) as link:
                    await link.exchange(request, answer)
                arrived = answer.places(peer.address)
            except FilestoreError as error:
                # Frames that arrived whole before a connection was cut are not asked for again.
                arrived = answer.places(peer.address)
                # If there was no room, another peer may have announced too much.
                failure = None if answer.lacks_room else error
            finally:
                meter.settle(sum(place.size for place in arrived if place is not None))
            # A peer may close a connection that was kept, at the moment at which it is used again.
            if is_last or arrived or not isinstance(failure, Interrupted):
                break
        if failure is None and not answer.lacks_room:
            self._health.note_success(peer.address)
        for number, place in zip(numbers, arrived, strict=False):
            if place is None:
                batch.absent[number] = peer.address
            else:
                batch.places[number] = place
                self.received_size += place.size
        if len(batch.digests) == 1:
            await self._drop_wrong(batch, moved)
        return failure

    async def _drop_wrong(self, batch: PeerBatch, moved: Moved | None) -> None:
        """Drop the frames that are not those that were wanted, and leave out the peers that gave them."""
        for number in await in_cpu_thread(batch.wrong):
            place = batch.places.pop(number)
            self.received_size -= place.size
            if moved is not None:
                moved(-place.size)
            self._note_failure(place.peer, _wrong_frame(batch.digests[number], place.peer))

    async def _ask_server(self, batch: PeerBatch, moved: Moved | None) -> None:
        """Get from the server what peers did not give."""
        left = batch.left()
        if any(number not in batch.absent for number in left):
            self._warn()
        if not left:
            return
        try:
            found = await self._get([batch.digests[number] for number in left], batch.room(), moved=moved)
        except InvalidBatch:
            # Frames of peers that are larger than they may be have taken the room.
            await self._drop_wrong(batch, moved)
            if left == batch.left():
                raise
            batch.compact()
            left = batch.left()
            found = await self._get([batch.digests[number] for number in left], batch.room(), moved=moved)
        batch.others = dict(zip(left, found, strict=True))
        for number, peer in batch.absent.items():
            if batch.others.get(number) is not None:
                self._note_failure(peer, InvalidBatch(f"the peer {peer} does not give a frame that the server has"))

    def _note_failure(self, peer: str, error: FilestoreError) -> None:
        self._failure = _ticket_refused(peer) if isinstance(error, Unauthorized) else error
        if self._health.note_failure(peer):
            self._addresses.note_failure()
            logger.info("the peer %s is left out for some time: %s", peer, self._failure)

    def _warn(self) -> None:
        """Say once that peers do not give all frames."""
        if not self._has_warned:
            self._has_warned = True
            reason = self._failure or self._tickets.failure or self._addresses.failure or "no peer is known"
            logger.warning("frames are read from the server, because peers do not give all of them: %s", reason)


def _ticket_refused(peer: str) -> str:
    return f"the peer {peer} refuses the ticket; its token may be of another server or namespace, or have been removed"


def _wrong_frame(digest: Digest, peer: str) -> InvalidFrame:
    return InvalidFrame(str(digest), f"the peer {peer} gave another one")


class _Pauses:
    """The pauses of one call while peers are full."""

    def __init__(self, clock: Clock, sleep: Sleep) -> None:
        self._clock, self._sleep = clock, sleep
        self._end: float | None = None
        self._pause = FIRST_FULL_PAUSE_SECONDS

    async def wait(self, asked: float) -> bool:
        """Wait some time, and at least about as long as a peer asks for. Return False if it has been too long."""
        now = self._clock()
        if self._end is None:
            self._end = now + FULL_SECONDS
        if now + asked >= self._end:
            return False
        # Half of it is random, so that not all who were refused come back together.
        seconds = max(asked, self._pause)
        await self._sleep(seconds * random.uniform(0.75, 1.25))  # noqa: S311  # no secret
        self._pause = min(2 * self._pause, LONGEST_FULL_PAUSE_SECONDS)
        return True


class _Tickets:
    """The ticket of the server for peers. It is asked for when it is needed."""

    def __init__(self, ask: Callable[[], Awaitable[PeerTicket]], *, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._ticket: str | None = None
        self._next_at = 0.0
        """When the server is asked next."""
        self._asked_at = 0.0
        self._flight = SingleFlight()
        self.failure: FilestoreError | None = None
        """Why there is none."""

    def after_fork(self) -> None:
        """Leave a request that is under way to the parent."""
        self._flight = SingleFlight()

    async def current(self) -> str | None:
        """Return the ticket, or None if the server gives none. It raises no error."""
        if self._clock() >= self._next_at:
            await self._flight.run(None, self._renew)
        return self._ticket

    async def renewed(self, refused: str) -> bool:
        """Return whether there is another ticket than that which a peer refused. It raises no error."""
        if self._ticket == refused and self._clock() >= self._asked_at + SOONEST_TICKET_SECONDS:
            await self._flight.run(None, self._renew)
        return self._ticket not in {refused, None}

    async def _renew(self) -> None:
        self._asked_at = self._clock()
        try:
            given = await self._ask()
        except FilestoreError as error:
            self._ticket, self.failure, self._next_at = None, error, self._clock() + NEXT_TICKET_SECONDS
        else:
            self._ticket, self.failure = given.ticket, None
            self._next_at = self._clock() + max(SOONEST_TICKET_SECONDS, given.expires_in - EARLY_SECONDS)


class _Links:
    """The links to peers. Few of them keep connections that are not in use, because there may be thousands of peers."""

    def __init__(self, open_link: Callable[[Peer], Link]) -> None:
        self._open = open_link
        self._links: dict[Peer, Link] = {}
        """The link that was used last is the last one."""
        self._uses = Counter[Peer]()

    @asynccontextmanager
    async def link(self, peer: Peer) -> AsyncIterator[Link]:
        """Yield the link to a peer."""
        link = self._links.pop(peer, None) or self._open(peer)
        self._links[peer] = link
        self._uses[peer] += 1
        try:
            yield link
        finally:
            self._uses[peer] -= 1
            while len(self._links) > LINKS_LIMIT:
                unused = next((each for each in self._links if not self._uses[each]), None)
                if unused is None:
                    break
                del self._uses[unused]
                await self._links.pop(unused).close()

    async def close(self) -> None:
        """Close all connections."""
        while self._links:
            await self._links.popitem()[1].close()
