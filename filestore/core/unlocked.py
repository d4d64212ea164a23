"""Calls that do not hold the interpreter lock, and a way to measure them.

One thread of a process runs Python at a time. A call that hashes, compresses or moves bytes gives up the lock meanwhile, so that
such calls run side by side on several cores. What a process spends outside such calls limits how much it can do in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

MEASURED_EACH = 7
"""Of how many short calls that are alike one is measured. 64 of them move 1 MiB, and the first is not like the others."""


class Measure(Protocol):
    """A function that makes a call with the given arguments, measures it, and returns its result."""

    def __call__(self, function: Callable[..., Any], args: tuple[Any, ...], times: int = 1) -> Any:
        """Make the call once, and count its time `times` times."""
        ...


_measure: Measure | None = None


def unlocked(function: Callable[..., T], *args: Any) -> T:
    """Return `function(*args)`, a call that gives up the interpreter lock for nearly all of its time.

    It is measured where someone measures (`filestore.system.metrics`). That costs 1 us; otherwise this costs 0.1 us. Use it for
    calls on 64 KiB and more, and for those that wait.
    """
    if _measure is None:
        return function(*args)
    result: T = _measure(function, args)
    return result


def unlocked_in_series(number: int, function: Callable[..., T], *args: Any) -> T:
    """As `unlocked`, for the call with this number in a series of short calls that are alike.

    One of `MEASURED_EACH` is measured, for all of them: to measure a call that moves 16 KiB costs a tenth of the call. It is
    the one in the middle, so that short series are measured right on the average.
    """
    if _measure is None or number % MEASURED_EACH != MEASURED_EACH // 2:
        return function(*args)
    result: T = _measure(function, args, MEASURED_EACH)
    return result


def measure_unlocked(measure: Measure | None) -> None:
    """Make all later calls of `unlocked` by `measure`. None ends that."""
    global _measure  # noqa: PLW0603  # what a process measures is the process's
    _measure = measure
