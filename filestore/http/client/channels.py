"""Keep the channels to one server, and share threads and connections among the servers of a client."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from aiohappyeyeballs import AddrInfoType, start_connection
from yarl import URL

from filestore.errors import ProxyUnreachable, Stalled, Unreachable
from filestore.http import wire
from filestore.http.client.answers import no_connection
from filestore.http.client.channel import Channel, Peer
from filestore.http.client.connection import client_tls
from filestore.system.connection_errors import failure_reason
from filestore.system.proxies import Proxy
from filestore.system.rate_limit import RateLimit
from filestore.system.threads import in_stoppable_thread

T = TypeVar("T")

# RFC 8305, section 8.
_NEXT_ADDRESS_SECONDS = 0.25


class Places:
    """How many requests run at a time, to all servers that share this object, and the threads of these requests.

    Up to `count` requests run at a time, and as many short ones in addition, so that these never wait for batches. If `count` is
    a limit, short ones are counted too: then one of them may wait for the end of a batch, and there are never more connections
    than that. For one event loop.
    """

    def __init__(self, count: int, *, is_limit: bool = False, rate: RateLimit | None = None) -> None:
        """Without an event loop, it may be made and dropped. `rate` limits the bytes of all connections together."""
        self.is_limit = is_limit
        self.rate = rate
        self.batches = asyncio.Semaphore(count)
        self.short = self.batches if is_limit else asyncio.Semaphore(count)
        self.threads = ThreadPoolExecutor(max_workers=2 * count, thread_name_prefix="filestore-channel")
        self._users: list[Channels] = []

    def others(self, count: int) -> Places:
        """Return places for other servers: these if their number is a limit, or else `count` more, within the same rate."""
        return self if self.is_limit else Places(count, rate=self.rate)

    def add(self, channels: Channels) -> None:
        """Let `channels` use these places."""
        self._users.append(channels)

    def remove(self, channels: Channels) -> None:
        """Forget `channels`, which are closed."""
        if channels in self._users:
            self._users.remove(channels)

    def close_idle(self, *, except_for: Channels | None = None) -> None:
        """Close the connections that carry no request, except those of `except_for`."""
        for channels in self._users:
            if channels is not except_for:
                channels.close_idle()

    @asynccontextmanager
    async def lending(self, count: int) -> AsyncIterator[None]:
        """Have `count` connections less for a block, so that other processes may have them. One call at a time."""
        lent = 0
        try:
            for _ in range(count):
                await self.batches.acquire()
                lent += 1
            # Those in use are within the limit now, and none is made while one is idle.
            self.close_idle()
            yield
        finally:
            for _ in range(lent):
                self.batches.release()

    def close(self) -> None:
        """End the threads, whose requests must have been told to end."""
        self.threads.shutdown(wait=False)


class Channels:
    """The channels to one server, each opened when it is first needed and then kept. For one event loop."""

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
        """`location` is an `http://` or `https://` URL, `token` printable ASCII. `api` is what all paths of requests begin with.

        A new connection may take `connect_seconds`, or `stall_seconds` if that is None.

        Without TLS, a proxy is sent whole URLs (RFC 9112, section 3.2.2). With TLS, it is asked for a tunnel, and sees neither
        token nor content. `tls` is what `client_tls` returns, which is called when it is needed if `tls` is None. `tls_host` is
        the name in the certificate, if that is not the host of the URL.
        """
        url = URL(location)
        is_secure = url.scheme == "https"
        fields = [f"Host: {url.host_port_subcomponent}", "User-Agent: filestore"]
        fields += [f"Authorization: Bearer {token}"] if token is not None else []
        path = url.raw_path.rstrip("/") + api
        to_proxy = (
            [f"Proxy-Authorization: {proxy.authorization}"] if proxy is not None and proxy.authorization is not None else []
        )
        tunnel = None
        if proxy is not None and is_secure:
            host = url.host_subcomponent
            asked = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}", "User-Agent: filestore", *to_proxy]
            tunnel = "\r\n".join([*asked, "", ""]).encode("ascii")
        elif proxy is not None:
            path = f"http://{url.host_port_subcomponent}{path}"
            fields += to_proxy
        make_tls = (lambda: tls or client_tls()) if is_secure else None
        self._peer = Peer(location, path, fields, tls_host or url.raw_host or "", make_tls, tunnel)
        self._proxy = proxy
        self._address = (url.raw_host, url.port) if proxy is None else (proxy.host, proxy.port)
        self._stall_seconds = stall_seconds
        self._connect_seconds = stall_seconds if connect_seconds is None else connect_seconds
        self._places = places
        places.add(self)
        self._stalled: set[str] = set()
        """Addresses of the server at which a request stalled, of those that its name has."""
        self._idle: list[Channel] = []
        self._busy: set[Channel] = set()

    async def run(self, request: Callable[[Channel], T], *, is_short: bool = False) -> T:
        """Call `request(channel)` in a thread, with a channel that no other call uses at the same time.

        A cancelled call ends its request and waits for the thread, so that the thread never uses memory that the caller reuses.

        Raises Unreachable, Stalled, and what `request` raises.
        """
        async with self._places.short if is_short else self._places.batches:
            channel = self._take_idle() or await self._connect()
            self._busy.add(channel)
            try:
                return await in_stoppable_thread(self._places.threads, channel.abort, _through, channel, request)
            except Stalled:
                # The host is away or cut off, and others with the same name may not be.
                self._stalled.add(channel.address)
                self.close_idle()
                raise
            finally:
                self._busy.remove(channel)
                if channel.is_reusable:
                    self._idle.append(channel)
                else:
                    channel.close()

    def close(self) -> None:
        """Close idle channels and end the requests that are under way."""
        self._places.remove(self)
        self.close_idle()
        for channel in self._busy:
            channel.abort()

    def close_idle(self) -> None:
        """Close the channels that carry no request."""
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> Channel | None:
        while self._idle:
            # Take the one used last, because its congestion window has not shrunk yet.
            channel = self._idle.pop()
            if channel.is_reusable:
                return channel
            channel.close()
        return None

    async def _connect(self) -> Channel:
        if self._places.is_limit:
            self._places.close_idle(except_for=self)
        loop = asyncio.get_running_loop()
        host, port = self._address
        try:
            async with asyncio.timeout(self._connect_seconds):
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                connected = await start_connection(self._chosen(addresses), happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        except OSError as error:
            # Those that are left cannot be reached either, so all are tried again.
            self._stalled.clear()
            # A TimeoutError without a number comes from the timer above, any other one from the system.
            if isinstance(error, TimeoutError) and error.errno is None:
                raise Stalled(self._peer.location, self._connect_seconds) from None
            raise self._unreachable(error) from None
        except UnicodeError as error:
            raise self._unreachable(error) from None
        # Some systems refuse this for a connection that has just been closed; the request will then fail.
        address = ""
        with suppress(OSError):
            address = str(connected.getpeername()[0])
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Channel(connected, self._peer, stall_seconds=self._stall_seconds, address=address, rate=self._places.rate)

    def _chosen(self, addresses: Sequence[AddrInfoType]) -> Sequence[AddrInfoType]:
        """Return the addresses at which no request stalled, or all if none is left."""
        left = [address for address in addresses if str(address[4][0]) not in self._stalled]
        if not left:
            self._stalled.clear()
        return left or addresses

    def _unreachable(self, error: Exception) -> Unreachable:
        if self._proxy is not None:
            return ProxyUnreachable(self._peer.location, self._proxy.url, self._proxy.source, failure_reason(error))
        return no_connection(self._peer.location, error)


def _through(channel: Channel, request: Callable[[Channel], T]) -> T:
    channel.open()
    return request(channel)
