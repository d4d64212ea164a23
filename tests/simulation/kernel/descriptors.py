"""The open files of simulated processes, and what `open` returns."""

from __future__ import annotations

import fcntl
import io
import os
from _thread import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.kernel import real
from tests.simulation.kernel.databases import Databases
from tests.simulation.kernel.disk import Disk, Node
from tests.simulation.kernel.scheduler import Scheduler
from tests.simulation.kernel.sockets import FIRST_DESCRIPTOR, SocketTable

if TYPE_CHECKING:
    from tests.simulation.kernel.process import Process

PathLike = str | bytes | os.PathLike[str]


class OpenFile(NamedTuple):
    """A file or folder that a process has open."""

    process: Process
    disk: Disk
    node: Node
    path: str
    is_appending: bool


class Descriptors:
    """The descriptors of all simulated processes."""

    def __init__(self, scheduler: Scheduler, sockets: SocketTable, databases: Databases) -> None:
        self.scheduler = scheduler
        self.sockets = sockets
        self.databases = databases
        self.disks: list[Disk] = []
        self._home = get_ident()
        self._files: dict[int, OpenFile] = {}
        self._kept: list[int] = []

    def is_simulated(self) -> bool:
        """Return whether a simulated thread makes this call."""
        return self.scheduler.current is not None and get_ident() == self._home

    def disk(self, path: str) -> Disk | None:
        """Return the disk of a path. Return None if it is on none."""
        for disk in self.disks:
            if path.startswith(disk.root):
                return disk
        return None

    def is_socket(self, descriptor: int) -> bool:
        """Return whether a descriptor is a simulated socket."""
        return descriptor >= FIRST_DESCRIPTOR

    def add(self, descriptor: int, disk: Disk, node: Node, path: str, *, is_appending: bool) -> None:
        """Note that the current process has opened a file."""
        current = self.scheduler.current
        assert current is not None
        self._files[descriptor] = OpenFile(current.process, disk, node, path, is_appending)

    def find(self, descriptor: int) -> OpenFile | None:
        """Return the open file of a descriptor, or None."""
        return self._files.get(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        if self.is_socket(descriptor):
            self.scheduler.step("close socket")
            self.sockets.close(descriptor)
            return
        opened = self._files.get(descriptor)
        if opened is None:
            real.close(descriptor)
            return
        if not self.is_simulated():
            return  # an object of a process that has ended is collected; its descriptors were closed
        self.scheduler.step("close", opened.path.removeprefix(opened.disk.root))
        del self._files[descriptor]
        if self.databases.is_open_elsewhere(opened.path, opened.process):
            # Elsewhere this close drops no lock of the other processes, and here it would.
            self._kept.append(descriptor)
            return
        real.close(descriptor)

    def release(self, process: Process) -> list[int]:
        """Release the files of a process that has ended. Return its descriptors, which `forget` closes.

        Their numbers stay in use, so that an object that closes one of them later closes no file of another process.
        """
        found = [descriptor for descriptor, opened in self._files.items() if opened.process is process]
        nothing = real.os_open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for descriptor in found:
            if self.databases.is_open_elsewhere(self._files[descriptor].path, process):
                # To replace a descriptor closes it.
                self._kept.append(descriptor)
                del self._files[descriptor]
            else:
                real.dup2(nothing, descriptor, inheritable=False)
        real.close(nothing)
        return found

    def forget(self, descriptors: list[int]) -> None:
        """Close the descriptors of a process that has ended, after all of its objects are gone."""
        for descriptor in descriptors:
            if self._files.pop(descriptor, None) is not None:
                real.close(descriptor)

    def close_all(self) -> None:
        """Close everything at the end of the simulation."""
        for descriptor in (*self._files, *self._kept):
            real.close(descriptor)
        self._files.clear()
        self._kept.clear()

    def open_file(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,  # as in Python
        opener: Any = None,
    ) -> Any:
        """`open`."""
        if not self.is_simulated():
            return real.open_file(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if isinstance(file, int):
            is_ours = file in self._files
        else:
            text = os.fsdecode(file)
            is_ours = self.disk(text) is not None
            if text.startswith("/proc/") and not is_ours:
                current = self.scheduler.current
                assert current is not None
                found = current.process.machine.system_file(text, current.process)
                if found is not None:
                    return io.StringIO(found) if "b" not in mode else io.BytesIO(found.encode())
        if not is_ours:
            return real.open_file(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = RawFile(file, mode.replace("b", "").replace("t", ""), closefd=closefd, opener=opener)
        if buffering == 0:
            return raw
        buffered: Any
        if "+" in mode:
            buffered = io.BufferedRandom(raw)
        elif raw.writable():
            buffered = io.BufferedWriter(raw)
        else:
            buffered = io.BufferedReader(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    def outside_status(self, path: PathLike) -> os.stat_result | None:
        """Return the status of a path that is about the machine of the current process, such as one in /proc."""
        if self.is_simulated() and os.fsdecode(path) == "/proc/self/ns/pid":
            return os.stat_result((0o100444, 4026531836, 4, 1, 0, 0, 0, 0, 0, 0))
        return None

    def flock(self, descriptor: Any, operation: int) -> None:
        """`fcntl.flock`. A lock that another process has is waited for in virtual time."""
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if not self.is_simulated():
            REAL_FLOCK(number, operation)
            return
        opened = self._files.get(number)
        self.scheduler.step("flock", "" if opened is None else opened.path.removeprefix(opened.disk.root))
        while True:
            try:
                REAL_FLOCK(number, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if operation & fcntl.LOCK_NB:
                    raise
                self.scheduler.sleep(0.001)
            else:
                return


REAL_FLOCK = fcntl.flock


class RawFile(io.RawIOBase):
    """An `io.FileIO` on a simulated disk. It uses the functions of `os`, which are the simulated ones."""

    def __init__(self, file: Any, mode: str, *, closefd: bool, opener: Any) -> None:
        super().__init__()
        self._descriptor = -1
        self._closes = closefd
        self.name = file
        self.mode = "rb+" if "+" in mode else f"{mode}b"
        flags = os.O_RDWR if "+" in mode else os.O_RDONLY if mode == "r" else os.O_WRONLY
        self._is_readable, self._is_writable = "+" in mode or mode == "r", "+" in mode or mode != "r"
        flags |= {"w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}.get(mode[0], 0)
        if isinstance(file, int):
            self._descriptor = file
        elif opener is not None:
            self._descriptor = opener(file, flags | os.O_CLOEXEC)
        else:
            self._descriptor = os.open(file, flags | os.O_CLOEXEC, 0o666)
        if mode[0] == "a":
            real.lseek(self._descriptor, 0, os.SEEK_END)

    def fileno(self) -> int:
        """Return its descriptor."""
        if self._descriptor < 0:
            raise ValueError("I/O operation on closed file")
        return self._descriptor

    def readable(self) -> bool:
        """Return whether it can be read."""
        return self._is_readable

    def writable(self) -> bool:
        """Return whether it can be written."""
        return self._is_writable

    def seekable(self) -> bool:
        """Return that it has a position."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer. Return their number."""
        view = memoryview(buffer).cast("B")
        data = os.read(self.fileno(), len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        """Write bytes. Return their number."""
        return os.write(self.fileno(), data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        return real.lseek(self.fileno(), offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        size = self.tell() if size is None else size
        os.ftruncate(self.fileno(), size)
        return size

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            super().close()
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0 and self._closes:
                os.close(descriptor)
