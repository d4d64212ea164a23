"""Accept connections in several processes from one listening socket, so that the load is spread over them.

The system would wake all processes, and the fastest one would accept: mostly the one that has nothing else to do, or the same
one again and again. With a listening socket for each process (SO_REUSEPORT) it chooses by a hash of the addresses, which
gives one of four processes 7 of the 16 connections of a client, or more. Here each process notes its load in memory that all
share, and one that has more load than another leaves the next connection to that one.

A connection waits in the queue of the socket meanwhile, which belongs to no process. So none is lost when a process ends.
"""

from __future__ import annotations

import asyncio
import errno
import math
import mmap
import select
import socket
from collections.abc import Callable

PATIENCE_SECONDS = 0.25
"""How long a process leaves a connection to others. A process that is stopped delays each other one once."""
LOOK_SECONDS = 0.002
RETRY_SECONDS = 1.0
"""How long a process without descriptors accepts nothing."""
REST_SECONDS = 3.0
"""How long a connection counts as load after it was accepted, or after its last request."""

_OUT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOBODY = math.inf


class SharedLoads:
    """How many connections with work each process of a server has. Processes are forked after this object is made."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._loads = memoryview(mmap.mmap(-1, count * 8)).cast("d")
        self._place = 0
        for place in range(count):
            self.leave(place)

    def join(self, place: int) -> None:
        """Write to `place` in this process."""
        self._place = place

    def note(self, load: float) -> None:
        """Note the load of this process, which accepts connections."""
        self._loads[self._place] = load

    def leave(self, place: int | None = None) -> None:
        """Note that this process, or the one at `place`, accepts no connection unless nobody else does."""
        self._loads[self._place if place is None else place] = _NOBODY

    def less_loaded(self) -> dict[int, float]:
        """Return the places of the processes that have less load than this one, and their loads."""
        loads = self._loads.tolist()
        own = loads[self._place]
        return {place: load for place, load in enumerate(loads) if load < own}


class Load:
    """Count the connections of this process that have work, or have just had some.

    A client moves its next batch soon after the one before, so a connection counts for a few seconds more. A connection that
    is only kept does not count: it says nothing about the work of the process.
    """

    def __init__(self, shared: SharedLoads, *, clock: Callable[[], float] | None = None) -> None:
        """`clock` gives monotonic seconds. None means that of the event loop."""
        self._shared = shared
        self._clock = asyncio.get_running_loop().time if clock is None else clock
        self._working: set[object] = set()
        self._resting: dict[object, float] = {}
        """When each connection has had its last work, the oldest first."""
        self._arriving = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_noted = False

    def begin(self) -> None:
        """Note the load from now on."""
        self._is_noted = True
        self._note()

    def end(self) -> None:
        """Leave the next connections to other processes, if there are any."""
        self._is_noted = False
        self._shared.leave()

    def arrive(self) -> None:
        """Count a connection that was accepted. Call `arrived` when it counts otherwise."""
        self._arriving += 1
        self._note()

    def arrived(self) -> None:
        """Count a connection that was accepted no longer."""
        self._arriving -= 1
        self._note()

    def work(self, connection: object) -> None:
        """Note that a request of a connection begins."""
        self._resting.pop(connection, None)
        self._working.add(connection)
        self._note()

    def rest(self, connection: object) -> None:
        """Note that a connection is new, or that its request has ended."""
        self._working.discard(connection)
        self._resting.pop(connection, None)
        self._resting[connection] = self._clock()
        self._note()

    def forget(self, connection: object) -> None:
        """Note that a connection has ended."""
        self._working.discard(connection)
        self._resting.pop(connection, None)
        self._note()

    def _note(self) -> None:
        horizon = self._clock() - REST_SECONDS
        while self._resting and next(iter(self._resting.values())) <= horizon:
            del self._resting[next(iter(self._resting))]
        if self._is_noted:
            self._shared.note(self._arriving + len(self._working) + len(self._resting))
        if self._resting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REST_SECONDS / 2, self._tend)

    def _tend(self) -> None:
        self._timer = None
        self._note()


class Acceptor:
    """Accept the connections of a socket that several processes share, whenever this one has not more load than others."""

    def __init__(self, listener: socket.socket, begin: Callable[[], asyncio.Protocol], loads: SharedLoads, load: Load) -> None:
        """`begin` returns the protocol of a new connection. The end of this object closes the listener in this process."""
        self._listener = listener
        self._begin = begin
        self._loads = loads
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._waits_since: float | None = None
        self._unheeded: dict[int, float] = {}
        """Processes that did not accept in time, and their loads then. Each is unheeded until its load changes."""
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[object]] = set()
        listener.settimeout(0)
        load.begin()
        self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        self._load.end()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _listen(self) -> None:
        self._timer = None
        self._waits_since = None
        self._loop.add_reader(self._listener, self._look)

    def _look(self) -> None:
        """Accept the next connection, or leave it to another process for a moment."""
        if self._is_due():
            self._accept()
        else:
            self._wait(LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._poll.poll(0) and not self._is_due():
            self._wait(LOOK_SECONDS, self._look_again)
        else:
            self._listen()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, then)

    def _is_due(self) -> bool:
        """Return whether no other process should accept the next connection, or they have had the time to do so."""
        others = {place: load for place, load in self._loads.less_loaded().items() if self._unheeded.get(place) != load}
        if not others:
            self._waits_since = None
            return True
        now = self._loop.time()
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < PATIENCE_SECONDS:
            return False
        self._unheeded |= others
        self._waits_since = None
        return True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has gone
        except OSError as error:
            if error.errno not in _OUT:
                raise
            self._loop.call_exception_handler({"message": "no resource is left to accept a connection", "exception": error})
            self._wait(RETRY_SECONDS, self._listen)
            return
        connection.settimeout(0)
        self._load.arrive()
        task: asyncio.Task[object] = self._loop.create_task(self._connect(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._begin, connection)
        finally:
            self._load.arrived()
