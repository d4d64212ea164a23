"""The repository of a server whose frames come from peers, as far as these give them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from filestore.core.digest import Digest
from filestore.http.client.channels import Places
from filestore.http.client.repository import RemoteRepository
from filestore.http.client.transport import Transport
from filestore.peers.addresses import Addresses, Peer
from filestore.peers.frames import PeerFrames
from filestore.repository.protocol import Moved

CONNECTIONS = 16
"""The most requests to peers at a time, where nobody limits the connections. The frames of one batch come from many peers."""
CONNECT_SECONDS = 3.0
"""How long a connection to a peer may take. A machine that is off does not even refuse one."""


class PeerRepository(RemoteRepository):
    """The repository of a server. Only `get` asks peers first, and the server for what they do not give.

    Peers get a ticket that the server gives, and never the token. They are reached without a proxy and without the certificate of
    the client.
    """

    def __init__(self, url: str | Sequence[str], *, peers: Addresses, stall_seconds: float = 30, **options: Any) -> None:
        """Make a client without asking anybody anything yet. The other arguments are those of `RemoteRepository`."""
        # First: the rest tells of forks, and another thread may fork at that moment.
        self._peer_stall_seconds = stall_seconds
        self._peer_places: Places | None = None
        self._peers = PeerFrames(peers, get=super().get, ticket=self.peer_ticket, open_link=self._open_link)
        super().__init__(url, stall_seconds=stall_seconds, **options)
        self._options = partial(self._options, peers=peers)

    @property
    def peers_size(self) -> int:
        """Bytes of the frames that peers have given, to the worker processes of ended jobs too."""
        return self._peers.received_size

    @peers_size.setter
    def peers_size(self, size: int) -> None:
        self._peers.received_size = size

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        return await self._peers.get(digests, buffer, moved)

    async def name_places(self, digests: Sequence[Digest]) -> None:  # noqa: ARG002  # of the protocol
        """Return None: few frames are had from the server."""
        return

    def after_fork(self) -> None:
        super().after_fork()
        self._peer_places = None
        self._peers.after_fork()

    async def close(self) -> None:
        await self._peers.close()
        if self._peer_places is not None and self._peer_places is not self._requests.places:
            self._peer_places.close()
        await super().close()

    def _open_places(self) -> Places:
        return self._requests.places.others(CONNECTIONS)

    def _open_link(self, peer: Peer) -> Transport:
        if self._peer_places is None:
            self._peer_places = self._open_places()
        return Transport(
            peer.url,
            token=None,
            places=self._peer_places,
            stall_seconds=self._peer_stall_seconds,
            connect_seconds=min(CONNECT_SECONDS, self._peer_stall_seconds),
            tls_host=peer.name or None,
        )
