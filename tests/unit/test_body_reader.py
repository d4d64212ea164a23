from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from filestore.http.server.body.reader import BodyReader
from filestore.http.server.context import RequestContext


async def test_what_was_read_ahead_counts_once_for_a_rate() -> None:
    """Also if its receiver takes it in many slices, as it does with a batch of tiny frames."""
    body = bytes(range(100))
    counted: list[int] = []

    async def passed(size: int) -> None:
        counted.append(size)

    request = SimpleNamespace(content=SimpleNamespace(read_nowait=lambda: body))
    context = cast("RequestContext", SimpleNamespace(request=request, passed=passed, stall_seconds=60.0))
    reader = BodyReader(context, size=len(body))
    taken = bytearray()
    sizes = iter([10, 0] * 10)
    slices = 0
    while await reader.read_slice(taken.extend, reach=lambda _: next(sizes)):
        slices += 1
    assert (body, 10) == (bytes(taken), slices)
    assert [len(body)] == counted
