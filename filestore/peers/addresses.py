"""Which peers there are: a list of URLs, or all addresses of a name."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from filestore.core.object_location import shown_url
from filestore.core.urls import split_urls
from filestore.errors import InvalidSetting
from filestore.system.retries import Clock
from filestore.system.threads import abandon

LOOK_UP_SECONDS = 30.0
"""How long the addresses of a name are used before they are looked up again."""
LOOK_UP_LIMIT_SECONDS = 5.0
"""The longest time that a look-up may take."""
SOONEST_SECONDS = 2.0
"""After a failure of a peer, addresses are looked up again when they are as old as this."""
PEERS_LIMIT = 4096
"""The most peers that one client knows. Of more, the first ones in the order of their texts count, for all clients alike."""
DNS, DNS_TLS = "dns:///", "dns+https:///"
_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?):([0-9]{1,5})\Z")
_EXPECTED = "peers are dns:///NAME:PORT, dns+https:///NAME:PORT, or a list of http://HOST:PORT and https://HOST:PORT"

LookUp = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host name, given a port. Raises OSError."""


class Peer(NamedTuple):
    """One peer."""

    address: str
    """HOST:PORT, by which clients rank it."""
    url: str
    name: str = ""
    """The name that its certificate has. An empty text means the host of the URL."""


class Addresses(Protocol):
    """Tells which peers there are. It can be pickled."""

    failure: str | None
    """Why none is known."""

    async def peers(self) -> list[Peer]:
        """Return all peers, in the order of their addresses. The list is empty if none is known. It raises no error."""

    def note_failure(self) -> None:
        """Note that a peer failed, so that its address may not be one of a peer any more."""

    def after_fork(self) -> None:
        """Leave a look-up that is under way to the parent."""


def parse_peers(given: str | Sequence[str]) -> Addresses:
    """Return what tells which peers there are. `given` is a dns:/// URL or URLs, also as one text. Raises InvalidSetting."""
    texts = [text.strip() for text in (split_urls(given) if isinstance(given, str) else given)]
    for start, scheme in ((DNS, "http"), (DNS_TLS, "https")):
        if len(texts) == 1 and texts[0].lower().startswith(start):
            found = _NAME.match(texts[0][len(start) :])
            if found is None or not 0 < int(found[2]) < 1 << 16:
                raise InvalidSetting("peers", f"{texts[0]!r} is not {start}NAME:PORT")
            return NamedPeers(found[1], int(found[2]), scheme=scheme)
    if not texts:
        raise InvalidSetting("peers", _EXPECTED)
    return ListedPeers(sorted({_peer_of(text) for text in texts}))


def _peer_of(text: str) -> Peer:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidSetting("peers", f"{_shown(text)!r}: {error}") from None
    is_plain = parts.path in {"", "/"} and not parts.query and not parts.fragment and parts.username is None
    if parts.scheme not in {"http", "https"} or not host or port is None or not is_plain:
        raise InvalidSetting("peers", f"{_shown(text)!r} cannot be used; {_EXPECTED}")
    return _peer(parts.scheme, host, port)


def _shown(text: str) -> str:
    """Return a text for a message, without a password that it may have."""
    return shown_url(text) if "@" in text else text


def _peer(scheme: str, host: str, port: int, *, name: str = "") -> Peer:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Peer(address, f"{scheme}://{address}", name)


class ListedPeers:
    """Peers that the user names: `Addresses`."""

    failure: str | None = None

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = list(peers)[:PEERS_LIMIT]

    async def peers(self) -> list[Peer]:
        return self._peers

    def note_failure(self) -> None:
        pass

    def after_fork(self) -> None:
        pass


async def look_up(name: str, port: int) -> list[str]:
    """Return all addresses of a host name. Raises OSError."""
    async with asyncio.timeout(LOOK_UP_LIMIT_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


class NamedPeers:
    """All addresses of a name: `Addresses`. They are looked up again from time to time. For one event loop."""

    def __init__(
        self, name: str, port: int, *, scheme: str = "http", look_up: LookUp = look_up, clock: Clock = time.monotonic
    ) -> None:
        """`clock` returns monotonic seconds. With the scheme `https`, the certificate of each peer has `name`."""
        self._name, self._port, self._scheme = name, port, scheme
        self._look_up, self._clock = look_up, clock
        self._peers: list[Peer] = []
        self._looked_up_at = -LOOK_UP_SECONDS
        self._is_doubtful = True
        """Whether the addresses may be wrong, because none is known or a peer has failed."""
        self._looking: asyncio.Task[None] | None = None
        self.failure: str | None = None

    def __reduce__(self) -> tuple[Callable[[], NamedPeers], tuple[()]]:
        """Give another process a new one."""
        return partial(NamedPeers, self._name, self._port, scheme=self._scheme), ()

    async def peers(self) -> list[Peer]:
        age = self._clock() - self._looked_up_at
        if age >= (SOONEST_SECONDS if self._is_doubtful else LOOK_UP_SECONDS) and self._looking is None:
            self._looking = asyncio.create_task(self._refresh())
        # The earlier ones are used meanwhile. All who ask first wait for the same look-up.
        if not self._peers and self._looking is not None:
            await asyncio.shield(self._looking)
        return self._peers

    def note_failure(self) -> None:
        self._is_doubtful = True

    def after_fork(self) -> None:
        abandon(self._looking)
        self._looking = None

    async def _refresh(self) -> None:
        try:
            found = await self._look_up(self._name, self._port)
        except (OSError, UnicodeError) as error:
            # The name service may be down for a while. What was right before is most often right now.
            found = []
            self.failure = f"the name {self._name} has no address: {getattr(error, 'strerror', None) or type(error).__name__}"
        finally:
            self._looking, self._looked_up_at = None, self._clock()
        self._is_doubtful = not found
        hosts = sorted({_host(text) for text in found})
        name = self._name if self._scheme == "https" else ""
        self._peers = sorted(_peer(self._scheme, host, self._port, name=name) for host in hosts)[:PEERS_LIMIT] or self._peers


def _host(address: str) -> str:
    """Return an address in the one form that it has at all clients."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address
