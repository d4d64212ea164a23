"""The program of a pipeline's process. It loads the graph, starts it once, then runs it.

Only this module imports the Pipeline SDK. It is one file that imports nothing else of filestore, so that it runs in any
Python that has a supported version of the SDK, also where filestore is not installed.

`python PATH/worker.py DESCRIPTOR MEMORY_LIMIT`, in a session of its own, with one end of a socket pair as DESCRIPTOR.
What user code prints goes to a pipe of its own, so it is never mixed with the messages. `python PATH/worker.py
--describe` prints the versions of Python and of the SDK as JSON.

It is two processes. The first one, the keeper, runs no user code. It adopts what user code leaves behind, such as a
process in a session of its own, and ends all of that when the second one or the server has ended.

A server and this process exchange JSON messages, each preceded by its length. Pickles are never used: the answers of
user code are data, and are checked (I4). Outputs are JSON values, or files by their paths.

    {"import_sdk": {}}                        {}
    {"load": {"graph": PATH}}                 {"inputs": [KIND, ...], "files": [STATIC, ...]}
    {"start": {"paths": [PATH, ...]}}         {}
    {"run": {"inputs": [VALUE, ...], "folder": PATH}}
                                              {"outputs": [VALUE or {"generator": true}, ...]}
    {"next": {"place": INDEX, "most": COUNT}} {"values": [VALUE, ...], "has_ended": BOOL}
    {"close": {}}                             {}
    any of them                               {"error": {"exception": TEXT, "traceback": TEXT or null}, "is_spent": BOOL}

KIND is the form that a declared type needs: value, file, directory, url (a `FileURL`) or handle (an open file). STATIC
is a file of the graph, `{"kind", "id", "url", "path"}`; `paths` are local ones in the same order. VALUE is
`{"value": JSON}`, `{"path": PATH, "kind": KIND, "url": URL or null}`, or, if it contains files,
`{"items": [VALUE, ...]}` or `{"fields": {NAME: VALUE, ...}}`.

An output can be a generator. `next` returns its next values, and computes none in advance. A run with generators ends
when all of them have ended, or with `close`.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import io
import json
import os
import platform
import queue
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

HEADER_SIZE = 4
MESSAGE_LIMIT = 16 << 20
"""The largest number of bytes in a message: the JSON of a run's inputs or outputs, without files. MessageTooLarge is
raised for more.
"""
SDK = "pipeline-ai"
"""The distribution of the Pipeline SDK."""
UNSUPPORTED = "Tried to return a non-supported type from a pipeline"
"""The beginning of an error message. The Pipeline SDK looks for these words."""
TEXT_LIMIT = 64 << 10
"""The maximum number of characters of an exception or a traceback that are sent."""

_BATCH_SIZE = 1 << 20
"""Bytes of JSON after which `next` asks a generator for no further value."""

_HEADER = struct.Struct("<I")
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
"""Options of `prctl`. Source: prctl(2)."""
_WAKING = (signal.SIGCHLD, signal.SIGTERM)
_END_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.1
_ATTEMPTS = 5
"""How often children that cannot be killed are looked at. They are of another user."""


class MissingOutput(Exception):
    """A pipe returned a file that does not exist."""


class UnsupportedValue(Exception):
    """A value that is neither JSON nor a file."""


class MessageTooLarge(Exception):
    """A message is larger than MESSAGE_LIMIT."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the size in bytes of a run's values is {size}, more than the limit of {MESSAGE_LIMIT}")
        self.size = size


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message with its length.

    Raises MessageTooLarge; ValueError or TypeError for values that are not JSON, such as NaN.
    """
    body = json.dumps(message, allow_nan=False).encode()
    if len(body) > MESSAGE_LIMIT:
        raise MessageTooLarge(len(body))
    return _HEADER.pack(len(body)) + body


def body_size(header: bytes) -> int:
    """Return the number of bytes that follow a header. Raises MessageTooLarge."""
    (size,) = _HEADER.unpack(header)
    if size > MESSAGE_LIMIT:
        raise MessageTooLarge(size)
    return int(size)


def decode(body: bytes) -> dict[str, Any]:
    """Return the content of a message. Raises ValueError for bytes that are not a message."""
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("a message is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError("a message is an object")  # noqa: TRY004  # the other side made the message
    return message


def encode_value(value: object, file: Callable[[object], dict[str, Any] | None]) -> dict[str, Any]:
    """Return a value in the format of messages. Raises UnsupportedValue.

    `file` describes a value that stands for a file, and returns None for all others.
    """
    known = file(value)
    if known is not None:
        return known
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, list | tuple):
            return {"items": [encode_value(item, file) for item in value]}
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"fields": {name: encode_value(field, file) for name, field in value.items()}}
        raise UnsupportedValue(f"a {type(value).__name__}: {error}") from None
    return {"value": value}


def decode_value(description: Mapping[str, Any], file: Callable[[Mapping[str, Any]], object]) -> Any:
    """Return the value from which `encode_value` made this description.

    Raises KeyError, TypeError or AttributeError for an invalid description.
    """
    if "path" in description:
        return file(description)
    if "items" in description:
        return [decode_value(item, file) for item in description["items"]]
    if "fields" in description:
        return {name: decode_value(field, file) for name, field in description["fields"].items()}
    return description["value"]


def describe() -> dict[str, str | None]:
    """Return the version of this Python, and that of its Pipeline SDK or None."""
    try:
        sdk = version(SDK)
    except PackageNotFoundError:
        sdk = None
    return {"python": platform.python_version(), "sdk": sdk}


def main() -> None:
    """Answer messages until the server is gone."""
    # User code must not import the modules next to this file. Python 3.10 has no option for that.
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    if sys.argv[1] == "--describe":
        sys.stdout.write(f"{json.dumps(describe())}\n")
        return
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _keep(connection)
    _limit(memory=int(sys.argv[2]))
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # Listen in a thread, so that the end of the server is noticed while user code runs.
    threading.Thread(target=_listen, args=(connection, received), daemon=True).start()
    work = _Work()
    while True:
        connection.sendall(_answer(work, received.get()))


def _keep(connection: socket.socket) -> None:
    """Return in a new process, in a session of its own. The process that called this becomes its keeper.

    The keeper ends when that process or the server has ended, in the same way, and before that it ends everything else
    that user code has started.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)
    woken, waking = os.pipe()
    for descriptor in (woken, waking):
        os.set_blocking(descriptor, False)
    keeper = os.getpid()
    for number in _WAKING:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    pid = os.fork()
    if pid:
        # The server must notice when user code closes the connection.
        connection.close()
        _end_with(_await_end(pid, woken))
    signal.set_wakeup_fd(-1)
    for number in _WAKING:
        signal.signal(number, signal.SIG_DFL)
    for descriptor in (woken, waking):
        os.close(descriptor)
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != keeper:  # it ended before the line above
        os._exit(1)
    os.setsid()


def _await_end(pid: int, woken: int) -> int:
    """Wait until the process `pid` or the server has ended, or for SIGTERM. Then end all that is left.

    Return how the process ended.
    """
    status: int | None = None
    poll = select.poll()
    # The pipe to which user code prints has an error when the server, which reads it, is gone.
    poll.register(sys.stdout.fileno(), 0)
    poll.register(woken, select.POLLIN)
    while status is None:
        found = dict(poll.poll())
        signals = os.read(woken, 4096) if woken in found else b""
        status = _reap(pid, status)
        if signal.SIGTERM in signals or sys.stdout.fileno() in found:
            break
    with suppress(OSError):
        # It is all that can be done where there is nothing like `/proc`.
        os.killpg(pid, signal.SIGKILL)
    pause, attempts_left = _END_PAUSE_SECONDS, _ATTEMPTS
    while attempts_left:
        # A list of processes may miss one whose parent ends at that moment. It is a child of this process then.
        attempts_left = _ATTEMPTS if end_descendants(os.getpid()) else attempts_left - 1
        status = _reap(pid, status)
        if not _has_children():
            break
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return os.waitstatus_to_exitcode(signal.SIGKILL if status is None else status)


def _reap(pid: int, status: int | None) -> int | None:
    """Remove all ended children from the table of processes. Return how `pid` ended, if it did, or else `status`."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == pid:
                status = ended[1]
    return status


def _has_children() -> bool:
    """Return whether this process has a child, also one whose parent has ended before it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _end_with(code: int) -> NoReturn:
    """End this process with a status, or by a signal if `code` is negative."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def end_descendants(pid: int) -> bool:
    """Kill all processes that `pid` started, and those that they started. Return whether there were any.

    A process whose parent has ended has the keeper as its parent, so it is found too. Those of another user, such as a
    program that runs as root, cannot be killed.
    """
    children: dict[int, list[int]] = {}
    for child, parent in _living():
        children.setdefault(parent, []).append(child)
    waiting, has_ended = list(children.get(pid, ())), False
    while waiting:
        found = waiting.pop()
        waiting += children.get(found, ())
        with suppress(OSError):
            os.kill(found, signal.SIGKILL)
            has_ended = True
    return has_ended


def _living() -> Iterator[tuple[int, int]]:
    """Yield each process that runs, and its parent. Without `/proc`, nothing is known."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208  # names are enough
    except OSError:
        return
    for name in names:
        if name.isdecimal():
            with suppress(OSError, ValueError):
                described = Path("/proc", name, "stat").read_bytes()
                # The name of the program is in parentheses, and may have any character.
                state, parent = described[described.rindex(b")") + 1 :].split()[:2]
                if state not in {b"Z", b"X"}:
                    yield int(name), int(parent)


def end_marked(mark: str) -> None:
    """Kill all processes of this user that were started with the variable `mark` in their environment.

    It finds what a process has left that killed its keeper.
    """
    for pid, _ in _living():
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process. It does nothing where the operating system is not Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _limit(*, memory: int) -> None:
    # Limit data, not address space: weights that are mapped from a file, and CUDA's reservations, are not memory.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # A core dump would write all weights to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _listen(connection: socket.socket, received: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        with connection.makefile("rb") as stream:
            while header := stream.read(HEADER_SIZE):
                received.put(decode(stream.read(body_size(header))))
    finally:
        # Without a server, no answer is needed. The group is killed, because user code may have started processes.
        os.killpg(os.getpid(), signal.SIGKILL)


def _answer(work: _Work, message: dict[str, Any]) -> bytes:
    ((verb, arguments),) = message.items()
    try:
        return encode(getattr(work, verb)(**arguments))
    # SystemExit and KeyboardInterrupt of user code end only its run.
    except BaseException as error:  # noqa: BLE001
        # After a MemoryError the state of the process is unknown.
        return encode({"error": _encode_error(error), "is_spent": isinstance(error, MemoryError)})


def _encode_error(error: BaseException) -> dict[str, str | None]:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # user code's own
        text = ""
    name = type(error).__name__
    # These say what is wrong with a returned value. A traceback would only show this file.
    is_refusal = isinstance(error, UnsupportedValue | MissingOutput | MessageTooLarge)
    trace = None if is_refusal else "".join(traceback.format_exception(error))[-TEXT_LIMIT:]
    return {"exception": (f"{name}: {text}" if trace and text else text or name)[:TEXT_LIMIT], "traceback": trace}


class _Work:
    """The graph that the process was asked to load."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._home = Path.cwd()
        self._folder = self._home
        """The folder of the run."""
        self._generators: dict[int, Iterator[Any]] = {}
        """The outputs of the run that are generators and have not ended, by their places."""

    def import_sdk(self) -> dict[str, Any]:
        """Import the Pipeline SDK, which takes longer than the start of Python."""
        import pipeline.objects.graph  # noqa: F401, PLC0415  # part of user code, and slow to import

        return {}

    def load(self, *, graph: str) -> dict[str, Any]:
        """Unpickle a graph. Return the kinds of its inputs, and the files that it needs before it starts."""
        from pipeline.objects.graph import Graph  # noqa: PLC0415  # part of user code, and slow to import

        loaded = Graph.load(graph)
        if not isinstance(loaded, Graph):
            raise TypeError(f"the upload is not a pipeline but a {type(loaded).__name__}")
        self._graph = loaded
        return {
            "inputs": [_kind(variable.type_class) for variable in loaded.variables if variable.is_input],
            "files": [_static(variable) for variable in self._files()],
        }

    def start(self, *, paths: list[str]) -> dict[str, Any]:
        """Set the local paths of the static files, and run the functions for startup."""
        for variable, path in zip(self._files(), paths, strict=True):
            variable.path = Path(path)
        self._graph._startup()  # noqa: SLF001  # the SDK's own container does the same
        return {}

    def run(self, *, inputs: list[dict[str, Any]], folder: str) -> dict[str, Any]:
        """Run the graph in a folder of its own, which is removed later."""
        self._folder = Path(folder)
        os.chdir(folder)
        try:
            return self._run(inputs, self._folder)
        finally:
            self._leave_folder()

    def next(self, *, place: int, most: int) -> dict[str, Any]:
        """Return at most `most` further values of an output, fewer if they are large. A file is the last of them.

        A file is stored before the generator goes on, which may write another one in its place.
        """
        values: list[dict[str, Any]] = []
        size = 0
        try:
            while len(values) < most and size < _BATCH_SIZE:
                values.append(_output(next(self._generators[place]), self._folder))
                size += len(json.dumps(values[-1]))
                if "value" not in values[-1]:
                    break
        except StopIteration:
            del self._generators[place]
            self._leave_folder()
            return {"values": values, "has_ended": True}
        return {"values": values, "has_ended": False}

    def close(self) -> dict[str, Any]:
        """End the run, and close its generators, which may then release what they use."""
        generators, self._generators = self._generators, {}
        try:
            for generator in generators.values():
                if hasattr(generator, "close"):
                    generator.close()
        finally:
            self._leave_folder()
        return {}

    def _leave_folder(self) -> None:
        if not self._generators:
            os.chdir(self._home)

    def _run(self, inputs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        declared = [variable.type_class for variable in self._graph.variables if variable.is_input]
        if len(inputs) != len(declared):
            raise TypeError(f"the pipeline takes {len(declared)} inputs, but {len(inputs)} were given")
        values = [_value(kind, sent) for kind, sent in zip(declared, inputs, strict=True)]
        outputs = self._graph.run(*values)
        generators = {place: value for place, value in enumerate(outputs) if _is_generator(value)}
        described = [
            {"generator": True} if place in generators else _output(value, folder) for place, value in enumerate(outputs)
        ]
        self._generators = generators
        return {"outputs": described}

    def _files(self) -> list[Any]:
        from pipeline.objects.graph import File  # noqa: PLC0415  # user code's

        return [variable for variable in self._graph.variables if isinstance(variable, File)]


def _kind(declared: Any) -> str:
    """Return the form in which a variable of a declared type needs its value: the KIND of messages."""
    from pipeline.objects import graph  # noqa: PLC0415  # user code's

    if not inspect.isclass(declared):
        return "value"
    kinds = {graph.Directory: "directory", graph.File: "file", io.IOBase: "handle"}
    # A FileURL is also a File. Later versions of the SDK have no FileURL.
    if hasattr(graph, "FileURL"):
        kinds = {graph.FileURL: "url", **kinds}
    return next((kind for base, kind in kinds.items() if issubclass(declared, base)), "value")


def _static(variable: Any) -> dict[str, str | None]:
    kind = _kind(type(variable))
    url = getattr(variable, "url", None)
    texts = {
        "id": getattr(variable, "remote_id", None),
        # The text of a FileURL, or the parsed URL of later versions of the SDK.
        "url": getattr(url, "geturl", lambda: url)(),
        "path": variable.path,
    }
    return {"kind": kind, **{name: None if text is None else str(text) for name, text in texts.items()}}


def _value(declared: Any, sent: dict[str, Any]) -> Any:
    """Return an input in the form that the graph takes."""
    if "path" not in sent:
        return decode_value(sent, _file)
    kind, path = _kind(declared), Path(sent["path"])
    if kind == "handle":
        return path.open("rb")
    if kind == "url":
        made = declared(sent["url"])
        made.path = path
        return made
    return _file(sent) if kind == "value" else declared(path=path)


def _file(sent: Mapping[str, Any]) -> Any:
    """Make a file value for an input without a declared type."""
    from pipeline.objects.graph import Directory, File  # noqa: PLC0415  # user code's

    return (Directory if sent["kind"] == "directory" else File)(path=sent["path"])


def _is_generator(value: Any) -> bool:
    """Return whether an output gives one value after the other. An open file is not meant so, but as a file."""
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase)


def _output(value: Any, folder: Path) -> dict[str, Any]:
    """Return a value that the pipeline returned, in the format of messages.

    Content without a file is written to `folder`.

    Raises UnsupportedValue, MissingOutput.
    """
    from pipeline.objects.graph import Directory, File  # noqa: PLC0415  # user code's

    def encode_file(part: Any) -> dict[str, Any] | None:
        if not isinstance(part, File | io.IOBase):
            return None
        if isinstance(part, File) and part.path is None:
            raise MissingOutput(f"the pipeline returned a {type(part).__name__} without a path; return the file itself")
        path = Path(part.path) if isinstance(part, File) else _behind(part, folder)
        is_folder = isinstance(part, Directory) and path.is_dir()
        # Check all values first, because nothing of a run is stored if a part of it cannot be stored.
        if not (is_folder or path.is_file()):
            raise MissingOutput(
                f"the pipeline returned a {type(part).__name__}, but {path} is not a file; only a Directory may be a folder"
            )
        # A relative path is relative to the folder of the run, which is the working folder of this process now.
        return {"path": str(path.absolute()), "kind": "directory" if is_folder else "file", "url": None}

    try:
        return encode_value(value, encode_file)
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{UNSUPPORTED}: {error}") from None


def _behind(handle: Any, folder: Path) -> Path:
    """Return the file that a handle was opened on. If it has none, such as a BytesIO, write its content to `folder`.

    The name of the new file follows from the content, so that equal outputs are one stored file, in every run.
    """
    with suppress(ValueError):  # a closed file is written completely
        if handle.writable():
            handle.flush()
    if isinstance(getattr(handle, "name", None), str):
        return Path(handle.name)
    descriptor, name = tempfile.mkstemp(prefix="output-", dir=folder)
    try:
        with open(descriptor, "wb") as copy:  # noqa: PTH123  # a descriptor is not a path
            opened = getattr(handle, "buffer", handle)
            opened.seek(0)
            shutil.copyfileobj(opened, copy)
        with open(name, "rb") as written:  # noqa: PTH123  # as above
            hashed = hashlib.sha256()
            # Python 3.10 has no `file_digest`.
            while piece := written.read(1 << 20):
                hashed.update(piece)
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedValue(f"a {type(handle).__name__} that cannot be read again: {error}") from None
    return Path(name).rename(folder / f"output-{hashed.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
