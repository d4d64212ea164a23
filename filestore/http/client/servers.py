"""The servers of one repository. Requests go to one of them until it fails, then to the next one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from filestore.errors import FilestoreError, NoServerLeft
from filestore.http.client.transport import Transport
from filestore.system.proxies import Proxy
from filestore.system.retries import Clock

LEFT_OUT_SECONDS = 15.0
"""How long a server that failed is left out while another one is there."""


class Server:
    """One server, and what is known of it."""

    def __init__(self, location: str, transport: Transport, proxy: Proxy | None) -> None:
        self.location = location
        self.transport = transport
        self.proxy = proxy
        self.is_checked = False
        """Whether it is known to be a server of the same repository as the others."""
        self.left_out_until = 0.0
        self.failure: FilestoreError | None = None
        """Why it is left out."""


class Servers:
    """The servers of one repository, in the order in which they are used. For one event loop."""

    def __init__(self, servers: Sequence[Server], *, clock: Clock = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self._all = list(servers)
        self._clock = clock
        self.current = self._all[0]
        """The server to which requests go."""

    def __len__(self) -> int:
        return len(self._all)

    @property
    def have_answered(self) -> bool:
        """Whether one of them has ever answered."""
        return any(server.transport.has_answered for server in self._all)

    @property
    def has_another(self) -> bool:
        """Whether requests go to a server that is not left out, after another one has failed."""
        return len(self._all) > 1 and self.current.left_out_until <= self._clock()

    def locations(self) -> list[str]:
        """Return the URLs, that of the current server first."""
        first = self._all.index(self.current)
        return [server.location for server in self._all[first:] + self._all[:first]]

    async def close(self) -> None:
        """Close all connections. Requests under way raise Interrupted."""
        for server in self._all:
            await server.transport.close()

    def leave_out(self, failed: Server, failure: FilestoreError) -> None:
        """Let requests go to another server for some time. The one whose time ends first is used if all are."""
        now = self._clock()
        failed.left_out_until, failed.failure, failed.is_checked = now + LEFT_OUT_SECONDS, failure, False
        if failed is self.current:
            first = self._all.index(failed)
            others = self._all[first + 1 :] + self._all[:first]
            self.current = min([*others, failed], key=lambda server: max(now, server.left_out_until))

    def note_answer(self, server: Server) -> None:
        """Note that a server works."""
        server.left_out_until, server.failure = 0.0, None

    def failure(self, last: FilestoreError) -> FilestoreError:
        """Return the error to raise when no try is left: `last`, or that of all servers if all of them have failed."""
        failures = [server.failure for server in self._all if server.failure is not None]
        if len(self._all) == 1 or len(failures) < len(self._all) or last not in failures:
            return last
        return NoServerLeft("; ".join(map(str, failures)))
