"""Send bytes while the work for an answer is done, so that neither the client nor a proxy gives up."""

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
"""Seconds between two bytes. Timeouts are longer: a client's is a setting, a proxy's is often 60 seconds."""
BLANKS_SIZE = 48 << 10
"""Bytes of a slow answer that are kept for blanks. They last for 13 hours."""
DOCUMENT_SIZE = 16 << 10
"""Bytes of a slow answer that are kept for the document, a record or a problem."""


async def answer_slowly(
    context: RequestContext, work: Coroutine[Any, Any, web.Response], *, document_size: int = DOCUMENT_SIZE
) -> web.StreamResponse:
    """Return the answer that `work` makes, a JSON document. The work is finished even if the client disconnects.

    The document has at most `document_size` bytes. The head announces the size of the answer long before the document is
    ready, and blanks fill the rest.

    If the work takes longer than a second, the head is sent first, with the status 200. Then a blank is sent every
    second, and then the document. If the work failed, the document is a problem. Raises Stalled, ConnectionError.
    """
    async with task_group() as group:
        working = group.create_task(_outcome(context, work))
        if await _is_done(working):
            return working.result()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            async with context.answering(response, size=BLANKS_SIZE + document_size) as answer:
                left = BLANKS_SIZE + document_size - await _send_blanks(answer, working)
                body = working.result().body
                assert isinstance(body, bytes)  # noqa: S101  # a JSON document is bytes
                await answer.send(body.ljust(left))
        except (Stalled, ConnectionError):
            # Finish the work, as a quick answer does. The client's next attempt then finds less to do.
            await working
            raise
    return response


async def _outcome(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.Response:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        return problem(context.request, error)


async def _is_done(working: asyncio.Task[web.Response]) -> bool:
    """Wait for the work, at most one second. Return whether it is done."""
    await asyncio.wait([working], timeout=BLANK_SECONDS)
    return working.done()


async def _send_blanks(answer: BodyWriter, working: asyncio.Task[web.Response]) -> int:
    """Send a blank now and one every second until the work is done. Return their number."""
    count = 0
    while not working.done():
        if count < BLANKS_SIZE:
            await answer.send(b" ")
            count += 1
        await _is_done(working)
    return count
