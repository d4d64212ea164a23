"""Answer where frames can be read without this server, in place of the frames."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aiohttp import web

from filestore.core.digest import Digest
from filestore.http import wire
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository

URL_SECONDS = 300
"""How long a URL is valid. A client that has lost its token can read for as long with those it has."""
LEAST_SIZE = 128 << 10
"""Bytes of the smallest frame that gets a URL. A smaller one costs more as a request of its own than as a part of a batch."""
URLS_LIMIT = 1024
"""The most URLs of one answer, so that it takes a few MiB at most."""


async def frame_urls_answer(
    context: RequestContext, repository: LocalRepository, digests: Sequence[Digest]
) -> web.Response | None:
    """Return the answer for these frames. Return None if it would have no URL, and the client takes the frames too.

    A client that has a limit of bytes per second gets no URL, because nobody else keeps to that limit.
    """
    accepted = context.request.headers.get("Accept", "")
    if wire.FRAME_URLS not in accepted:
        return None
    takes_frames = wire.OCTETS in accepted
    permitted = context.presigned_reads and context.throttle is None
    found = await repository.frame_urls(digests, seconds=URL_SECONDS) if permitted else None
    if found is None:
        if takes_frames:
            return None
        frames: list[dict[str, object]] = [{"size": size} for size in await repository.frame_sizes(digests)]
    else:
        frames = [{"size": 0} if frame is None else {"size": frame.size} for frame in found]
    large = [place for place, frame in enumerate(found or ()) if frame is not None and frame.size >= LEAST_SIZE]
    if takes_frames and not large:
        return None
    for place in large[:URLS_LIMIT]:
        frames[place]["url"] = found[place].url  # type: ignore[index, union-attr]  # `large` has those that are there
    body = json.dumps({"expires_in": URL_SECONDS, "frames": frames}, separators=(",", ":")).encode()
    # Whoever has such a URL can read the frame.
    return web.Response(body=body, headers={"Content-Type": wire.FRAME_URLS, "Cache-Control": "no-store"})
