"""Name the steps of a process, and kill it at one of them: just before or just after a call that changes something.

A step is `MOMENT CALL PLACE`, such as `before rename chunks`. The place is where below the folder of the trial the call
works. In `root`, the folder of the repository, it is `chunks`, `manifests`, `staging` (the folder tmp), `index` and so on.
In the folders of `_DIVIDED` it has the name of the folder before it, as in `backup chunks`. Any other folder is one place.
`before send` and `after send` are for bytes that are sent to another process; they have no place. In a process that uses an
object store and PostgreSQL, there are also `put object`, `delete objects` and `commit rows`.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import socket
import sqlite3
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_SWITCH = struct.Struct("<II120s")
"""How often the step is still to be passed, the process that was killed there, and the step."""
_PLACES = {"tmp": "staging", "": "root", "index.sqlite-wal": "index", "index.sqlite": "index"}
_DIVIDED = frozenset({"backup", "cache", "new"})
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}|index\.sqlite\.[0-9a-f]+")


class Switch:
    """A file by which one process says at which step another one is to be killed. Both have it in memory."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(_SWITCH.size)
            self._memory = mmap.mmap(file.fileno(), _SWITCH.size)
        self._lock = threading.Lock()
        self._last = b""

    def arm(self, step: str, count: int) -> None:
        """Have the next process that passes `step` for the `count`-th time, counted over all processes, be killed there."""
        _SWITCH.pack_into(self._memory, 0, count, 0, step.encode())

    def disarm(self) -> int:
        """Kill no other process. Return the id of the process that was killed, or 0."""
        self._memory[8:] = bytes(_SWITCH.size - 8)
        return self.killed

    @property
    def killed(self) -> int:
        """The id of the process that was killed at the step, or 0."""
        found: int = _SWITCH.unpack_from(self._memory)[1]
        return found

    @property
    def is_armed(self) -> bool:
        """Whether a process is to be killed. Almost always this is false, and costs nothing."""
        return self._memory[8] != 0

    def passed(self, step: str) -> None:
        """Note that this process passes a step, and end it if it is the one."""
        with self._lock:
            count, killed, wanted = _SWITCH.unpack_from(self._memory)
            if killed or wanted.rstrip(b"\0") != step.encode():
                return
            if count > 1:
                struct.pack_into("<I", self._memory, 0, count - 1)
                return
            struct.pack_into("<I", self._memory, 4, os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """Reports each step of this process to a function."""

    def __init__(self, folder: Path, passed: Callable[[str], None], is_wanted: Callable[[], bool]) -> None:
        """Report steps below `folder` while `is_wanted` is true."""
        self._folder = f"{folder}/"
        self._passed = passed
        self._is_wanted = is_wanted

    def install(self) -> None:
        """Wrap the calls of this process, and of the processes that it forks."""
        self._wrap_os()
        self._wrap_sockets()
        self._wrap_databases()
        if "FILESTORE_STORE" in os.environ:
            self._wrap_engines()

    def place_of(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the place of a path or a descriptor, or None if it is not below the folder."""
        with suppress(OSError, TypeError, ValueError):
            if isinstance(path, int):
                text = _open_path(path)
            else:
                text = os.fspath(path)
                if dir_fd is not None:
                    text = f"{_open_path(dir_fd)}/{text}"
            if isinstance(text, str) and f"{text}/".startswith(self._folder):
                area, _, rest = text[len(self._folder) :].partition("/")
                name = rest.partition("/")[0]
                place = "new file" if _TEMPORARY.fullmatch(name) else _PLACES.get(name, name)
                return place if area == "root" else f"{area} {place}" if area in _DIVIDED else area
        return None

    @contextmanager
    def _at(self, call: str, place: str | None) -> Iterator[None]:
        if place is None:
            yield
            return
        self._passed(f"before {call} {place}".rstrip())
        yield
        self._passed(f"after {call} {place}".rstrip())

    def _wrap_os(self) -> None:
        for name, call in {
            "open": "create",
            "write": "write",
            "pwrite": "write",
            "fsync": "sync",
            "mkdir": "mkdir",
            "rename": "rename",
            "replace": "rename",
            "link": "link",
            "unlink": "unlink",
            "rmdir": "rmdir",
        }.items():
            setattr(os, name, self._wrapped(getattr(os, name), call))

    def _wrapped(self, function: Callable[..., Any], call: str) -> Callable[..., Any]:
        # The place of a rename is where the new name is.
        position, folder = (1, "dst_dir_fd") if call in {"rename", "link"} else (0, "dir_fd")

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._is_wanted() or (call == "create" and not args[1] & os.O_CREAT):
                return function(*args, **kwargs)
            with self._at(call, self.place_of(args[position], kwargs.get(folder))):
                return function(*args, **kwargs)

        return wrapper

    def _wrap_sockets(self) -> None:
        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if not self._is_wanted() or not _reaches_a_peer(args[0]):
                    return function(*args, **kwargs)
                with self._at("send", ""):
                    return function(*args, **kwargs)

            return wrapper

        for name in ("send", "sendmsg"):
            setattr(socket.socket, name, wrapped(getattr(socket.socket, name)))
        os.sendfile = wrapped(os.sendfile)

    def _wrap_databases(self) -> None:
        steps = self

        class Connection(sqlite3.Connection):
            place: str | None = None

            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                call = sql.partition(" ")[0].lower()
                if call not in {"begin", "commit"} or not steps._is_wanted():
                    return super().execute(sql, *arguments)
                with steps._at(call, self.place):
                    return super().execute(sql, *arguments)

        connect = sqlite3.connect

        def connect_wrapped(database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
            path = str(database)
            connection = connect(database, *args, factory=Connection, **kwargs)
            connection.place = steps.place_of(unquote(urlsplit(path).path) if path.startswith("file:") else path)
            return connection

        sqlite3.connect = connect_wrapped  # type: ignore[assignment]

    def _wrap_engines(self) -> None:
        # Only for those who use them: they take half a second to import.
        from filestore.repository.index.postgres.index import PostgresIndex
        from filestore.repository.stores.s3_client import S3Client

        def wrapped(function: Callable[..., Any], call: str) -> Callable[..., Any]:
            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._at(call, ""):
                    return function(*args, **kwargs)

            @wraps(function)
            async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._at(call, ""):
                    return await function(*args, **kwargs)

            return async_wrapper if iscoroutinefunction(function) else wrapper

        for owner, name, call in (
            (S3Client, "put_blocking", "put object"),
            (S3Client, "put", "put object"),
            (S3Client, "delete", "delete objects"),
            (PostgresIndex, "_commit", "commit rows"),
        ):
            setattr(owner, name, wrapped(getattr(owner, name), call))


def _open_path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _reaches_a_peer(target: socket.socket | int) -> bool:
    """Return whether what is written there is sent to another process. An event loop has a socket to wake itself."""
    if isinstance(target, int):
        return stat.S_ISSOCK(os.fstat(target).st_mode)
    return target.family == socket.AF_INET
