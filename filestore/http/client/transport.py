"""HTTP and HTTPS on connections of our own: one hop to a thread for a whole exchange, and no copy of a frame."""

from __future__ import annotations

import ssl
import time
from contextlib import nullcontext
from functools import partial

from filestore.http import wire
from filestore.http.client.answers import PROBLEM_LIMIT, SUCCESSES, SmallAnswer, answer_error, longer_than_announced
from filestore.http.client.channel import Channel
from filestore.http.client.channels import Channels, Places
from filestore.http.client.exchange import AnswerBody, Request
from filestore.http.client.heads import Head
from filestore.system.metrics import Stage, span
from filestore.system.proxies import Proxy


class Transport:
    """Sends requests to one server, by HTTP or HTTPS, and receives its answers. For one event loop.

    It keeps these rules:

    - Every request has the token. It is for one server only, so redirects are not followed, and over HTTPS no proxy sees it.
    - A request is sent once; only `Requests` retries.
    - As many batches run at a time as there are `Places`, and as many short requests in addition. Further requests wait without a
      time limit. If the number is a limit, there are never more connections than that.
    - A connection is kept and used again, unless the server has closed it.
    - The time limit applies to a connection that moves no byte in either direction; a whole exchange has no time limit.
    - An answer that has begun must come with `LEAST_RATE`, its head too. Only the first 64 KiB of a late document may be slower.
    - A head has at most 64 KiB. At most 32 interim answers come before it.
    - A handshake of TLS must end within the time limit, however slowly its bytes come.
    - A server may answer with an error before it has the whole request: that error is raised. After an early success, Interrupted
      is raised.
    - A successful answer announces its length by one Content-Length, or has the chunked transfer coding, whose lines do not
      count as bytes of the answer. ServerError is raised for any other: if the end of the connection were the end of the body,
      a cut answer would look whole.
    - A cancelled or failed exchange closes its connection. From then on, the transport uses neither the memory of its request nor
      that of its answer.

    `tests/contracts/test_transport.py` has a test for each rule.
    """

    def __init__(
        self,
        location: str,
        *,
        token: str | None,
        places: Places,
        stall_seconds: float,
        connect_seconds: float | None = None,
        proxy: Proxy | None = None,
        tls: ssl.SSLContext | None = None,
        tls_host: str | None = None,
        api: str = wire.API,
    ) -> None:
        """Make a transport without connecting.

        `location` is the URL of the server, `token` is printable ASCII. `connect_seconds` is how long a new connection may take;
        None means `stall_seconds`. `tls` is what `client_tls` returns; None means what it returns without a certificate.
        `tls_host` is the name in the certificate of the server, if that is not the host of `location`. `api` is what the paths of
        all requests begin with.
        """
        self._location = location
        self._has_token = token is not None
        self._channels = Channels(
            location,
            token=token,
            places=places,
            stall_seconds=stall_seconds,
            connect_seconds=connect_seconds,
            proxy=proxy,
            tls=tls,
            tls_host=tls_host,
            api=api,
        )
        self.has_answered = False
        """Whether an answer of the server has ever arrived."""

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        """Send a request, and receive the body of a successful answer into `body`. Return the seconds that this took.

        The seconds do not include the wait for other requests.

        Raises Unreachable, ProxyUnreachable, Stalled, Interrupted, ServerError, the errors of `body`, and the error
        that the server reports by an unsuccessful answer.
        """
        return await self._channels.run(partial(self._exchange, request, body), is_short=request.is_short)

    async def close(self) -> None:
        """Close all connections. Exchanges under way raise Interrupted."""
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
        body.expect(head.size, head.said.media_type)
        while received := channel.receive_into(body.memory()):
            body.add(received)
        if channel.left:
            raise longer_than_announced(self._location)
        body.end()
