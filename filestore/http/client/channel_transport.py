"""HTTP and HTTPS on connections of our own: one hop to a thread for a whole exchange, and no copy of a frame."""

from __future__ import annotations

import ssl
import time
from contextlib import nullcontext
from functools import partial

from filestore.http.client.answers import PROBLEM_LIMIT, SUCCESSES, SmallAnswer, answer_error, longer_than_announced
from filestore.http.client.channel import Channel, Channels
from filestore.http.client.heads import Head
from filestore.http.client.transport import AnswerBody, Request
from filestore.system.metrics import Stage, span
from filestore.system.proxies import Proxy


class ChannelTransport:
    """A `Transport` for `http://` and `https://` URLs.

    A successful answer must announce its length by one Content-Length, or have the chunked transfer coding. ServerError is raised
    for any other: if the end of the connection were the end of the body, a cut answer would look whole.
    """

    def __init__(
        self,
        location: str,
        *,
        token: str | None,
        count: int,
        stall_seconds: float,
        proxy: Proxy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is what `client_tls` returns. If it is None, that of every client is used."""
        self._location = location
        self._has_token = token is not None
        self._channels = Channels(location, token=token, count=count, stall_seconds=stall_seconds, proxy=proxy, tls=tls)
        self.has_answered = False

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        return await self._channels.run(partial(self._exchange, request, body), is_short=request.is_short)

    async def close(self) -> None:
        self._channels.close()

    def _exchange(self, request: Request, body: AnswerBody, channel: Channel) -> float:
        """Send the request and receive the answer through `channel`. Return the seconds. It runs in a thread."""
        started = time.monotonic()
        head = channel.ask(
            request.path,
            request.body,
            request.frames,
            method=request.method,
            fields=request.fields,
            moved=request.moved,
            is_late=request.is_late,
        )
        self.has_answered = True
        if head.status not in SUCCESSES:
            problem = SmallAnswer(self._location, limit=PROBLEM_LIMIT)
            self._receive(channel, head, problem)
            sent, has_token = request.size, self._has_token
            raise answer_error(self._location, head.status, problem.content, head.said, sent_size=sent, has_token=has_token)
        # The channel has counted the time until here.
        with span(Stage.RECEIVE) if request.stage is Stage.RECEIVE else nullcontext() as receiving:
            self._receive(channel, head, body)
            if receiving is not None:
                receiving.add(body.size)
        return time.monotonic() - started

    def _receive(self, channel: Channel, head: Head, body: AnswerBody) -> None:
        """Receive the rest of the answer into `body`."""
        body.expect(head.size)
        while received := channel.receive_into(body.memory()):
            body.add(received)
        if channel.left:
            raise longer_than_announced(self._location)
        body.end()
