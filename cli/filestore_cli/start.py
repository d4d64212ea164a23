"""A process of ours from its first moment to its last: its streams, its signals, and what is said when it cannot go on.

Everything else is imported inside `run`, so that an interrupt or a broken installation is told from the first moment on.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

SIGNALLED = 128
"""The exit status of a command that a signal ended is this and the signal's number, as shells have it."""
OUTPUT_LEFT = SIGNALLED + signal.SIGPIPE
"""The exit status of a command whose reader went away, as Unix tools have it."""
RESUMES = "filestore.resumes"
"""The key in the `meta` of click's context by which a command says that it continues where it was interrupted."""

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")

_ended_by: signal.Signals | None = None
_cancel: Callable[[], object] | None = None
"""Ends what `run_to_end` runs."""


def main() -> None:
    """The console script `filestore`."""
    run("filestore")


def run(program: str) -> None:
    """Run the command that the process's arguments name; exits, always with a status and a sentence."""
    try:
        _open_streams()
        _take_signals()
        status: int = import_module("filestore_cli.main").status_of(program)
    except KeyboardInterrupt:
        say(f"{how_interrupted()}.")
        status = interrupted_status()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException as error:  # noqa: BLE001  # whatever it is, no traceback reaches a user
        say(f"Error: {sentence(error)}")
        status = 1
    status = _finish(status)
    sys.exit(status)


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """What `coroutine` gives. The first signal cancels it, and KeyboardInterrupt is raised once it has cleaned up after itself.

    As `asyncio.run` does, but that cancels in the signal's handler, in the middle of whatever the loop does: what is half done
    then fails, and the loop prints a traceback of it. A second signal ends the process at once.
    """
    import asyncio  # heavy

    async def run() -> T:
        global _cancel  # noqa: PLW0603  # a process has one end
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is one
        _cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        try:
            return await coroutine
        finally:
            _cancel = None

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        if _ended_by is None:
            raise
        raise KeyboardInterrupt from None
    finally:
        # Where a signal came before it began.
        coroutine.close()


def say(text: str) -> None:
    """Print a line on standard error; where that takes nothing, the exit status is all that is left to say."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def how_interrupted() -> str:
    """The beginning of a sentence about what ended the command."""
    return "Interrupted" if _ended_by in {None, signal.SIGINT} else f"Interrupted by {_ended_by.name}"


def interrupted_status() -> int:
    """The exit status of a command that was interrupted."""
    return SIGNALLED + (_ended_by or signal.SIGINT)


def sentence(error: BaseException) -> str:
    """What an error that is none of ours means for a user."""
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return "this machine has no memory left for it; end other programs and run the same command again"
    if isinstance(error, ImportError):
        return f"a part of this installation cannot be loaded ({_one_line(error)}); install filestore again"
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"filestore failed by a fault of its own, {type(error).__name__}: {_one_line(error)}{_place(error)}; please report it"


def output_failure(error: OSError) -> str:
    """Why standard output takes nothing."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    what_to_do = "; get the right to use it, or use another place" if isinstance(error, PermissionError) else ""
    return f"{where}{error.strerror or error}{what_to_do}"


def _place(error: BaseException) -> str:
    import traceback  # heavy

    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _open_streams() -> None:
    """Have all three standard streams be there, also where whoever started the process has closed some.

    Otherwise the next file that is opened has the number of one of them, and is written to by whoever means that.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free. What is written to 1 fails, as it must: it is a result. What is said on 2 may go.
            os.open(os.devnull, flags)
            os.set_inheritable(number, True)  # noqa: FBT003  # it takes no names
    # They are None where they were closed.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # a descriptor
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding cannot show is shown escaped, and is no failure.
            stream.reconfigure(errors="backslashreplace")


def _take_signals() -> None:
    """Have SIGTERM and SIGHUP end the command as Ctrl-C does. The first process of a container ignores them otherwise.

    A signal that whoever started the process has it ignore stays ignored: nohup does so with SIGHUP, and a shell with the
    SIGINT of what it runs in the background.
    """
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    global _ended_by, _cancel  # noqa: PLW0603  # a process has one end
    if _ended_by is not None:
        # Raised in the middle of what cleans up, an exception may leave that waiting for ever. What is on disk bears a kill.
        os._exit(interrupted_status())
    _ended_by = signal.Signals(number)
    cancel, _cancel = _cancel, None
    if cancel is None:
        raise KeyboardInterrupt
    cancel()


def _finish(status: int) -> int:
    """Have nothing fail on the way out any more; the status that stands then."""
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(status))
    try:
        sys.stdout.flush()
    except OSError as error:
        if status == 0 and not isinstance(error, BrokenPipeError):
            say(f"Error: standard output does not take the result: {output_failure(error)}")
        status = status or (OUTPUT_LEFT if isinstance(error, BrokenPipeError) else 1)
        _discard(1)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(2)
    return status


def _discard(number: int) -> None:
    """Have what is still buffered go nowhere: it would be tried again on the way out, and fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
