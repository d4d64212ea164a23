"""Remember the URLs of frames that were given a short time ago, for further readers of the same file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from filestore.core.digest import Digest, chunk_digest
from filestore.system.clock import elapsed_seconds

URL_SECONDS = 300
"""How long a URL is valid. A client that has lost its token can read for as long with those it has."""
REUSED_SECONDS = 60
"""How long after it was signed a URL is given again. It is then valid for four more minutes, in which a batch is read."""
RECENT_SIZE = 8 << 20
"""Bytes of all lists of a process. The URLs of 10 GB of frames have about 6 MB."""


class RecentFrames(NamedTuple):
    """The JSON of a list of frames with URLs, and when the URLs end, by `elapsed_seconds`."""

    frames: bytes
    end: float


class RecentUrls:
    """The lists that a server process has given last, by namespace and by the frames that were asked for, in their order.

    A URL leads to one object whose name is never used again. So if the object was removed since, the URL leads nowhere, and the
    client asks the server for the frame.
    """

    def __init__(self, *, limit: int = RECENT_SIZE) -> None:
        self._limit = limit
        self._size = 0
        self._kept: dict[tuple[str, Digest], RecentFrames] = {}

    def find(self, namespace: str, digests: Sequence[Digest]) -> RecentFrames | None:
        """Return what was kept for these frames, if it is recent."""
        found = self._kept.get(_key(namespace, digests))
        return found if found is not None and found.end - elapsed_seconds() > URL_SECONDS - REUSED_SECONDS else None

    def keep(self, namespace: str, digests: Sequence[Digest], found: RecentFrames) -> None:
        """Keep a list, and forget those that were kept first if all have too many bytes."""
        key = _key(namespace, digests)
        self._forget(key)
        self._kept[key] = found
        self._size += len(found.frames)
        while self._size > self._limit:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: tuple[str, Digest]) -> None:
        found = self._kept.pop(key, None)
        self._size -= 0 if found is None else len(found.frames)


def _key(namespace: str, digests: Sequence[Digest]) -> tuple[str, Digest]:
    # A list may have 1,024 digests, of which a key would be as long as the list of frames.
    return namespace, chunk_digest(b"".join(digests))
