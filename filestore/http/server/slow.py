"""Send bytes while the work for an answer is done, so that neither the client nor a proxy gives up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

from aiohttp import web

from filestore.errors import Stalled, StorageError
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.repository.index.protocol import ListingGrowth
from filestore.system.threads import in_disk_thread, task_group

BLANK_SECONDS = 1.0
"""Seconds between two bytes. Timeouts are longer: a client's is a setting, a proxy's is often 60 seconds."""
BLANK_LINE = b" " * 63 + b"\n"
"""Sent every second where more bytes follow than a small answer has. A client expects 32 bytes per second there."""
BLANK_LINES_SIZE = 1 << 20
"""Bytes of a slow listing that are kept for blank lines. They last for 4 hours."""
_BLANK_LINES = BLANK_LINE * (PIECE // len(BLANK_LINE))
BLANKS_SIZE = 48 << 10
"""Bytes of a slow answer that are kept for blanks. They last for 13 hours."""
JSON: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json"})
DOCUMENT_SIZE = 16 << 10
"""Bytes of a slow answer that are kept for the document, a record or a problem."""


async def answer_slowly(
    context: RequestContext,
    work: Coroutine[Any, Any, web.Response],
    *,
    document_size: int = DOCUMENT_SIZE,
    goes_on: bool = True,
    headers: Mapping[str, str] = JSON,
) -> web.StreamResponse:
    """Return the answer that `work` makes, a document that blanks may surround. `headers` say what it is, if it comes late.

    If the client disconnects, the work is finished if `goes_on` is true, and cancelled otherwise.

    The document has at most `document_size` bytes. The head announces the size of the answer long before the document is
    ready, and blanks fill the rest.

    If the work takes longer than a second, the head is sent first, with the status 200. Then a blank is sent every
    second, and then the document. If the work failed, the document is a problem. Raises Stalled, ConnectionError.
    """
    async with task_group() as group:
        working = group.create_task(_outcome(context, work))
        if await _is_done(working):
            return working.result()
        response = web.StreamResponse(headers=headers)
        try:
            async with context.answering(response, size=BLANKS_SIZE + document_size) as answer:
                left = BLANKS_SIZE + document_size - await _send_blanks(answer, working)
                body = working.result().body
                assert isinstance(body, bytes)  # noqa: S101  # a document is bytes
                if len(body) > left:
                    # A client or a proxy would take the rest for the next answer on the connection.
                    body = _too_large(context, len(body))
                await answer.send(body.ljust(left))
        except (Stalled, ConnectionError):
            # As a quick answer does. The client's next attempt then finds less to do.
            if goes_on:
                await working
            raise
    return response


async def answer_while_it_grows(
    context: RequestContext, response: web.StreamResponse, file: BinaryIO, growth: ListingGrowth, work: Coroutine[Any, Any, None]
) -> None:
    """Answer with the listing that `work` writes to `file`. What is there is sent while the rest is written.

    If the work takes longer than a second, the head announces the largest size that the listing can have, and lines of blanks
    fill the rest. A failure of the work after that cuts the connection. If the client goes away, the work is cancelled.

    Raises the errors of the work, Stalled, ConnectionError.
    """
    async with task_group() as group:
        working = group.create_task(work)
        while not await _is_done(working) and growth.limit is None:
            pass
        if working.done():
            working.result()
            size = growth.size
        else:
            size = (growth.limit or 0) + BLANK_LINES_SIZE
        async with context.answering(response, size=size) as answer:
            if context.request.method == "HEAD":
                working.cancel()
            else:
                await _send_growing(answer, file, growth, working, size)


async def _send_growing(
    answer: BodyWriter, file: BinaryIO, growth: ListingGrowth, working: asyncio.Task[None], size: int
) -> None:
    """Send a listing to its end, and blanks up to `size` bytes. Raises StorageError if the listing is larger than it can be."""
    sent = blanks = 0
    is_over = False
    while not is_over:
        is_over = working.done()
        while sent < growth.size:
            piece = await in_disk_thread(os.pread, file.fileno(), min(PIECE, growth.size - sent), sent)
            if not piece or sent + len(piece) + blanks > size:
                raise StorageError("the listing of all records", "it has another size than it can have")
            await answer.send(piece)
            sent += len(piece)
        if not is_over and not await _is_done(working) and sent == growth.size and blanks < BLANK_LINES_SIZE:
            await answer.send(BLANK_LINE)
            blanks += len(BLANK_LINE)
    working.result()
    while left := size - sent - blanks:
        await answer.send(_BLANK_LINES[:left])
        blanks += min(left, len(_BLANK_LINES))


async def _outcome(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.Response:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        return problem(context.request, error)


def _too_large(context: RequestContext, size: int) -> bytes:
    """Return the document in the place of one that is larger than announced."""
    error = StorageError("the answer", f"its {size} bytes are more than were announced")
    body = problem(context.request, error).body
    assert isinstance(body, bytes)  # noqa: S101  # as above
    return body


async def _is_done(working: asyncio.Task[Any]) -> bool:
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
