"""The program of a pipeline's process. It loads the graph, starts it once, then runs it.

Only this module imports the Pipeline SDK.

`python -m filestore.runtime.worker DESCRIPTOR MEMORY_LIMIT`, in a session of its own, with one end of a socket pair as
DESCRIPTOR. What user code prints goes to a pipe of its own, so it is never mixed with the messages.
"""

from __future__ import annotations

import inspect
import io
import os
import queue
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filestore.runtime import worker_protocol as messages
from filestore.runtime.worker_protocol import UnsupportedValue

UNSUPPORTED = "Tried to return a non-supported type from a pipeline"
"""The beginning of an error message. The Pipeline SDK looks for these words."""
TEXT_LIMIT = 64 << 10
"""The maximum number of characters of an exception or a traceback that are sent."""


class MissingOutput(Exception):
    """A pipe returned a file that does not exist."""


def main() -> None:
    """Answer messages until the server is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _limit(memory=int(sys.argv[2]))
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # Listen in a thread, so that the end of the server is noticed while user code runs.
    threading.Thread(target=_listen, args=(connection, received), daemon=True).start()
    work = _Work()
    while True:
        connection.sendall(_answer(work, received.get()))


def _limit(*, memory: int) -> None:
    # Limit data, not address space: weights that are mapped from a file, and CUDA's reservations, are not memory.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # A core dump would write all weights to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _listen(connection: socket.socket, received: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        with connection.makefile("rb") as stream:
            while header := stream.read(messages.HEADER_SIZE):
                received.put(messages.decode(stream.read(messages.body_size(header))))
    finally:
        # Without a server, no answer is needed. The group is killed, because user code may have started processes.
        os.killpg(os.getpid(), signal.SIGKILL)


def _answer(work: _Work, message: dict[str, Any]) -> bytes:
    ((verb, arguments),) = message.items()
    try:
        return messages.encode(getattr(work, verb)(**arguments))
    # SystemExit and KeyboardInterrupt of user code end only its run.
    except BaseException as error:  # noqa: BLE001
        # After a MemoryError the state of the process is unknown.
        return messages.encode({"error": _encode_error(error), "is_spent": isinstance(error, MemoryError)})


def _encode_error(error: BaseException) -> dict[str, str | None]:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # user code's own
        text = ""
    name = type(error).__name__
    trace = (
        None if isinstance(error, UnsupportedValue | MissingOutput) else "".join(traceback.format_exception(error))[-TEXT_LIMIT:]
    )
    return {"exception": (f"{name}: {text}" if trace and text else text or name)[:TEXT_LIMIT], "traceback": trace}


class _Work:
    """The graph that the process was asked to load."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._home = Path.cwd()

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
        os.chdir(folder)
        try:
            return self._run(inputs, Path(folder))
        finally:
            os.chdir(self._home)

    def _run(self, inputs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        declared = [variable.type_class for variable in self._graph.variables if variable.is_input]
        if len(inputs) != len(declared):
            raise TypeError(f"the pipeline takes {len(declared)} inputs, but {len(inputs)} were given")
        values = [_value(kind, sent) for kind, sent in zip(declared, inputs, strict=True)]
        outputs = self._graph.run(*values)
        return {"outputs": [_output(value, folder) for value in outputs]}

    def _files(self) -> list[Any]:
        from pipeline.objects.graph import File  # noqa: PLC0415  # user code's

        return [variable for variable in self._graph.variables if isinstance(variable, File)]


def _kind(declared: Any) -> str:
    """Return the form in which a variable of a declared type needs its value: the KIND of `worker_protocol`."""
    from pipeline.objects.graph import Directory, File, FileURL  # noqa: PLC0415  # user code's

    if not inspect.isclass(declared):
        return "value"
    kinds = {FileURL: "url", Directory: "directory", File: "file", io.IOBase: "handle"}
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
        return messages.decode_value(sent, _file)
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


def _output(value: Any, folder: Path) -> dict[str, Any]:
    """Return a value that the pipeline returned, in the format of messages.

    Content without a file is written to `folder`.

    Raises UnsupportedValue, MissingOutput.
    """
    from pipeline.objects.graph import Directory, File  # noqa: PLC0415  # user code's

    def encode_file(part: Any) -> dict[str, Any] | None:
        if not isinstance(part, File | io.IOBase):
            return None
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
        return messages.encode_value(value, encode_file)
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{UNSUPPORTED}: {error}") from None


def _behind(handle: Any, folder: Path) -> Path:
    """Return the file that a handle was opened on. If it has none, such as a BytesIO, write its content to `folder`."""
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
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedValue(f"a {type(handle).__name__} that cannot be read again: {error}") from None
    return Path(name)


if __name__ == "__main__":
    main()
