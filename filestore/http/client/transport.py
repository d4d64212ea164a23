"""The contract between the verbs of a remote repository and its connections.

A verb makes a `Request` and an `AnswerBody`; a `Transport` sends the one and fills the other. A verb never asks whether it has
HTTP or HTTPS: `channel_transport` is for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.digest import Buffer
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage
from filestore.system.proxies import Proxy


def _ignore(_: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a server, which must be idempotent."""

    method: str
    path: str
    """Below `wire.API`, percent-encoded, with its query. ASCII without spaces."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Header fields of this request alone, in ASCII. The transport adds those of every request, such as the token."""
    body: bytes | None = None
    """The body, or its beginning if there are `frames`. None if the request has no body."""
    frames: Sequence[Buffer] = ()
    """Frames that follow `body` in the body of the request. Their memory belongs to the caller."""
    moved: Moved = _ignore
    """Called with the number of bytes of `frames` that were just sent, possibly in another thread than that of the event loop."""
    is_late: bool = False
    """Whether the server may send blanks before the document, one per second, while it works."""
    stage: Stage = Stage.WAIT
    """The stage for which its time is counted. It is SEND for a batch to send, RECEIVE for a batch to receive,
    otherwise WAIT.
    """

    @property
    def is_short(self) -> bool:
        """Whether the request is not for a batch. Such a request is short, and never waits for batches."""
        return self.stage is Stage.WAIT

    @property
    def frames_size(self) -> int:
        """Bytes of `frames`."""
        return sum(len(frame) for frame in self.frames)

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self.body or b"") + self.frames_size


class ClientCertificate(NamedTuple):
    """The files of the certificate of a client, in PEM."""

    cert: Path
    key: Path | None = None
    """The private key. None means that it is in the file of the certificate."""


class AnswerBody(Protocol):
    """Memory for the body of an answer, which is filled as the body arrives.

    A transport calls one method at a time, possibly in another thread than that of the event loop. No method may block.
    Source: `asyncio.BufferedProtocol`, which does the same for a connection.
    """

    @property
    def size(self) -> int:
        """Bytes of content that have arrived. The header of a batch is not content."""
        ...

    def expect(self, size: int | None) -> None:
        """Note the announced size of the answer in bytes, or None if it is not announced. This is the first call.

        Raises LimitExceeded if the size is too large.
        """
        ...

    def memory(self) -> memoryview:
        """Return memory for the next bytes. It is empty if the answer must end here."""
        ...

    def add(self, size: int) -> None:
        """Note that the first `size` bytes of `memory()` have arrived.

        Raises InvalidBatch, Interrupted or LimitExceeded if these bytes cannot be right.
        """
        ...

    def end(self) -> None:
        """Note that the answer has ended. This is the last call. Raises Interrupted if bytes are missing."""
        ...


class Transport(Protocol):
    """Sends requests to one server and receives its answers. For one event loop.

    Every transport keeps these rules:

    - Every request has the token. It is for one server only, so redirects are not followed, and over HTTPS no proxy sees it.
    - A request is sent once; only `Requests` retries.
    - Up to `count` batches run at a time, and as many short requests in addition. Further requests wait without a time limit.
    - A connection is kept and used again, unless the server has closed it.
    - The time limit applies to a connection that moves no byte in either direction; a whole exchange has no time limit.
    - An answer that has begun must come with `LEAST_RATE`, its head too. Only the first 64 KiB of a late document may be slower.
    - A head has at most 64 KiB. At most 32 interim answers come before it.
    - A handshake of TLS must end within the time limit, however slowly its bytes come.
    - A server may answer with an error before it has the whole request: that error is raised. After an early success, Interrupted
      is raised.
    - A cancelled or failed exchange closes its connection. From then on, the transport uses neither the memory of its request nor
      that of its answer.

    `tests/contracts/test_transport.py` has a test for each rule.
    """

    def __init__(self, location: str, *, token: str | None, count: int, stall_seconds: float, proxy: Proxy | None = None) -> None:
        """Make a transport without connecting. `location` is the URL of the server, `token` is printable ASCII."""
        ...

    @property
    def has_answered(self) -> bool:
        """Whether an answer of the server has ever arrived."""
        ...

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        """Send a request, and receive the body of a successful answer into `body`. Return the seconds that this took.

        The seconds do not include the wait for other requests.

        Raises Unreachable, ProxyUnreachable, Stalled, Interrupted, ServerError, the errors of `body`, and the error
        that the server reports by an unsuccessful answer.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Exchanges under way raise Interrupted."""
        ...
