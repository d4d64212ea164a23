"""Put the simulation in the place of disk, sockets, clock, threads and randomness, and put the real ones back."""

from __future__ import annotations

import builtins
import concurrent.futures
import concurrent.futures.thread
import fcntl
import importlib
import io
import os
import pkgutil
import random
import secrets
import select
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from _thread import get_ident
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from queue import SimpleQueue
from types import CellType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import filestore
from tests.simulation.kernel import primitives, real
from tests.simulation.kernel.files import Files
from tests.simulation.kernel.loops import resolve
from tests.simulation.kernel.scheduler import Killed
from tests.simulation.kernel.sockets import SimulatedPoll, SimulatedSocket

if TYPE_CHECKING:
    from tests.simulation.kernel.world import World

_FILE_CALLS = (
    "access",
    "chmod",
    "close",
    "copy_file_range",
    "dup",
    "fchmod",
    "fdatasync",
    "fstat",
    "fsync",
    "ftruncate",
    "link",
    "listdir",
    "lstat",
    "mkdir",
    "open",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "read",
    "readlink",
    "rename",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "symlink",
    "unlink",
    "utime",
    "write",
)
_OTHER_NAMES = {"replace": "rename", "remove": "unlink"}
_REAL_POOL = concurrent.futures.ThreadPoolExecutor
_PER_THREAD = "per_thread.<locals>.instance"
_OWN_OBJECTS = {
    "filestore.system.threads": ("_pools",),
    "filestore.repository.index.connections": ("_inherited",),
    "filestore.cache.leases": ("_heart",),
}
"""Objects of modules of which each process has its own. Each is made again by its class."""


class Patches:
    """Replaced attributes, which `undo` puts back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def fill(self, cell: CellType, value: Any) -> None:
        """Replace what a closure has."""
        before = cell.cell_contents
        cell.cell_contents = value

        def undo() -> None:
            cell.cell_contents = before

        self._undo.append(undo)

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()


_UNUSED = ("filestore.runtime", "filestore.repository.index.postgres", "filestore.repository.stores.s3")
"""The beginnings of the names of modules that no simulation uses. They need packages with threads of their own."""


@cache
def load_product() -> None:
    """Import all modules that a simulation may use, so that none is imported while the simulation is in place."""
    for name in ("aiohttp.web", "asyncio", "concurrent.futures.process", "multiprocessing.synchronize", "uuid", "zipfile"):
        importlib.import_module(name)
    for found in pkgutil.walk_packages(filestore.__path__, "filestore."):
        if not found.name.startswith(_UNUSED) and not found.name.endswith("__main__"):
            importlib.import_module(found.name)


@contextmanager
def installed(world: World) -> Iterator[None]:
    """Let the product use the simulation during the block."""
    load_product()
    patches = Patches()
    state = random.getstate()
    unraisable = sys.unraisablehook

    def show(failure: sys.UnraisableHookArgs) -> None:
        current = world.scheduler.current
        if not isinstance(failure.exc_value, Killed) and (current is None or not current.process.is_dead):
            unraisable(failure)

    try:
        _install_files(world, patches)
        _install_clock(world, patches)
        _install_sockets(world, patches)
        _install_threads(world, patches)
        _install_randomness(world, patches)
        patches.set(sqlite3, "connect", _choice(world, world.databases.connect, sqlite3.connect))
        sys.unraisablehook = show
        yield
    finally:
        sys.unraisablehook = unraisable
        patches.undo()
        random.setstate(state)


def _choice(world: World, simulated: Callable[..., Any], real_one: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the first function in a simulated thread, and the second one elsewhere."""
    scheduler, home = world.scheduler, get_ident()

    def call(*arguments: Any, **options: Any) -> Any:
        if scheduler.current is None or get_ident() != home:
            return real_one(*arguments, **options)
        return simulated(*arguments, **options)

    return call


def _install_files(world: World, patches: Patches) -> None:
    files = Files(world.descriptors)
    for name in _FILE_CALLS:
        patches.set(os, name, getattr(files, name))
    for name, same in _OTHER_NAMES.items():
        patches.set(os, name, getattr(files, same))
    patches.set(builtins, "open", world.descriptors.open_file)
    patches.set(io, "open", world.descriptors.open_file)
    patches.set(fcntl, "flock", world.descriptors.flock)
    patches.set(os, "getpid", _choice(world, lambda: world.process_now().pid, real.getpid))
    patches.set(os, "kill", _choice(world, world.kill_by_number, real.kill))
    patches.set(tempfile, "gettempdir", _choice(world, world.temporary_folder, tempfile.gettempdir))
    patches.set(sys.modules["filestore.system.files"], "_syncfs", lambda: files.sync_file_system)
    patches.set(sys.modules["filestore.system.writeback"], "_sync_file_range", lambda: None)


def _install_clock(world: World, patches: Patches) -> None:
    replaced: dict[Any, Any] = {}
    clocks: dict[str, Callable[..., Any]] = {
        "time": world.wall,
        "time_ns": world.wall_ns,
        "monotonic": lambda: world.now,
        "monotonic_ns": lambda: int(world.now * 1e9),
        "perf_counter": lambda: world.now,
        "perf_counter_ns": lambda: int(world.now * 1e9),
        "thread_time": lambda: 0.0,
        "process_time": lambda: 0.0,
        "sleep": world.scheduler.sleep,
    }
    for name, simulated in clocks.items():
        real_one = getattr(time, name)
        replaced[real_one] = _choice(world, simulated, real_one)
        patches.set(time, name, replaced[real_one])
    # The clocks that are default arguments were taken when their module was loaded.
    for function in _functions():
        if function.__kwdefaults__:
            kept = {
                name: replaced.get(value, value) if callable(value) else value for name, value in function.__kwdefaults__.items()
            }
            if kept != function.__kwdefaults__:
                patches.set(function, "__kwdefaults__", kept)
        if function.__defaults__ and any(callable(value) and value in replaced for value in function.__defaults__):
            found = tuple(replaced.get(value, value) if callable(value) else value for value in function.__defaults__)
            patches.set(function, "__defaults__", found)


def _install_sockets(world: World, patches: Patches) -> None:
    table = world.sockets_table
    real_socket = socket.socket

    class ChosenSocket(SimulatedSocket):
        """A simulated socket in a simulated thread, and a real one elsewhere."""

        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            if not world.descriptors.is_simulated():
                return real_socket(*arguments, **options)
            return SimulatedSocket(table, *arguments, **options)

    patches.set(socket, "socket", ChosenSocket)
    patches.set(socket, "getaddrinfo", _choice(world, lambda host, port, *_, **__: resolve(host, port), socket.getaddrinfo))
    patches.set(select, "poll", _choice(world, lambda: SimulatedPoll(table), select.poll))
    # The loop of a process has its own handlers.
    patches.set(signal, "signal", _choice(world, lambda *_: signal.SIG_DFL, signal.signal))
    patches.set(signal, "getsignal", _choice(world, lambda _: signal.SIG_DFL, signal.getsignal))
    patches.set(signal, "pthread_sigmask", _choice(world, lambda *_: set(), signal.pthread_sigmask))


def _install_threads(world: World, patches: Patches) -> None:
    scheduler = world.scheduler
    makers: dict[str, Callable[..., Any]] = {
        "Lock": partial(primitives.Lock, scheduler),
        "RLock": partial(primitives.Lock, scheduler, is_reentrant=True),
        "Condition": partial(primitives.Condition, scheduler),
        "Event": partial(primitives.Event, scheduler),
        "Thread": lambda *arguments, **options: primitives.SimulatedThread(scheduler, *arguments[1:], **options),
    }
    for name, make in makers.items():
        patches.set(threading, name, _choice(world, make, getattr(threading, name)))

    def pool(max_workers: int | None = None, thread_name_prefix: str = "", **_: Any) -> primitives.Pool:
        return primitives.Pool(scheduler, max_workers, thread_name_prefix)

    chosen = _choice(world, pool, _REAL_POOL)
    for module in _modules():
        for name, value in list(vars(module).items()):
            if value is _REAL_POOL:
                patches.set(module, name, chosen)
    pools = sys.modules["filestore.system.fair_pool"]
    patches.set(pools, "SimpleQueue", _choice(world, partial(primitives.WorkQueue, scheduler), SimpleQueue))
    _install_objects(world, patches)


def _install_objects(world: World, patches: Patches) -> None:
    """Give each thread, and each process, its own objects where modules have one."""
    scheduler = world.scheduler
    for function in _functions():
        if function.__qualname__ == _PER_THREAD:
            for cell in function.__closure__ or ():
                if isinstance(cell.cell_contents, threading.local):
                    patches.fill(cell, primitives.Local(scheduler))
    for module_name, names in _OWN_OBJECTS.items():
        for name in names:
            module = sys.modules[module_name]
            outside = getattr(module, name)
            patches.set(module, name, primitives.PerProcess(scheduler, type(outside), outside))


def _install_randomness(world: World, patches: Patches) -> None:
    entropy = random.Random(f"entropy {world.seed}")
    chosen = _choice(world, entropy.randbytes, real.urandom)
    patches.set(os, "urandom", chosen)
    patches.set(random, "_urandom", chosen)
    assert secrets.token_bytes.__module__ == "secrets"  # it uses the one of `random`
    random.seed(world.seed)


def _modules() -> list[ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "filestore"]


@cache
def _functions() -> Sequence[FunctionType]:
    """Return the functions and methods of the product."""
    return list(_each_function())


def _each_function() -> Iterator[FunctionType]:
    seen: set[int] = set()
    for module in _modules():
        for value in list(vars(module).values()):
            inside = list(vars(value).values()) if isinstance(value, type) else [value]
            for item in inside:
                function = item.__func__ if isinstance(item, (staticmethod, classmethod)) else item
                if isinstance(function, FunctionType) and id(function) not in seen:
                    seen.add(id(function))
                    yield function
