"""Keep a server below its limit of open files, and answer well when it is reached anyway.

A server that has no descriptor left cannot even accept the connection on which it would say so. So each process has
fewer connections than descriptors, and further ones get the answer 503.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from typing import Any

from filestore.http.server.errors import OUT_OF_DESCRIPTORS

logger = logging.getLogger("filestore.server")

_KEPT_FREE = 64
"""Descriptors for the index, the log, locks and libraries."""
_PER_CONNECTION = 4
"""Descriptors of a connection with a request: its socket, a duplicate, a file, and a share of `OpenFrames`."""
_LEAST_CONNECTIONS = 4
_LOG_SECONDS = 60.0
_FILES_LIMIT = 65536
_OUT = (errno.EMFILE, errno.ENFILE)


def connections_limit() -> int:
    """Return how many connections this process may have, by its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(_LEAST_CONNECTIONS, (soft - _KEPT_FREE) // _PER_CONNECTION)


def allow_many_files() -> None:
    """Raise the limit of open files, which is 1024 on many systems.

    Each connection and each frame that is sent is an open file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_LIMIT if hard == resource.RLIM_INFINITY else min(_FILES_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class OpenFrames:
    """Count the frames that connections of one process have open, apart from the one that each may have in any case."""

    def __init__(self, limit: int | None = None) -> None:
        """Without a limit, there are as many as the connections that this process may have."""
        self._left = connections_limit() if limit is None else limit

    def take(self, wanted: int) -> int:
        """Take the right to open up to `wanted` frames. Return how many may be opened, at once and without a wait."""
        given = min(wanted, self._left)
        self._left -= given
        return given

    def give_back(self, count: int) -> None:
        """Note that so many frames are closed."""
        self._left += count


class AcceptErrors:
    """Handle errors of the event loop: log in one line a minute that no descriptor is left for a new connection."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _OUT:
            loop.default_exception_handler(context)
            return
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            logger.error("new connections wait: %s", OUT_OF_DESCRIPTORS)
