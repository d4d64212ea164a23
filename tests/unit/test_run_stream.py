"""The stream from a run to the client that reads its outputs."""

from __future__ import annotations

import asyncio

import pytest

from filestore.runtime.errors import RunFailed
from filestore.runtime.generators import RunStream, StreamedOutputs


async def settle() -> None:
    """Let all other tasks go on until each of them waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_run_is_at_most_two_values_ahead() -> None:
    """It waits with a value until the reader has taken the one before, however slowly it reads."""
    stream = RunStream()
    computed = []

    async def run() -> None:
        for number in range(10):
            computed.append(number)
            await stream.send(StreamedOutputs([number], [0]))
        stream.end()

    task = asyncio.create_task(run())
    read = []
    async for outputs in stream:
        await settle()
        read.append(outputs.outputs[0])
        assert len(computed) <= len(read) + 2
    await task
    assert list(range(10)) == read == computed


async def test_a_run_whose_reader_is_gone_fails() -> None:
    """Also one that waits for the reader at that moment."""
    stream = RunStream()
    await stream.send(StreamedOutputs([1], [0]))
    waiting = asyncio.create_task(stream.send(StreamedOutputs([2], [0])))
    await settle()
    stream.abandon()
    for sending in (waiting, stream.send(StreamedOutputs([3], [0]))):
        with pytest.raises(RunFailed, match="the client that was reading the outputs is gone"):
            await sending
