"""The limits of a server, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from filestore.repository.protocol import GRACE_SECONDS, SIGNED_SECONDS
from filestore.system.machine import core_count, memory_size

CORES_OF_PROCESS = 4
"""So many cores are kept busy by the threads of one server process before its interpreter lock limits it."""
MEMORY_OF_PROCESS = 512 << 20
"""Bytes of memory to plan for a server process."""
_LEAST_MEMORY = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The limits of one server process."""

    stall_seconds: float = 30.0
    """How long a connection may move no byte. Stalled is raised after that."""
    memory_limit: int = 128 << 20
    """Bytes of request and answer bodies that may be in memory at the same time (I6). Pushes of uploads have 96 MiB
    more, and the manifests of files that are read have 80 MiB more.
    """
    upload_limit: int | None = None
    """The largest file in bytes that is accepted, in whichever way it comes. None means any size."""
    chunks_limit: int | None = None
    """The most chunks of a file that is pushed. None means as many as a manifest of 64 MiB has."""
    request_limit: int = 64 << 20
    """The largest body of a request in bytes, apart from files that are uploaded by form or in parts."""
    uploads_limit: int = 10_000
    """The most uploads in progress of each namespace, in all processes together."""
    uploads_size_limit: int | None = None
    """The most bytes of unfinished uploads of each namespace, in all processes together. None means half of the space that
    would be free without them.
    """
    upload_idle_seconds: float = 86400.0
    """After this time without a new byte, an upload in parts is removed. A question about it, or an empty part, does not
    count.
    """
    upload_seconds: float = 7 * 86400.0
    """After this time, an upload in parts is removed, whatever arrives."""
    connections_limit: int = 4096
    """The most connections of one server process."""
    address_connections_limit: int = 2048
    """The most connections of one server process from one address of the network."""
    head_seconds: float = 10.0
    """How long the head of a request may take, from its first byte, or from the start of a new connection."""
    drain_seconds: float = 30.0
    """How long requests in progress may continue after a stop signal."""
    gc_grace: float = GRACE_SECONDS
    """Seconds for which collection keeps a chunk that no record needs, after a push last used it."""
    gc_rate: int = 20_000
    """How many chunks a second the collection of a server looks at. 0 means that it does not collect."""
    gc_hours: tuple[int, int] | None = None
    """The hours of the day, in local time, in which a server collects: the first one, and the end. None means any."""
    signed_seconds: int = SIGNED_SECONDS
    """How long a signed URL of a file is valid."""
    scrub_rate: int = 10_000_000
    """The most bytes per second that a scrub of stored content reads. 0 means that there is none."""
    scrub_days: int = 30
    """In how many days a scrub reads everything once, if its rate allows it."""
    guesses_limit: int = 100
    """How many wrong tokens and signatures of an address are answered as such in a minute."""
    presigned_reads: bool = True
    """Whether clients get URLs of frames, where the store has some, and read the frames without this server."""
    public_url: str | None = None
    """The URL of the server as clients know it, for links and signed URLs. None means the one that a request names."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """The networks of the proxies that say in headers what the address of a client is, and which URL it used."""
    tls_by_proxy: tuple[IPv4Network | IPv6Network, ...] = ()
    """The networks of the proxy that speaks TLS for the server. If there are any, only these can connect."""

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the proxies whose headers count: `trusted_proxies`, or else `tls_by_proxy`."""
        return self.trusted_proxies or self.tls_by_proxy

    def chosen_workers(self) -> int:
        """Return how many processes a server has on this machine if nobody says it.

        One for every four cores, and one on fewer than eight. There are fewer where the memory of the machine, or `memory_limit`,
        does not suffice for them.
        """
        by_memory = min(memory_size() // MEMORY_OF_PROCESS, self.memory_limit // _LEAST_MEMORY)
        return max(1, min(core_count() // CORES_OF_PROCESS, by_memory))

    def shared_by(self, count: int) -> ServerLimits:
        """Return the limits of each of `count` processes that have these limits together."""
        return replace(
            self,
            memory_limit=self.memory_limit // count,
            connections_limit=-(-self.connections_limit // count),
            address_connections_limit=-(-self.address_connections_limit // count),
            guesses_limit=-(-self.guesses_limit // count),
        )


DEFAULT_SERVER_LIMITS = ServerLimits()
