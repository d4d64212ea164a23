"""What a verb of a remote repository gives to its transport: a request, memory for the answer, and the client's certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.digest import Buffer
from filestore.repository.protocol import Moved
from filestore.system.metrics import Stage


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

    The transport calls one method at a time, possibly in another thread than that of the event loop. No method may block.
    Source: `asyncio.BufferedProtocol`, which does the same for a connection.
    """

    @property
    def size(self) -> int:
        """Bytes of content that have arrived. The header of a batch is not content."""
        ...

    def expect(self, size: int | None, media_type: str) -> None:
        """Note what is announced: the size of the answer in bytes or None, and its type. This is the first call.

        `media_type` is in lower case and without parameters. It is empty if the answer does not say it.

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
