"""Open many slow clients of a server, and measure what they cost it."""

from __future__ import annotations

import fcntl
import resource
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.process_memory import memory
from tests.support.server import RunningServer, eventually
from tests.support.slow_kinds import SlowKind

SETTLE_SECONDS = 60.0
"""How long clients may take to get as far as they can. After that, they are measured as they are."""
STEP_SECONDS = 1.0
"""A client that trickles moves a byte in each step."""
_QUIET_ROUNDS = 5
"""Rounds without progress, after which nothing more is expected. In each round the server answers another client."""
_RECEIVE_BUFFER = 4096
_PIECE = 1 << 16


class SlowClient:
    """One connection that moves a byte now and then."""

    def __init__(self, server: RunningServer, kind: SlowKind, sent: bytes) -> None:
        self._kind = kind
        self.is_reader = kind.is_reader
        self._left = memoryview(sent)
        self._trickled = 0
        self._unread = kind.first_read if kind.is_reader else 0
        self.is_ended = False
        self.received = 0
        self.connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # A client that reads slowly has a small buffer, so that bytes wait in the server.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self.connection.settimeout(60)
        self.connection.connect(("127.0.0.1", server.port))
        self.connection.settimeout(0)

    @property
    def has_begun(self) -> bool:
        """Whether the client has done all that it does quickly."""
        return self.is_ended or (self.received > 0 if self._kind.is_reader else not self._left)

    @property
    def progress(self) -> tuple[int, int, int, bool]:
        """What has moved: bytes that wait to be sent here, and in the kernel, bytes received, and whether this is over."""
        waiting = 0 if self.is_ended else _unsent(self.connection)
        return len(self._left), waiting, self.received, self.is_ended

    def move(self) -> None:
        """Send and read what can be moved quickly."""
        if self.is_ended:
            return
        try:
            while self._left:
                self._left = self._left[self.connection.send(self._left[:_PIECE]) :]
                if not self._left:
                    self._left = memoryview(b"")  # the clients of a large test have much to send together
        except BlockingIOError:
            pass
        except OSError:
            self.is_ended = True
            return
        self._look()

    def step(self) -> None:
        """Move one byte."""
        if self.is_ended or self._left:
            return
        if self._kind.is_reader and self.received:
            self._unread = 1
            self._look()
        elif self._kind.trickle:
            place = self._trickled % len(self._kind.trickle)
            try:
                self._trickled += self.connection.send(self._kind.trickle[place : place + 1])
            except BlockingIOError:
                pass
            except OSError:
                self.is_ended = True

    def close(self) -> None:
        """End the connection."""
        self.connection.close()
        self.is_ended = True

    def _look(self) -> None:
        """Read if this client reads. Find out whether the server has ended the connection."""
        try:
            if self._unread:
                read = self.connection.recv(self._unread)
                self.received += len(read)
                self._unread = 0
                self.is_ended = not read
            elif not self._kind.is_reader and self._kind.trickle:
                # A sender whose request is answered was refused.
                self.is_ended = self.connection.recv(1, socket.MSG_PEEK) is not None
            else:
                poll = select.poll()
                poll.register(self.connection, select.POLLRDHUP)
                self.is_ended = bool(poll.poll(0))
        except BlockingIOError:
            pass
        except OSError:
            self.is_ended = True


class SlowClients:
    """Slow clients of one server. `slow_clients` opens them."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._clients: list[SlowClient] = []
        self.latencies: list[float] = []
        """How many seconds the server took for each request of an ordinary client meanwhile."""

    @property
    def ended_count(self) -> int:
        """How many of them the server has ended."""
        return sum(client.is_ended for client in self._clients)

    @property
    def begun_count(self) -> int:
        """How many of them have got as far as their request goes, or were ended."""
        return sum(client.has_begun for client in self._clients)

    def open(self, kinds: Sequence[SlowKind], count: int) -> None:
        """Open `count` clients of each kind, in turn, so that all kinds begin at the same time."""
        sent = [kind.prepare(self._server, count) for kind in kinds]
        for number in range(count):
            for kind, of_client in zip(kinds, sent, strict=True):
                client = SlowClient(self._server, kind, of_client(number))
                self._clients.append(client)
                client.move()

    def settle(self) -> None:
        """Return when each client got as far as it will go, or was ended by the server.

        The server must answer ordinary requests meanwhile, which are timed. On a busy machine a client may wait for long
        before its turn; then the server ends it for its rate, and it counts as settled.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        next_step = time.monotonic() + STEP_SECONDS
        quiet = 0
        before: list[tuple[int, int, int, bool]] = []
        while quiet < _QUIET_ROUNDS and time.monotonic() < deadline:
            for client in self._clients:
                client.move()
            # A step moves a byte, which counts as progress of no client.
            progress = [client.progress for client in self._clients]
            has_moved = progress != before
            before = progress
            if time.monotonic() >= next_step:
                next_step = time.monotonic() + STEP_SECONDS
                self.step()
                before = [client.progress for client in self._clients]
            self.ask_health()
            quiet = 0 if has_moved or not self._is_settled() else quiet + 1

    def step(self) -> None:
        """Let each client move a byte."""
        for client in self._clients:
            client.step()

    def ask_health(self) -> None:
        """Ask as an ordinary client until the server says that it is well, and note how long this took."""
        began = time.monotonic()
        eventually(lambda: self._server.ask("GET", "/healthz", token=None).status == 200)
        self.latencies.append(time.monotonic() - began)

    def close(self) -> None:
        """End all of them."""
        for client in self._clients:
            client.close()

    def _is_settled(self) -> bool:
        """Return whether every reader has an answer. The server may keep a sender from sending for any time."""
        return all(client.has_begun or not client.is_reader for client in self._clients)


@contextmanager
def slow_clients(server: RunningServer, kinds: Sequence[SlowKind], count: int) -> Iterator[SlowClients]:
    """Open `count` slow clients of each kind, and let them settle. They end with the block."""
    allow_many_files()
    clients = SlowClients(server)
    try:
        clients.open(kinds, count)
        clients.settle()
        yield clients
    finally:
        clients.close()


def allow_many_files() -> None:
    """Raise the limit of open files of this process as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def server_processes(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += server_processes(int(child))
    return found


def peak_memory(pid: int) -> int:
    """Return the bytes of memory that a process and its descendants had at most: the sum of the peak of each of them."""
    return sum(memory(process, "VmHWM") for process in server_processes(pid))


def descriptor_count(pid: int) -> int:
    """Return how many descriptors a process and its descendants have open."""
    return sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in server_processes(pid))


def _unsent(connection: socket.socket) -> int:
    """Return how many bytes the other end has not acknowledged. Source: tcp(7), SIOCOUTQ."""
    (size,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(size)
