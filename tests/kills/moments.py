"""Kill this process at a named moment of its work: just before or just after a function of the product.

A function is named by its module and its name there. The process is killed at the n-th time that it comes there. The
moment `call` is before the n-th call of any function of the operating system that changes files.
"""

from __future__ import annotations

import fcntl
import importlib
import inspect
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "rename", "replace", "symlink", "link", "unlink", "rmdir")
"""Functions of `os` that change files. Python's own file objects do not use them, so `open` is not all opens."""
_MORE_CALLS = ("chmod", "utime")


class Moment(NamedTuple):
    """Where a process is killed."""

    name: str
    """How the moment is called in the figures."""
    function: str
    """`module:function` or `module:Class.function`."""
    is_after: bool = False
    """Just after the function has returned, and not just before it is called."""


def arm(moment: Moment, count: int) -> None:
    """Kill this process when it comes to the moment for the `count`-th time."""
    module, _, path = moment.function.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    wrapped = _wrapped(getattr(owner, name), _countdown(count), is_after=moment.is_after)
    # A class method is bound already.
    is_bound = isinstance(inspect.getattr_static(owner, name), classmethod | staticmethod)
    setattr(owner, name, staticmethod(wrapped) if is_bound else wrapped)


def arm_calls(count: int) -> None:
    """Kill this process before its `count`-th call of a function that changes files or takes a lock."""
    burn = _countdown(count)
    for name in (*CALLS, *_MORE_CALLS):
        setattr(os, name, _wrapped(getattr(os, name), burn, is_after=False))
    fcntl.flock = _wrapped(fcntl.flock, burn, is_after=False)


def _countdown(count: int) -> Callable[[], None]:
    lock = threading.Lock()
    left = count

    def burn() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return burn


def _wrapped(function: Callable[..., Any], burn: Callable[[], None], *, is_after: bool) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        async def run(*args: Any, **kwargs: Any) -> Any:
            if not is_after:
                burn()
            result = await function(*args, **kwargs)
            if is_after:
                burn()
            return result

        return run

    def call(*args: Any, **kwargs: Any) -> Any:
        if not is_after:
            burn()
        result = function(*args, **kwargs)
        if is_after:
            burn()
        return result

    return call
