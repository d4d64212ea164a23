"""Start, use and end the process of a pipeline, from the side of the server. Each request has a time limit.

When a process is ended, all processes that it started are ended too, also those in sessions of their own. `worker.py`
says how.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filestore.errors import LimitExceeded
from filestore.runtime import worker
from filestore.runtime import worker_protocol as messages
from filestore.runtime.environments import OWN, Environment
from filestore.runtime.errors import PipelineEnded, RunFailed, RunTimedOut
from filestore.runtime.printed import PrintReader, RunLog, readable_text
from filestore.system.files import remove_if_possible
from filestore.system.owners import PRIVATE_FOLDER, make_private
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done

_END_SECONDS = 10.0
"""How long the keeper of a process has to end everything. Then this process does so."""
_END_ATTEMPTS, _END_PAUSE_SECONDS = 1000, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """The limits for the process of a pipeline."""

    seconds: float
    """The time limit in seconds for one answer: to load, to start, or to run."""
    memory: int
    """Bytes of memory for each of its processes, by `setrlimit`."""


class PipelineProcess:
    """A process and its working folder, which is removed with it."""

    def __init__(
        self, process: Process, connection: socket.socket, printed: PrintReader, folder: Path, *, seconds: float
    ) -> None:
        """Use `start_process`. The object then owns `process`, `connection` and `printed`."""
        self.folder = folder
        self.printed = printed
        self._process = process
        self._connection = connection
        self._seconds = seconds
        self._is_dead = False

    @property
    def seconds(self) -> float:
        """The time limit in seconds for one answer."""
        return self._seconds

    def discard(self) -> None:
        """Do not use the process for another request."""
        self._is_dead = True

    @property
    def is_usable(self) -> bool:
        """Whether the process accepts another request."""
        return not self._is_dead and self._process.returncode is None

    async def ask(self, verb: str, arguments: Mapping[str, object], *, what: str, within: float | None = None) -> dict[str, Any]:
        """Send a request to the process, and return the answer. `within` is what is left of the time limit in seconds.

        After any other error than a plain RunFailed, do not send another request to the process.

        Raises RunFailed for an error of the pipeline's code, RunTimedOut, PipelineEnded, LimitExceeded.
        """
        message = await in_cpu_thread(messages.encode, {verb: dict(arguments)})
        was_usable, self._is_dead = self.is_usable, True
        if not was_usable:
            raise PipelineEnded(_how(self._process.returncode), what)
        try:
            async with asyncio.timeout(self._seconds if within is None else within):
                answer = await self._request(message)
        except TimeoutError:
            raise RunTimedOut(what, self._seconds) from None
        except (OSError, EOFError):
            raise PipelineEnded(await self._ended(), what) from None
        except (ValueError, LimitExceeded) as error:
            raise PipelineEnded("sent an invalid answer", what) from error
        self._is_dead = bool(answer.get("is_spent"))
        failed = answer.get("error")
        if isinstance(failed, dict):
            raise RunFailed(_readable(failed.get("exception")), _readable(failed.get("traceback") or ""))
        return answer

    async def end(self) -> None:
        """Kill the process and all processes that it started, and remove its folder. A second call does nothing."""
        self._is_dead = True
        self._connection.close()
        await shield_until_done(self._end_all())
        # After the process, so that its last lines are kept.
        self.printed.close()
        await shield_until_done(in_disk_thread(remove_if_possible, self.folder))

    async def _end_all(self) -> None:
        """End the keeper, and everything below it. The keeper ends the rest first."""
        pid = self._process.pid
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # user code may have stopped it
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        for _ in range(_END_ATTEMPTS):
            if self._process.returncode is not None or not await in_disk_thread(worker.end_descendants, pid):
                break
            await asyncio.sleep(_END_PAUSE_SECONDS)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await in_disk_thread(worker.end_marked, f"PIPELINE_DIR={_sdk_folder(self.folder)}")

    def _signal(self, number: signal.Signals) -> None:
        # The method of the process would first wait for it, and then asyncio would not learn how it ended.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _request(self, message: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, message)
        header = await self._receive(messages.HEADER_SIZE)
        return await in_cpu_thread(messages.decode, await self._receive(messages.body_size(header)))

    async def _receive(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        received = bytearray()
        while len(received) < size:
            piece = await loop.sock_recv(self._connection, min(size - len(received), 1 << 20))
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)

    async def _ended(self) -> str:
        """Return how the process ended. If it only closed its connection, the result says that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._process.wait()
        return _how(self._process.returncode)


async def start_process(
    folder: Path,
    *,
    environ: Mapping[str, str],
    limits: ProcessLimits,
    environment: Environment = OWN,
    log: RunLog | None = None,
) -> PipelineProcess:
    """Start a process that waits for a graph to load, with `folder` as its new working folder. Raises OSError.

    What it prints goes to `log`, until `PipelineProcess.printed` is given another one.
    """
    await in_disk_thread(make_private, folder.parent)
    await in_disk_thread(folder.mkdir, PRIVATE_FOLDER)
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as always, ExitStack() as failed:
        failed.callback(ours.close)
        ours.settimeout(0)
        reading, writing = os.pipe()
        always.callback(os.close, writing)
        printed = PrintReader(reading, RunLog() if log is None else log)
        failed.callback(printed.close)
        process = await asyncio.create_subprocess_exec(
            *(*environment.command, worker.__file__, str(theirs.fileno()), str(limits.memory)),
            stdin=DEVNULL,
            stdout=writing,
            stderr=writing,
            cwd=folder,
            env={
                **environ,
                "TMPDIR": str(folder),
                "PIPELINE_DIR": str(_sdk_folder(folder)),
                # What a run prints must be in the pipe before its answer is sent.
                "PYTHONUNBUFFERED": "1",
            },
            pass_fds=[theirs.fileno()],
            # The keys of a terminal end the server, and the server ends the process.
            start_new_session=True,
        )
        failed.pop_all()
    return PipelineProcess(process, ours, printed, folder, seconds=limits.seconds)


def _sdk_folder(folder: Path) -> Path:
    """Return the folder that the SDK uses. Its name is new, so the variable that has it marks the processes of a pipeline."""
    return folder / ".pipeline"


def _readable(text: object) -> str:
    """Return text of user code without characters that control a terminal. Its lines stay."""
    return "\n".join(readable_text(line.encode(errors="backslashreplace")) for line in str(text).split("\n"))


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "cut its connection"
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"was ended by the signal {name}"
