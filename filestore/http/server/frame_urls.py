"""Answer where frames can be read without this server, in place of the frames."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aiohttp import web

from filestore.core.digest import Digest
from filestore.http import wire
from filestore.http.server.context import RequestContext
from filestore.http.server.recent_urls import URL_SECONDS, RecentFrames
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import FrameUrl
from filestore.system.clock import elapsed_seconds

LEAST_SIZE = 128 << 10
"""Bytes of the smallest large frame. Many small ones cost more as requests of their own than as a batch, so they get no URL.
A few among more large ones get URLs: clients would ask this server for each of them alone, which takes it 4 ms."""
URLS_LIMIT = 1024
"""The most URLs of one answer, so that it takes a few MiB at most."""


async def frame_urls_answer(
    context: RequestContext, repository: LocalRepository, digests: Sequence[Digest]
) -> web.Response | None:
    """Return the answer for these frames. Return None if it would have no URL, and the client takes the frames too.

    A client that has a limit of bytes per second gets no URL, because nobody else keeps to that limit. URLs that were signed a
    short time ago are given again, unless the client says `Cache-Control: no-cache`, as after the store has refused them.
    """
    accepted = context.request.headers.get("Accept", "")
    if wire.FRAME_URLS not in accepted:
        return None
    takes_frames = wire.OCTETS in accepted
    permitted = context.presigned_reads and context.throttle is None
    if permitted and context.request.headers.get("Cache-Control") != "no-cache":
        recent = context.recent_urls.find(repository.namespace, digests)
        if recent is not None:
            return _answer(recent.frames, int(recent.end - elapsed_seconds()))
    began = elapsed_seconds()
    found = await repository.frame_urls(digests, seconds=URL_SECONDS) if permitted else None
    if found is None:
        if takes_frames:
            return None
        frames: list[dict[str, object]] = [{"size": size} for size in await repository.frame_sizes(digests)]
    else:
        frames = [{"size": 0} if frame is None else {"size": frame.size} for frame in found]
    named = _named(found or ())
    if takes_frames and not named:
        return None
    for place, url in named[:URLS_LIMIT]:
        frames[place]["url"] = url
    listed = json.dumps(frames, separators=(",", ":")).encode()
    if found is not None and named and None not in found:
        # A frame that is absent may be stored a moment later.
        context.recent_urls.keep(repository.namespace, digests, RecentFrames(listed, began + URL_SECONDS))
    return _answer(listed, URL_SECONDS)


def _answer(frames: bytes, seconds: int) -> web.Response:
    body = b'{"expires_in":%d,"frames":%b}' % (seconds, frames)
    # Whoever has such a URL can read the frame.
    return web.Response(body=body, headers={"Content-Type": wire.FRAME_URLS, "Cache-Control": "no-store"})


def _named(found: Sequence[FrameUrl | None]) -> list[tuple[int, str]]:
    """Return the places of the frames that get a URL, with it."""
    present = [(place, frame) for place, frame in enumerate(found) if frame is not None]
    large = [(place, frame) for place, frame in present if frame.size >= LEAST_SIZE]
    return [(place, frame.url) for place, frame in (present if 2 * len(large) > len(present) else large)]
