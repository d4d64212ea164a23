"""Stand for an object store that signs URLs: the frames of a folder, over HTTP, for whoever has a URL that has not ended."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from filestore.core.digest import Buffer, Digest
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores.disk import store_for_reading
from filestore.repository.stores.protocol import ChunkStore, FrameUrl
from tests.support.listening import listening

_KEY = b"the key that signs URLs in tests"


def _signature(target: str, end: int) -> str:
    return hmac.new(_KEY, f"{target} {end}".encode(), sha256).hexdigest()


class SigningStore:
    """A store with the frames of another one, and with a URL for each of them. In the process of a server."""

    def __init__(self, inner: ChunkStore, url: str) -> None:
        """`url` is what all URLs begin with, as that of a `FrameServer`."""
        self._inner = inner
        self._url = url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def frame_urls(self, namespace: str, digests: Sequence[Digest], *, seconds: float) -> list[FrameUrl | None]:
        """Sign a URL for each frame."""
        sizes = await self._inner.sizes(namespace, digests)
        end = int(time.time() + seconds)
        urls = (f"/{namespace}/{digest}?end={end}&signature={_signature(f'/{namespace}/{digest}', end)}" for digest in digests)
        return [FrameUrl(self._url + url, size) if size else None for url, size in zip(urls, sizes, strict=True)]


Answer = Callable[[str, bytes], bytes | None]
"""A function that returns what is sent in the place of a whole answer, which it gets. None closes the connection."""


@dataclass
class FrameServer:
    """A server of frames that is running."""

    root: Path
    port: int = 0
    heads: list[list[str]] = field(default_factory=list)
    """The lines of the heads of all requests."""
    sent_size: int = 0
    """Bytes of the frames that were sent."""
    open_now: int = 0
    most_open: int = 0
    change: Answer = lambda _, answer: answer
    seconds_on: float = 0.0
    """How far its clock is ahead."""

    @property
    def url(self) -> str:
        """What the URLs of frames begin with."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
                self.heads.append(head)
                target = head[0].split()[1]
                answer = self.change(target, await self.answer(target))
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_now -= 1

    async def answer(self, target: str) -> bytes:
        """Return the whole answer to a request."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        end = int(query.get("end", "0"))
        if query.get("signature") != _signature(parts.path, end) or time.time() + self.seconds_on > end:
            return _answer("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>", kind="application/xml")
        _, namespace, digest = parts.path.split("/")
        memory = memoryview(bytearray(FRAME_LIMIT))
        [frame] = await store_for_reading(self.root).read_into(namespace, [Digest.parse(digest)], memory)
        if frame is None:
            return _answer("404 Not Found", b"", kind="application/xml")
        self.sent_size += len(frame)
        return _answer("200 OK", frame, kind="application/octet-stream")


def _answer(status: str, body: Buffer, *, kind: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + bytes(body)


@asynccontextmanager
async def serving_frames(root: Path) -> AsyncIterator[FrameServer]:
    """Serve the frames of the repository in `root` until the end of the block."""
    server = FrameServer(root)
    async with listening(server.handle) as port:
        server.port = port
        yield server
