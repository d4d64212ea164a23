"""Start and end a process of the command line: its streams, its signals, and the message of a failure.

Everything else is imported inside `run`, so that an interrupt or a broken installation is reported from the beginning.
"""

from __future__ import annotations

import errno
import gc
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
"""A command that a signal ended exits with this status plus the number of the signal, as in shells."""
OUTPUT_LEFT = SIGNALLED + signal.SIGPIPE
"""The exit status of a command if the program that read its output has ended, as in Unix tools."""
RESUMES = "filestore.resumes"
"""The key in the `meta` of click's context by which a command says whether it continues where it was interrupted."""
TOKEN_SOURCE = "filestore.token_source"  # noqa: S105  # the name of a key
"""Under this key of the `meta` of click's context is where the token of a command is from."""

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")

_ended_by: signal.Signals | None = None
_cancel: Callable[[], object] | None = None
"""Cancels the coroutine of `run_to_end`."""


def main() -> None:
    """Run the console script `filestore`."""
    run("filestore")


def run(program: str) -> None:
    """Run the command that the process's arguments name, and exit. A failure always has a status and a message."""
    # Until `end_loading`: modules are tens of thousands of objects, and none of them is garbage.
    gc.disable()
    try:
        _open_streams()
        _take_signals()
        status: int = import_module("filestore_cli.main").status_of(program)
    except KeyboardInterrupt:
        say(f"{how_interrupted()}.")
        status = interrupted_status()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException as error:  # noqa: BLE001  # no traceback may reach a user
        say(f"Error: {sentence(error)}")
        status = 1
    status = _finish(status)
    sys.exit(status)


def end_loading() -> None:
    """Let Python collect garbage from now on, but not look through the modules of the command for it.

    In a process that `run` has not started, nothing changes.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result.

    The first signal cancels it; after its cleanup, KeyboardInterrupt is raised.

    `asyncio.run` does the same, but it cancels in the signal handler, which interrupts the loop at any point: a step
    that is half done then fails, and the loop prints a traceback. A second signal ends the process at once.
    """
    import asyncio  # heavy

    from filestore.system.event_loop import run_in_loop  # the same

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
        return run_in_loop(run())
    except asyncio.CancelledError:
        if _ended_by is None:
            raise
        raise KeyboardInterrupt from None
    finally:
        # A signal may have come before it began.
        coroutine.close()


def say(text: str) -> None:
    """Print a line to standard error, which cannot control a terminal. If that is not possible, only the exit status is left."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{_one_printable_line(text)}\n")
        sys.stderr.flush()


def _one_printable_line(text: str) -> str:
    try:
        from filestore_cli.text import for_display  # it may be what cannot be loaded
    except BaseException:  # noqa: BLE001  # what `say` says is more important
        return ascii(text)[1:-1]
    return for_display(text)


def how_interrupted() -> str:
    """Return the beginning of a sentence about the signal that ended the command."""
    return "Interrupted" if _ended_by in {None, signal.SIGINT} else f"Interrupted by {_ended_by.name}"


def interrupted_status() -> int:
    """Return the exit status of a command that was interrupted."""
    return SIGNALLED + (_ended_by or signal.SIGINT)


def sentence(error: BaseException) -> str:
    """Return the message for a user about an error that is not a FilestoreError."""
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return "this machine has not enough free memory for it; end other programs and run the same command again"
    if isinstance(error, ImportError):
        return f"a part of this installation cannot be loaded ({_one_line(error)}); install filestore again"
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"filestore failed by a fault of its own, {type(error).__name__}: {_one_line(error)}{_place(error)}; please report it"


def output_failure(error: OSError) -> str:
    """Return why standard output cannot be written."""
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
    """Open the standard streams that are closed.

    Otherwise the next file that is opened gets the number of a standard stream, and output is written to that file.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free. Writes to 1 fail, as they must for a result. Writes to 2 may be
            # lost.
            os.open(os.devnull, flags)
            os.set_inheritable(number, True)  # noqa: FBT003  # it takes no names
    # Python makes a closed stream None.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # a descriptor
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding does not have is escaped, and not a failure.
            stream.reconfigure(errors="backslashreplace")


def _take_signals() -> None:
    """Make SIGTERM and SIGHUP end the command as Ctrl-C does. Otherwise the first process of a container ignores them.

    A signal that was ignored when the process started stays ignored: nohup ignores SIGHUP, and a shell ignores SIGINT
    for commands in the background.
    """
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    global _ended_by, _cancel  # noqa: PLW0603  # a process has one end
    if _ended_by is not None:
        # An exception during the cleanup could make it wait for ever. A kill is safe for the files on disk.
        os._exit(interrupted_status())
    _ended_by = signal.Signals(number)
    cancel, _cancel = _cancel, None
    if cancel is None:
        raise KeyboardInterrupt
    cancel()


def _finish(status: int) -> int:
    """Flush the streams, so that nothing fails after this. Return the exit status."""
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(status))
    try:
        sys.stdout.flush()
    except OSError as error:
        if status == 0 and not isinstance(error, BrokenPipeError):
            say(f"Error: the result cannot be written to standard output: {output_failure(error)}")
        status = status or (OUTPUT_LEFT if isinstance(error, BrokenPipeError) else 1)
        _discard(1)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(2)
    # Python looks through all objects once more at its end. Nothing there is worth it.
    gc.freeze()
    return status


def _discard(number: int) -> None:
    """Discard buffered output. Otherwise Python would write it again at the exit, and fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
