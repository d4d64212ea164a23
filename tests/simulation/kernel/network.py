"""Connections between simulated machines: bytes that are under way, delays, partitions and cuts."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tests.simulation.kernel.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.simulation.kernel.process import Machine, Process

DELAY_SECONDS = 0.0005
_CAPACITIES = (512, 4096, 65536, 262144)
"""How many bytes a direction of a connection holds. A small one makes partial sends."""
Address = tuple[str, int]


class Watcher(Protocol):
    """Something that waits for sockets."""

    def notify(self) -> None:
        """Take note that a socket has changed."""


class Endpoint:
    """One end of a connection, or a socket that listens or that is not connected yet. Several descriptors may name it."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.references = 0
        self.local: Address | None = None
        self.remote: Address | None = None
        self.peer: Endpoint | None = None
        self.backlog: deque[Endpoint] | None = None
        """The connections that were not accepted yet. None if it does not listen."""
        self.is_connecting = False
        self.connect_error = 0
        self.error = 0
        """The error of the next call, such as ECONNRESET."""
        self.is_reset = False
        self.received = bytearray()
        self.has_end = False
        """Whether the peer sends no more."""
        self.under_way: deque[bytes | None] = deque()
        """What this end has sent and the peer has not received yet. None is the end."""
        self.under_way_size = 0
        self.is_sending = True
        self.capacity = 0
        self.low_water = 1
        self.sent_size = self.received_size = 0
        """Bytes that the peer has received, and bytes that this end has received."""
        self.watchers: list[Watcher] = []
        self.is_closed = False

    @property
    def is_connected(self) -> bool:
        """Whether it has a peer, also one that is gone."""
        return self.remote is not None and not self.is_connecting

    @property
    def is_readable(self) -> bool:
        """Whether a read does not wait."""
        if self.backlog is not None:
            return bool(self.backlog)
        if self.error or self.is_reset or self.has_end:
            return True
        return len(self.received) >= min(self.low_water, self.capacity or 1) if self.received else False

    @property
    def free(self) -> int:
        """How many bytes can be sent without a wait."""
        peer = self.peer
        held = self.under_way_size + (len(peer.received) if peer is not None else 0)
        return max(0, self.capacity - held)

    @property
    def is_writable(self) -> bool:
        """Whether a write does not wait."""
        if self.is_connecting or self.backlog is not None:
            return False
        return bool(self.connect_error or self.error or self.is_reset or not self.is_sending or self.free)

    def changed(self) -> None:
        """Tell all that wait for it."""
        for watcher in list(self.watchers):
            watcher.notify()

    def send(self, data: bytes) -> None:
        """Put bytes under way. There must be space for them."""
        self.under_way.append(data)
        self.under_way_size += len(data)
        self.network.deliver_later(self)

    def end(self) -> None:
        """Send no more."""
        if self.is_sending and self.is_connected:
            self.is_sending = False
            self.under_way.append(None)
            self.network.deliver_later(self)

    def deliver(self) -> None:
        """Let the peer receive the next piece that is under way."""
        peer = self.peer
        if not self.under_way or peer is None:
            return
        piece = self.under_way.popleft()
        if piece is None:
            peer.has_end = True
        else:
            self.under_way_size -= len(piece)
            if peer.is_closed:
                self.reset()
                return
            self.sent_size += len(piece)
            peer.received_size += len(piece)
            peer.received += piece
        peer.changed()

    def reset(self, code: int = errno.ECONNRESET) -> None:
        """Break the connection at this end."""
        if not self.is_reset:
            self.is_reset, self.error = True, code
            self.received.clear()
            self.under_way.clear()
            self.under_way_size = 0
            self.changed()

    def close(self) -> None:
        """Close the last descriptor."""
        if self.is_closed:
            return
        self.is_closed = True
        self.network.forget(self)
        for waiting in self.backlog or ():
            waiting.close()
        peer = self.peer
        if peer is None:
            return
        if self.received and not self.is_reset:
            peer.reset()
        else:
            self.end()


class Network:
    """All connections of a simulation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.delay_seconds = DELAY_SECONDS
        """The longest time that a connect or a piece of data takes."""
        self.endpoints: list[Endpoint] = []
        self._listeners: dict[Address, list[Endpoint]] = {}
        self._ports = 40000
        self._partitions: set[frozenset[str]] = set()
        self._held: list[Callable[[], None]] = []

    def new(self, process: Process) -> Endpoint:
        """Return a socket of a process."""
        endpoint = Endpoint(self, process)
        self.endpoints.append(endpoint)
        return endpoint

    def forget(self, endpoint: Endpoint) -> None:
        """Remove a socket that was closed."""
        if endpoint in self.endpoints:
            self.endpoints.remove(endpoint)
        if endpoint.backlog is not None and endpoint.local is not None:
            self._listeners[endpoint.local].remove(endpoint)

    def listen(self, endpoint: Endpoint) -> None:
        """Accept connections to the local address of a socket."""
        assert endpoint.local is not None
        endpoint.backlog = deque()
        self._listeners.setdefault(endpoint.local, []).append(endpoint)

    def new_port(self) -> int:
        """Return a free port."""
        self._ports += 1
        return self._ports

    def connect(self, endpoint: Endpoint, address: Address) -> None:
        """Begin to connect a socket."""
        endpoint.is_connecting, endpoint.remote = True, address
        endpoint.local = (endpoint.process.machine.address, self.new_port())
        self._later(endpoint.process.machine.address, address[0], lambda: self._connected(endpoint, address))

    def deliver_later(self, endpoint: Endpoint) -> None:
        """Let the next piece that an end has sent arrive after a delay. Pieces arrive in order."""
        assert endpoint.local is not None
        assert endpoint.remote is not None
        self._later(endpoint.local[0], endpoint.remote[0], endpoint.deliver)

    def cut(self, first: Process, second: Process) -> None:
        """Reset all connections between two processes."""
        for endpoint in list(self.endpoints):
            peer = endpoint.peer
            if peer is not None and {endpoint.process, peer.process} == {first, second}:
                self._cut(endpoint)

    def cut_one(self, process: Process) -> bool:
        """Reset one connection of a process. Return False if it has none."""
        found = [endpoint for endpoint in self.endpoints if endpoint.process is process and endpoint.peer is not None]
        if not found:
            return False
        self._cut(found[int(self._scheduler.random.random() * len(found))])
        return True

    def partition(self, first: Machine, second: Machine) -> None:
        """Let nothing pass between two machines until `heal`."""
        self._partitions.add(frozenset({first.address, second.address}))

    def heal(self, first: Machine, second: Machine) -> None:
        """End a partition. What was held arrives."""
        self._partitions.discard(frozenset({first.address, second.address}))
        held, self._held = self._held, []
        for arrive in held:
            arrive()

    def end_process(self, process: Process) -> None:
        """Close all sockets of a process that has ended. Its peers see an end or a reset, by the seed."""
        for endpoint in [each for each in self.endpoints if each.process is process]:
            if endpoint.peer is not None and self._scheduler.random.random() < 1 / 2:
                endpoint.peer.reset()
            endpoint.close()

    def _cut(self, endpoint: Endpoint) -> None:
        peer = endpoint.peer
        endpoint.reset()
        if peer is not None:
            peer.reset()

    def _later(self, sender: str, receiver: str, arrive: Callable[[], None]) -> None:
        pair = frozenset({sender, receiver})

        def pass_on() -> None:
            if pair in self._partitions:
                self._held.append(pass_on)
            else:
                arrive()

        self._scheduler.at(self._scheduler.now + self._scheduler.random.random() * self.delay_seconds, pass_on)

    def _connected(self, endpoint: Endpoint, address: Address) -> None:
        if endpoint.is_closed or not endpoint.is_connecting:
            return
        endpoint.is_connecting = False
        listeners = self._listeners.get(address)
        if not listeners:
            endpoint.connect_error = errno.ECONNREFUSED
            endpoint.remote = None
            endpoint.changed()
            return
        random = self._scheduler.random
        listener = listeners[int(random.random() * len(listeners))]
        accepted = self.new(listener.process)
        accepted.local, accepted.remote = address, endpoint.local
        accepted.peer, endpoint.peer = endpoint, accepted
        accepted.capacity = endpoint.capacity = _CAPACITIES[int(random.random() * len(_CAPACITIES))]
        assert listener.backlog is not None
        listener.backlog.append(accepted)
        listener.changed()
        endpoint.changed()
