"""Run several server processes on one port, and restart those that die."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from filestore.errors import FilestoreError
from filestore.http import wire
from filestore.http.server.errors import log_failure
from filestore.http.server.log import log_by_thread
from filestore.http.server.running import STOP_SIGNALS, stop_signals
from filestore.http.server.traffic import StopWords
from filestore.http.server.worker import CLEANUP_SECONDS, Service, run_worker
from filestore.system.event_loop import run_in_loop

logger = logging.getLogger("filestore.server")

RESTART_SECONDS = 1.0
"""Seconds between two starts of one worker, at least."""
COUNT_SECONDS = 5.0
"""How long the workers have to say what they wait for, after a stop signal."""
LOOK_SECONDS = 0.02
_NOTICED_SIGNALS = (*STOP_SIGNALS, signal.SIGCHLD)
_READY = b"+"


@dataclass(slots=True)
class _Worker:
    """One of the workers. `pid` is 0 while it has no process."""

    place: int
    pid: int = 0
    report: int = -1
    """The pipe to which the process writes that it is ready, or why it cannot start. It is -1 when the pipe is closed.
    """
    said: bytes = b""
    start_at: float = 0.0
    """When the next process may start, in monotonic seconds."""

    @property
    def is_ready(self) -> bool:
        """Whether this worker accepts connections."""
        return self.pid != 0 and self.said == _READY

    @property
    def failure(self) -> FilestoreError:
        """The reason why the process could not start."""
        try:
            return wire.decode_problem("", 500, json.loads(self.said))
        except ValueError:
            return FilestoreError("a process of the server ended before it could start; its own messages say why")


class Supervisor:
    """Start workers, restart those that die, and stop them all."""

    def __init__(self, service: Service, listener: socket.socket, *, count: int) -> None:
        """All workers accept the connections of `listener`. It is closed when they are told to stop."""
        self._service = service
        self._listener = listener
        self._workers = [_Worker(place) for place in range(count)]
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()
        self._stops = 0
        self._is_reload_asked = False

    def run(self, announce: Callable[[], None], announce_stop: Callable[[str], None] | None) -> None:
        """Run the workers until a stop signal has ended them all. Call `announce_stop` with each sentence about the stop.

        Raises the error of a worker that cannot start at first.
        """
        is_announced = False
        with self._noticed_signals():
            try:
                while not self._stops:
                    self._start_due()
                    self._wait(self._next_start())
                    for pid, worker in self._ended():
                        if not is_announced:
                            raise worker.failure
                        reason = "" if worker.said == _READY else f": {worker.failure}"
                        logger.error("worker %d ended%s; another one takes its place", pid, reason)
                    if not is_announced and all(worker.is_ready for worker in self._workers):
                        announce()
                        is_announced = True
            finally:
                self._stop_all(announce_stop if is_announced else None)

    def _next_start(self) -> float | None:
        return min((worker.start_at for worker in self._workers if not worker.pid), default=None)

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid and worker.start_at <= now:
                worker.start_at = now + RESTART_SECONDS
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        # The child would write buffered output a second time.
        sys.stdout.flush()
        sys.stderr.flush()
        report, write_end = os.pipe()
        # Before the child has its own handlers, a signal would run those of the parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICED_SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._be_worker(worker, write_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_end)
        worker.pid, worker.report, worker.said = pid, report, b""
        self._selector.register(report, selectors.EVENT_READ, worker)

    def _be_worker(self, worker: _Worker, report: int) -> NoReturn:
        """Run the worker in the child process, and end the process. No other code of the parent runs in it."""
        is_ready = False

        def ready() -> None:
            nonlocal is_ready
            is_ready = True
            os.write(report, _READY)
            os.close(report)

        status = 1
        try:
            self._become_child()
            self._service.shared_times.join(worker.place)
            self._service.shared_transfers.join(worker.place)
            self._service.rates.join(worker.place)
            self._service.loads.join(worker.place)
            with log_by_thread():
                run_in_loop(
                    run_worker(
                        self._service,
                        self._listener,
                        ready=ready,
                        lifeline=self._lifeline[0],
                        is_first=worker.place == 0,
                    )
                )
            status = 0
        except FilestoreError as error:
            if is_ready:
                log_failure("a worker failed", error)
            else:
                os.write(report, json.dumps(wire.encode_problem(error).document).encode())
        except BaseException as error:  # noqa: BLE001  # any error ends this process only
            log_failure("a worker failed", error)
        finally:
            os._exit(status)

    def _become_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # A terminal sends these to the whole process group. The parent decides when workers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTICED_SIGNALS)
        self._selector.close()
        os.close(self._lifeline[1])
        for worker in self._workers:
            if worker.report >= 0:
                os.close(worker.report)

    @contextmanager
    def _noticed_signals(self) -> Iterator[None]:
        """Make signals end a wait: stop signals, and SIGCHLD, which says that a worker ended."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.settimeout(0)
        # A set: with TLS, SIGHUP is noticed also where nohup has it ignored.
        noticed = {*stop_signals(), signal.SIGCHLD, *((signal.SIGHUP,) if self._service.tls is not None else ())}
        before = {number: signal.signal(number, self._notice) for number in noticed}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, reader)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            reader.close()
            writer.close()
            for descriptor in self._lifeline:
                os.close(descriptor)

    def _notice(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and self._service.tls is not None:
            self._is_reload_asked = True
        elif number in STOP_SIGNALS:
            self._stops += 1

    def _wait(self, until: float | None) -> None:
        """Wait for a signal or a report, at most until the monotonic time `until`."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, _Worker):
                self._hear(key.data)
            else:
                key.data.recv(4096)
        if self._is_reload_asked:
            self._is_reload_asked = False
            self._signal_all(signal.SIGHUP)

    def _hear(self, worker: _Worker) -> None:
        """Read the next bytes of a worker's report."""
        said = os.read(worker.report, 1 << 16)
        worker.said += said
        if not said:
            self._selector.unregister(worker.report)
            os.close(worker.report)
            worker.report = -1

    def _ended(self) -> list[tuple[int, _Worker]]:
        """Return the processes that have ended since the last call, and their workers with complete reports."""
        ended = []
        for worker in self._workers:
            pid = worker.pid
            if pid and os.waitpid(pid, os.WNOHANG)[0]:
                worker.pid = 0
                self._service.loads.leave(worker.place)
                while worker.report >= 0:
                    self._hear(worker)
                ended.append((pid, worker))
        return ended

    def _stop_all(self, say: Callable[[str], None] | None) -> None:
        """Stop all workers after their current requests. Kill them at the next signal, or if this takes too long."""
        stops, killed = self._stops, 0
        transfers = self._service.shared_transfers
        words = StopWords(transfers, self._service.limits.drain_seconds, say)
        # The workers have it open as long as they answer. After that, a connection is refused and does not wait.
        self._listener.close()
        self._signal_all(signal.SIGTERM)
        self._wait_for_counts(stops)
        words.begin()
        deadline: float | None = time.monotonic() + self._service.limits.drain_seconds + 2 * CLEANUP_SECONDS
        while any(worker.pid for worker in self._workers):
            self._wait(words.next_at if deadline is None else min(deadline, words.next_at))
            if self._stops > stops or (deadline is not None and time.monotonic() >= deadline):
                killed, stops, deadline = transfers.waiting, self._stops, None
                self._signal_all(signal.SIGKILL)
            self._ended()
            words.go_on()
        words.end(killed=killed)

    def _wait_for_counts(self, stops: int) -> None:
        """Wait until each worker has said how many transfers it waits for, at most a few seconds."""
        until = time.monotonic() + COUNT_SECONDS
        stopping = self._service.shared_transfers.is_stopping
        while time.monotonic() < until and self._stops == stops:
            if not any(worker.pid and worker.is_ready and not stopping(worker.place) for worker in self._workers):
                return
            self._wait(time.monotonic() + LOOK_SECONDS)
            self._ended()

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)
