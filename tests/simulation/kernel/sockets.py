"""The sockets that the product sees: `socket.socket`, `select.poll` and the selector of an event loop."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import struct
from collections.abc import Iterable
from typing import Any, Self

from tests.simulation.kernel.network import Endpoint, Network
from tests.simulation.kernel.scheduler import Scheduler, Thread

FIRST_DESCRIPTOR = 1 << 24
"""Simulated sockets have numbers that no real descriptor has."""
_SIZES = struct.Struct("=120xQQ")
_Buffer = bytes | bytearray | memoryview


class SocketTable:
    """The simulated sockets by their descriptors."""

    def __init__(self, scheduler: Scheduler, network: Network) -> None:
        self.scheduler = scheduler
        self.network = network
        self._next = FIRST_DESCRIPTOR
        self._endpoints: dict[int, Endpoint] = {}

    def add(self, endpoint: Endpoint) -> int:
        """Give a socket one more descriptor."""
        self._next += 1
        self._endpoints[self._next] = endpoint
        endpoint.references += 1
        return self._next

    def endpoint(self, descriptor: int) -> Endpoint:
        """Return the socket of a descriptor. Raises OSError."""
        try:
            return self._endpoints[descriptor]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def close(self, descriptor: int) -> None:
        """Close a descriptor. The last one closes the socket."""
        endpoint = self._endpoints.pop(descriptor, None)
        if endpoint is not None:
            endpoint.references -= 1
            if not endpoint.references:
                endpoint.close()

    def ready(self, descriptor: int, events: int) -> int:
        """Return which of the events of `poll` a socket has."""
        endpoint = self._endpoints.get(descriptor)
        if endpoint is None:
            return select.POLLNVAL
        found = 0
        if events & select.POLLIN and endpoint.is_readable:
            found |= select.POLLIN
        if events & select.POLLOUT and endpoint.is_writable:
            found |= select.POLLOUT
        if endpoint.is_reset:
            found |= select.POLLERR | select.POLLHUP
        elif endpoint.has_end and not endpoint.is_sending:
            found |= select.POLLHUP
        return found

    def send(self, descriptor: int, data: _Buffer) -> int:
        """Send as many bytes as the connection takes. Raises BlockingIOError, ConnectionError."""
        endpoint = self.endpoint(descriptor)
        _raise_error(endpoint)
        if not endpoint.is_connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if not endpoint.is_sending:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        free = endpoint.free
        if not len(data):
            return 0
        if not free:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        piece = bytes(data[:free])
        endpoint.send(piece)
        return len(piece)


class Waiter:
    """Wakes the threads that wait for sockets."""

    def __init__(self, table: SocketTable) -> None:
        self._table = table
        self._threads: list[Thread] = []
        self.is_notified = False

    def notify(self) -> None:
        """Wake them."""
        self.is_notified = True
        self._table.scheduler.wake_all(self._threads)

    def watch(self, descriptor: int) -> None:
        """Be notified of a socket."""
        self._table.endpoint(descriptor).watchers.append(self)

    def leave(self, descriptor: int) -> None:
        """Be notified no more."""
        endpoint = self._table._endpoints.get(descriptor)
        if endpoint is not None and self in endpoint.watchers:
            endpoint.watchers.remove(self)

    def wait(self, operation: str, seconds: float | None) -> bool:
        """Wait until it is notified, or until `seconds` have passed. Return False then."""
        return self._table.scheduler.wait(operation, self._threads, seconds)


class SimulatedSocket:
    """A `socket.socket`."""

    def __init__(
        self,
        table: SocketTable,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002  # as in Python
        proto: int = 0,
        fileno: int | None = None,
        *,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.family, self.type, self.proto = socket.AddressFamily(family), socket.SocketKind(type & 0xF), proto
        self._table = table
        current = table.scheduler.current
        if endpoint is None:
            assert current is not None
            endpoint = table.network.new(current.process)
        self._endpoint = endpoint
        self._timeout: float | None = 0.0 if type & socket.SOCK_NONBLOCK else None
        self._descriptor = table.add(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            self._table.close(self._descriptor)

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Close it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._table.scheduler.step("close socket")
            self._table.close(descriptor)

    def detach(self) -> int:
        """Return its descriptor, which is the caller's from now on."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def dup(self) -> SimulatedSocket:
        """Return another descriptor of the same socket."""
        self._table.endpoint(self._descriptor)
        other = SimulatedSocket(self._table, self.family, self.type, self.proto, endpoint=self._endpoint)
        other._timeout = self._timeout
        return other

    def setblocking(self, flag: bool) -> None:  # as in Python
        """Let calls wait, or not."""
        self._timeout = None if flag else 0.0

    def settimeout(self, value: float | None) -> None:
        """Let calls wait so long."""
        self._timeout = value

    def gettimeout(self) -> float | None:
        """Return how long calls wait."""
        return self._timeout

    def getblocking(self) -> bool:
        """Return whether calls wait."""
        return self._timeout != 0.0

    def getsockname(self) -> tuple[str, int]:
        """Return its own address."""
        self._table.endpoint(self._descriptor)
        return self._endpoint.local or ("0.0.0.0", 0)

    def getpeername(self) -> tuple[str, int]:
        """Return the address of the peer."""
        if not self._endpoint.is_connected or self._endpoint.remote is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._endpoint.remote

    def setsockopt(self, level: int, option: int, value: Any, *_: Any) -> None:
        """Set an option. Only SO_RCVLOWAT has an effect."""
        self._table.endpoint(self._descriptor)
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT):
            self._endpoint.low_water = int(value)
            self._endpoint.changed()

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """Return an option: SO_ERROR, TCP_INFO with the sizes that were moved, or 0."""
        endpoint = self._table.endpoint(self._descriptor)
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            code, endpoint.connect_error = endpoint.connect_error or endpoint.error, 0
            return code
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO):
            return _SIZES.pack(endpoint.sent_size, endpoint.received_size)
        return bytes(size) if size else 0

    def bind(self, address: tuple[str, int]) -> None:
        """Give it an address."""
        host, port = address
        self._endpoint.local = (host, port or self._table.network.new_port())

    def listen(self, backlog: int = 128) -> None:
        """Accept connections."""
        if self._endpoint.backlog is None:
            self._table.network.listen(self._endpoint)

    def accept(self) -> tuple[SimulatedSocket, tuple[str, int]]:
        """Return the next connection, and the address of its peer."""
        self._table.scheduler.step("accept")
        endpoint = self._table.endpoint(self._descriptor)
        while not endpoint.backlog:
            self._wait(select.POLLIN, "accept")
        accepted = endpoint.backlog.popleft()
        return SimulatedSocket(self._table, self.family, self.type, self.proto, endpoint=accepted), accepted.remote or ("", 0)

    def connect(self, address: tuple[str, int]) -> None:
        """Connect it. Raises BlockingIOError while that takes time, if it does not wait."""
        self._table.scheduler.step("connect", f"{address[0]}:{address[1]}")
        self._table.network.connect(self._table.endpoint(self._descriptor), (address[0], address[1]))
        if self._timeout == 0.0:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        self._wait(select.POLLOUT, "connect")
        if code := self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))

    def send(self, data: _Buffer, flags: int = 0) -> int:
        """Send as many bytes as the connection takes now."""
        self._table.scheduler.step("send", str(len(data)))
        while True:
            try:
                # Released in any case: a caller may change the size of its buffer afterwards.
                with memoryview(data) as whole, whole.cast("B") as view:
                    return self._table.send(self._descriptor, view)
            except BlockingIOError:
                self._wait(select.POLLOUT, "send")

    def sendall(self, data: _Buffer, flags: int = 0) -> None:
        """Send all bytes."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def sendmsg(self, buffers: Iterable[_Buffer], *_: Any) -> int:
        """Send as many bytes of several buffers as the connection takes now."""
        return self.send(b"".join(bytes(buffer) for buffer in buffers))

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most `size` bytes."""
        self._table.scheduler.step("receive")
        return self._receive(size)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Receive bytes into a buffer. Return their number."""
        self._table.scheduler.step("receive")
        view = memoryview(buffer).cast("B")
        data = self._receive(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        """End one direction, or both."""
        self._table.scheduler.step("shut down socket")
        endpoint = self._table.endpoint(self._descriptor)
        if not endpoint.is_connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if how in {socket.SHUT_WR, socket.SHUT_RDWR}:
            endpoint.end()
        if how in {socket.SHUT_RD, socket.SHUT_RDWR}:
            endpoint.has_end = True
        endpoint.changed()

    def _receive(self, size: int) -> bytes:
        endpoint = self._table.endpoint(self._descriptor)
        while not endpoint.received:
            if endpoint.has_end or (endpoint.is_reset and not endpoint.error):
                return b""
            _raise_error(endpoint)
            if not endpoint.is_connected:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._wait(select.POLLIN, "receive")
        data = bytes(endpoint.received[:size])
        del endpoint.received[:size]
        if endpoint.peer is not None:
            endpoint.peer.changed()
        return data

    def _wait(self, events: int, operation: str) -> None:
        if self._timeout == 0.0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        poll = SimulatedPoll(self._table)
        poll.register(self, events)
        if not poll.poll(None if self._timeout is None else self._timeout * 1000):
            raise TimeoutError("timed out")


class SimulatedPoll:
    """A `select.poll`, for simulated sockets only."""

    def __init__(self, table: SocketTable) -> None:
        self._table = table
        self._events: dict[int, int] = {}

    def register(self, item: Any, events: int = select.POLLIN | select.POLLOUT | select.POLLPRI) -> None:
        """Wait for a socket too."""
        self._events[item if isinstance(item, int) else item.fileno()] = events

    modify = register

    def unregister(self, item: Any) -> None:
        """Wait for it no more."""
        del self._events[item if isinstance(item, int) else item.fileno()]

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Return the sockets that are ready, after at most `timeout` milliseconds."""
        scheduler = self._table.scheduler
        scheduler.step("poll")
        deadline = None if timeout is None or timeout < 0 else scheduler.now + timeout / 1000
        waiter = Waiter(self._table)
        for descriptor in self._events:
            waiter.watch(descriptor)
        try:
            while True:
                found = [(each, ready) for each, events in self._events.items() if (ready := self._table.ready(each, events))]
                left = None if deadline is None else deadline - scheduler.now
                if found or (left is not None and left <= 0):
                    return found
                waiter.wait("poll", left)
        finally:
            for descriptor in self._events:
                waiter.leave(descriptor)


class SimulatedSelector(selectors._BaseSelectorImpl):
    """The selector of an event loop."""

    def __init__(self, table: SocketTable) -> None:
        super().__init__()
        self._table = table
        self._waiter = Waiter(table)

    def wake(self) -> None:
        """Let `select` return: another thread has given the loop something to do."""
        self._waiter.notify()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._waiter.watch(key.fd)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self._waiter.leave(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the sockets that are ready, after at most `timeout` seconds."""
        found = self._ready()
        if found or self._waiter.is_notified or (timeout is not None and timeout <= 0):
            self._waiter.is_notified = False
            self._table.scheduler.step("select")
            found = self._ready()
        else:
            self._waiter.wait("select", timeout)
            self._waiter.is_notified = False
            found = self._ready()
        return found

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        for descriptor, key in self._fd_to_key.items():  # type: ignore[attr-defined]
            wanted = (select.POLLIN if key.events & selectors.EVENT_READ else 0) | (
                select.POLLOUT if key.events & selectors.EVENT_WRITE else 0
            )
            ready = self._table.ready(descriptor, wanted)
            events = 0
            if ready & ~select.POLLIN:
                events |= selectors.EVENT_WRITE
            if ready & ~select.POLLOUT:
                events |= selectors.EVENT_READ
            if events & key.events:
                found.append((key, events & key.events))
        return found


def _raise_error(endpoint: Endpoint) -> None:
    if endpoint.is_reset or endpoint.error:
        code, endpoint.error = endpoint.error, 0
        if code:
            raise OSError(code, os.strerror(code))
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
