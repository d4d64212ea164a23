"""Call what the product runs in threads directly, which makes the check of a small repository several times as fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar
from unittest.mock import patch

from filestore.repository.index import connections
from filestore.repository.stores import disk_placement, disk_space
from filestore.system import threads

P = ParamSpec("P")
T = TypeVar("T")

RESERVE_SIZE = 1 << 20
"""States of a disk are written thousands of times, and a reserve is only zeros."""


async def _call(_: ThreadPoolExecutor, __: Callable[[], None], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


def _call_each(function: Callable[[T], object], items: list[T]) -> None:
    for item in items:
        function(item)


@contextmanager
def without_threads() -> Iterator[None]:
    """Do so during a block, with a small reserve."""
    with (
        patch.object(threads, "in_stoppable_thread", _call),
        patch.object(connections, "in_stoppable_thread", _call),
        patch.object(disk_placement, "run_in_parallel", _call_each),
        patch.object(disk_space, "_RESERVE_SIZE", RESERVE_SIZE),
    ):
        yield
