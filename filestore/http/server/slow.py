"""Answers that are long in coming: while the work is done, bytes move, so that nobody in between takes the server for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from filestore.errors import Stalled
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.system.threads import task_group

BLANK_SECONDS = 1.0
"""How long nothing is said. Less than anybody's patience: a client's is a setting, a proxy's is often 60 seconds."""
SLOW_SIZE = 64 << 10
"""Bytes of a slow answer. Its head says how many, long before the document is there; blanks make up the rest."""
DOCUMENT_SIZE = 16 << 10
"""Bytes of it that blanks leave to the document, a record or a problem. All others take 13 hours to be used up."""


async def answer_slowly(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.StreamResponse:
    """The answer that `work` makes, a JSON document. It does the work to its end where the client goes.

    Where it takes longer than a second, the head goes first, with the status 200, then a blank every second, and then the
    document, which is a problem where the work failed. Raises Stalled, ConnectionError.
    """
    async with task_group() as group:
        working = group.create_task(_outcome(context, work))
        if await _is_done(working):
            return working.result()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            async with context.answering(response, size=SLOW_SIZE) as answer:
                left = SLOW_SIZE - await _send_blanks(answer, working)
                body = working.result().body
                assert isinstance(body, bytes)  # noqa: S101  # a JSON document is
                await answer.send(body.ljust(left))
        except (Stalled, ConnectionError):
            # As it is done where nothing is sent meanwhile; a try after this one finds less to do.
            await working
            raise
    return response


async def _outcome(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.Response:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends this request only
        return problem(context.request, error)


async def _is_done(working: asyncio.Task[web.Response]) -> bool:
    """Wait for it, for a second at most."""
    await asyncio.wait([working], timeout=BLANK_SECONDS)
    return working.done()


async def _send_blanks(answer: BodyWriter, working: asyncio.Task[web.Response]) -> int:
    """Send a blank now, and one every second until it is done; how many."""
    count = 0
    while not working.done():
        if count < SLOW_SIZE - DOCUMENT_SIZE:
            await answer.send(b" ")
            count += 1
        await _is_done(working)
    return count
