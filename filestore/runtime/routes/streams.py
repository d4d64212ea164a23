"""Send the outputs of a run while it goes on: JSON lines, each in one piece of a chunked answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from filestore.http.server.context import RequestContext
from filestore.runtime.generators import RunStream, StreamedOutputs
from filestore.runtime.runs import Run
from filestore.system.threads import in_cpu_thread

Lines = Callable[[Run, StreamedOutputs | None], list[dict[str, Any]]]
"""A function that describes new outputs, or with None the end of a run: one JSON object for each line."""
WithUrls = Callable[[bytes], Awaitable[bytes]]
"""A function that puts the URLs of files into encoded outputs."""


async def stream_run(
    context: RequestContext, run: Run, stream: RunStream, lines: Lines, with_urls: WithUrls
) -> web.StreamResponse:
    """Answer with the outputs of a run that has begun.

    If the client is gone, or takes nothing for `stall_seconds`, the run is ended.

    Raises Stalled, ConnectionError.
    """
    headers = {
        "Content-Type": "application/x-ndjson",
        "X-Run-Id": run.id,
        # nginx would collect lines otherwise.
        "X-Accel-Buffering": "no",
    }
    response = web.StreamResponse(headers=headers)
    try:
        async with context.moving():
            await response.prepare(context.request)
        context.transport.set_write_buffer_limits(high=0)
        async for outputs in stream:
            await _send(context, response, lines(run, outputs), with_urls)
        await _send(context, response, lines(run, None), with_urls)
        async with context.moving():
            await response.write_eof()
    finally:
        stream.abandon()
    return response


async def _send(context: RequestContext, response: web.StreamResponse, lines: list[dict[str, Any]], with_urls: WithUrls) -> None:
    for line in lines:
        body = await with_urls((await in_cpu_thread(json.dumps, line)).encode()) + b"\n"
        async with context.budget.take(len(body)), context.moving():
            # Version 1 of the SDK reads one value in each piece, so a line is one piece.
            await response.write(body)
            await context.request.writer.drain()
            context.noted.bytes_sent += len(body)
