"""The process of one pipeline: loads its graph, starts it once, then runs it. It alone imports the Pipeline SDK.

`python -m filestore.runtime.worker DESCRIPTOR MEMORY_LIMIT`, in a session of its own, with one end of a socket pair as
DESCRIPTOR. What user code prints goes to standard error, never between the messages.
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
"""The Pipeline SDK looks for these words."""
TEXT_LIMIT = 64 << 10
"""Characters of an exception or a traceback that are handed on."""


class MissingOutput(Exception):
    """A pipe returned a file that is not there."""


def main() -> None:
    """Answer messages until the server is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _limit(memory=int(sys.argv[2]))
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # In a thread, so that the end of the server is noticed while user code runs.
    threading.Thread(target=_listen, args=(connection, received), daemon=True).start()
    work = _Work()
    while True:
        connection.sendall(_answer(work, received.get()))


def _limit(*, memory: int) -> None:
    # Data, not address space: weights that are mapped from a file, and what CUDA reserves, are no memory.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # A crash would write all of the weights to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _listen(connection: socket.socket, received: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        with connection.makefile("rb") as stream:
            while header := stream.read(messages.HEADER_SIZE):
                received.put(messages.decode(stream.read(messages.body_size(header))))
    finally:
        # Nobody is left to answer. The group, as user code may have started processes.
        os.killpg(os.getpid(), signal.SIGKILL)


def _answer(work: _Work, message: dict[str, Any]) -> bytes:
    ((verb, arguments),) = message.items()
    try:
        return messages.encode(getattr(work, verb)(**arguments))
    # SystemExit and KeyboardInterrupt of user code end its run, and nothing else.
    except BaseException as error:  # noqa: BLE001
        # What is left after a MemoryError is anyone's guess.
        return messages.encode({"error": _described(error), "is_spent": isinstance(error, MemoryError)})


def _described(error: BaseException) -> dict[str, str | None]:
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
    """What the process was asked to load."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._home = Path.cwd()

    def load(self, *, graph: str) -> dict[str, Any]:
        """Unpickle a graph; what it takes, and the files that it needs before it starts."""
        from pipeline.objects.graph import Graph  # noqa: PLC0415  # user code's, and a second to import

        loaded = Graph.load(graph)
        if not isinstance(loaded, Graph):
            raise TypeError(f"the upload is no pipeline, but a {type(loaded).__name__}")
        self._graph = loaded
        return {
            "inputs": [_kind(variable.type_class) for variable in loaded.variables if variable.is_input],
            "files": [_static(variable) for variable in self._files()],
        }

    def start(self, *, paths: list[str]) -> dict[str, Any]:
        """Let the static files be local ones, and run what is to run on startup."""
        for variable, path in zip(self._files(), paths, strict=True):
            variable.path = Path(path)
        self._graph._startup()  # noqa: SLF001  # as the SDK's own container does
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
            raise TypeError(f"the pipeline takes {len(declared)} inputs, {len(inputs)} were given")
        values = [_value(kind, sent) for kind, sent in zip(declared, inputs, strict=True)]
        outputs = self._graph.run(*values)
        return {"outputs": [_output(value, folder) for value in outputs]}

    def _files(self) -> list[Any]:
        from pipeline.objects.graph import File  # noqa: PLC0415  # user code's

        return [variable for variable in self._graph.variables if isinstance(variable, File)]


def _kind(declared: Any) -> str:
    """What a value must be made into for a variable of a declared type."""
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
        # The text of a FileURL, or what later versions of the SDK have parsed.
        "url": getattr(url, "geturl", lambda: url)(),
        "path": variable.path,
    }
    return {"kind": kind, **{name: None if text is None else str(text) for name, text in texts.items()}}


def _value(declared: Any, sent: dict[str, Any]) -> Any:
    """An input as the graph takes it."""
    if "path" not in sent:
        return messages.valued(sent, _file)
    kind, path = _kind(declared), Path(sent["path"])
    if kind == "handle":
        return path.open("rb")
    if kind == "url":
        made = declared(sent["url"])
        made.path = path
        return made
    return _file(sent) if kind == "value" else declared(path=path)


def _file(sent: Mapping[str, Any]) -> Any:
    """A file that nothing is declared for."""
    from pipeline.objects.graph import Directory, File  # noqa: PLC0415  # user code's

    return (Directory if sent["kind"] == "directory" else File)(path=sent["path"])


def _output(value: Any, folder: Path) -> dict[str, Any]:
    """A returned value as messages have it; `folder` takes what has no file of its own.

    Raises UnsupportedValue, MissingOutput.
    """
    from pipeline.objects.graph import Directory, File  # noqa: PLC0415  # user code's

    def described(part: Any) -> dict[str, Any] | None:
        if not isinstance(part, File | io.IOBase):
            return None
        path = Path(part.path) if isinstance(part, File) else _behind(part, folder)
        is_folder = isinstance(part, Directory) and path.is_dir()
        # Nothing of a run is stored where a part of it could not be.
        if not (is_folder or path.is_file()):
            raise MissingOutput(
                f"the pipeline returned a {type(part).__name__}, and {path} is no file; a Directory may be a folder"
            )
        # Of the folder that the run worked in, which is that of this process now.
        return {"path": str(path.absolute()), "kind": "directory" if is_folder else "file", "url": None}

    try:
        return messages.described(value, described)
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{UNSUPPORTED}: {error}") from None


def _behind(handle: Any, folder: Path) -> Path:
    """The file that a handle was opened on, which is only read; of what has none, such as BytesIO, the content in `folder`."""
    with suppress(ValueError):  # closed already: all is written
        if handle.writable():
            handle.flush()
    if isinstance(getattr(handle, "name", None), str):
        return Path(handle.name)
    descriptor, name = tempfile.mkstemp(prefix="output-", dir=folder)
    try:
        with open(descriptor, "wb") as copy:  # noqa: PTH123  # a descriptor is no path
            opened = getattr(handle, "buffer", handle)
            opened.seek(0)
            shutil.copyfileobj(opened, copy)
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedValue(f"a {type(handle).__name__} that cannot be read again: {error}") from None
    return Path(name)


if __name__ == "__main__":
    main()
