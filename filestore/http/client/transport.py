"""The seam between the verbs of a remote repository and its connections.

A verb makes a `Request` and an `AnswerBody`, and a `Transport` moves both. A verb never asks which transport it has:
`channel_transport` carries plain HTTP on sockets of our own, `aiohttp_transport` carries HTTPS by aiohttp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from filestore.core.digest import Buffer
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage
from filestore.system.proxies import Proxy


def _ignore(_: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a server. Sending it again must be harmless."""

    method: str
    path: str
    """Below `wire.API`, percent-encoded, with its query. ASCII without spaces."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Header fields of this request alone, in ASCII. The transport adds those of every request, such as the token."""
    body: bytes | None = None
    """None: the request has no body."""
    frames: Sequence[Buffer] = ()
    """They follow `body` in the body of the request. Their memory is the caller's."""
    moved: Moved = _ignore
    """Is told how many bytes of `frames` have just left. It may be called in another thread than that of the event loop."""
    stage: Stage = Stage.WAIT
    """What its time counts as: SEND for a batch that is sent, RECEIVE for one that is received, WAIT for all others."""

    @property
    def is_short(self) -> bool:
        """Whether it has a place of its own, so that it never waits until a batch has been moved."""
        return self.stage is Stage.WAIT

    @property
    def frames_size(self) -> int:
        """Bytes of `frames`."""
        return sum(len(frame) for frame in self.frames)

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self.body or b"") + self.frames_size


class AnswerBody(Protocol):
    """Memory for the body of an answer, which takes the body as it arrives.

    Its methods do not block, and one call at a time is made. The thread may be another one than that of the event loop.
    Source: `asyncio.BufferedProtocol`, which does the same for a connection.
    """

    def expect(self, size: int | None) -> None:
        """Take note of how many bytes the answer says to have; None where it does not say so. This is the first call.

        Raises LimitExceeded.
        """
        ...

    def memory(self) -> memoryview:
        """Memory for the next bytes. It is empty where the answer has to end.

        No byte is written there after `exchange` has ended.
        """
        ...

    def add(self, size: int) -> None:
        """Take note that the first `size` bytes of `memory()` have arrived.

        Raises InvalidBatch, Interrupted, LimitExceeded where they cannot be right.
        """
        ...

    def end(self) -> None:
        """Take note that the answer has ended. This is the last call. Raises Interrupted where bytes are missing."""
        ...


class Transport(Protocol):
    """Moves requests to one server, and its answers back. For one event loop.

    - Every request carries the token, which is for one server only: no redirect is followed, and over HTTPS no proxy sees it.
    - A request is sent once. `RemoteRepository` alone tries again.
    - Up to `count` batches move at a time, and besides as many short requests. Others wait for their turn, without a time limit.
    - A connection is kept and used again, but not where the server has closed it.
    - The time limit is for a connection that moves no byte in either direction; an exchange as a whole has none.
    - A server may answer with an error before it has the whole request: that error is raised. An early success is not believed.
    - A cancelled exchange gives its connection up, and from then on uses the memory of its request and of its answer no more.
      The same holds for an exchange that fails.

    `tests/contracts/test_transport.py` has a test for each rule.
    """

    def __init__(self, location: str, *, token: str | None, count: int, stall_seconds: float, proxy: Proxy | None = None) -> None:
        """Asks nothing yet. `location` is the URL of the server, `token` printable ASCII, `proxy` the way to the server."""
        ...

    @property
    def has_answered(self) -> bool:
        """Whether an answer of the server has ever arrived."""
        ...

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        """Send a request and put the body of a successful answer into `body`; how many seconds that took.

        The time counts from the moment at which the request has its turn.

        Raises Unreachable, ProxyUnreachable, Stalled, Interrupted, ServerError, what `body` raises, and the error that an
        unsuccessful answer stands for.
        """
        ...

    async def close(self) -> None:
        """Close all connections. What is under way raises Interrupted."""
        ...
