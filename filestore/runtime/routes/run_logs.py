"""Send the lines of a run over a WebSocket, as the Pipeline SDK's `pipeline logs run` reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence

from aiohttp import web

from filestore.core.batches import batched_by_size
from filestore.http.server.context import RequestContext
from filestore.runtime.errors import UnknownRun
from filestore.runtime.printed import Line
from filestore.runtime.runs import Run, Runs

UNKNOWN_RUN_CODE = 4000
"""The code with which the SDK expects the end of a connection for a run that is not known."""

_BATCH_SIZE = 64 << 10
_INTERVAL_SECONDS = 0.5
_RECEIVE_LIMIT = 4096


async def follow_logs(context: RequestContext, runs: Runs, run_id: str) -> web.WebSocketResponse:
    """Send the lines that a run has printed, and will print, until it has ended or the client is gone.

    A message is a JSON text in a JSON text: `{"streams": [{"stream": {"run": ID}, "values": [[NANOSECONDS, LINE], ...]}]}`.
    Raises Stalled.
    """
    answer = web.WebSocketResponse(max_msg_size=_RECEIVE_LIMIT)
    if not answer.can_prepare(context.request):
        raise web.HTTPUpgradeRequired(text="these logs are sent over a WebSocket; GET /v3/runs/ID/logs answers without one")
    async with context.moving():
        await answer.prepare(context.request)
    try:
        run = await runs.find(run_id)
    except UnknownRun as error:
        await answer.close(code=UNKNOWN_RUN_CODE, message=str(error).encode()[:100])
        return answer
    # The client sends nothing but its end.
    client_ended = asyncio.create_task(_until_closed(answer))
    try:
        await _send_all(context, answer, runs, run, client_ended)
    finally:
        client_ended.cancel()
        await asyncio.gather(client_ended, return_exceptions=True)
    async with context.moving():
        await answer.close()
    return answer


async def _send_all(
    context: RequestContext, answer: web.WebSocketResponse, runs: Runs, run: Run, client_ended: asyncio.Task[None]
) -> None:
    sent, has_ended = 0, run.has_ended
    while not client_ended.done():
        if not has_ended:
            await _first([client_ended, asyncio.create_task(_ended(run))])
        has_ended = run.has_ended
        # The lines at the end of a long log are known only when the run has ended.
        lines = await runs.lines(run.id) if has_ended else run.log.first_lines()
        for text in _messages(run.id, lines[sent:]):
            async with context.moving():
                await answer.send_str(text)
        if has_ended:
            return
        sent = len(lines)


async def _ended(run: Run) -> None:
    await run.ended.wait()


async def _first(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait a moment, or until one of the tasks has ended. The last one is cancelled."""
    await asyncio.wait(tasks, timeout=_INTERVAL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    tasks[-1].cancel()


async def _until_closed(answer: web.WebSocketResponse) -> None:
    async for _ in answer:
        pass


def _messages(run_id: str, lines: Sequence[Line]) -> Iterator[str]:
    for batch in batched_by_size(lines, lambda line: len(line.text) + 100, limit=_BATCH_SIZE):
        values = [[str(line.time), line.text] for line in batch]
        yield json.dumps(json.dumps({"streams": [{"stream": {"run": run_id}, "values": values}]}))
