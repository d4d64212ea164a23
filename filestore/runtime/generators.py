"""Outputs that are generators: their values are asked for one by one, to be collected or to be streamed to a client.

A process computes a value only when it is asked for it. So a client that reads slowly slows the generator down, and a
file that is yielded is stored before the pipeline can change it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filestore.errors import LimitExceeded
from filestore.runtime.adapter import Adapter
from filestore.runtime.errors import RunFailed
from filestore.runtime.process import PipelineProcess
from filestore.runtime.worker_protocol import MESSAGE_LIMIT, decode_value
from filestore.system.threads import in_cpu_thread

_BATCH = 1000
"""Values that are asked for at once where they are collected. The process sends fewer if they are large, or files."""


class StreamedOutputs(NamedTuple):
    """The outputs of a run at one moment. The output of a generator is its newest value, or of type none at its end."""

    outputs: Sequence[Any]
    new_places: Sequence[int]
    """The places of the outputs that the client has not got yet."""


class RunStream:
    """Hands values from a run to the client that reads them. The run is at most two values ahead."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[StreamedOutputs | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)
        self._is_abandoned = False

    async def send(self, outputs: StreamedOutputs) -> None:
        """Hand over values as soon as those before have been sent. Raises RunFailed if the reader is gone."""
        await self._room.acquire()
        if self._is_abandoned:
            self._room.release()  # no later call waits
            raise RunFailed("the client that was reading the outputs is gone, so the run was ended")
        self._queue.put_nowait(outputs)

    def end(self) -> None:
        """Let the reader know that the run has ended."""
        self._queue.put_nowait(None)

    def abandon(self) -> None:
        """Let the run know that nobody reads its values any more. A value that it is computing is the last one."""
        self._is_abandoned = True
        self._room.release()

    async def __aiter__(self) -> AsyncIterator[StreamedOutputs]:
        """Yield values until the run has ended."""
        while (outputs := await self._queue.get()) is not None:
            yield outputs
            self._room.release()


async def read_outputs(
    process: PipelineProcess, described: Sequence[dict[str, Any]], adapter: Adapter, *, stream: RunStream | None
) -> list[Any]:
    """Store the outputs that a process describes, and return those of the run's answer.

    The values of a generator become an array. With a `stream` they are sent there and not kept, and the output in the
    answer has the type none.

    Raises RunFailed, and what `Adapter.outputs` raises.
    """
    places = [place for place, each in enumerate(described) if "generator" in each]
    fixed = [None if place in places else _decoded(each) for place, each in enumerate(described)]
    fixed_places = [place for place in range(len(fixed)) if place not in places]
    if not places:
        outputs = await adapter.outputs(fixed)
        if stream is not None:
            await stream.send(StreamedOutputs(outputs, fixed_places))
        return outputs
    async with _open_generators(process, places) as generators:
        outputs = await adapter.outputs(fixed)
        if stream is None:
            await generators.collect(outputs, adapter)
        else:
            await generators.stream(outputs, fixed_places, adapter, stream)
    return outputs


class _Generators:
    """The generators of one run that have not ended."""

    def __init__(self, process: PipelineProcess, places: Sequence[int]) -> None:
        self._process = process
        self.places = list(places)
        self._seconds = 0.0

    async def collect(self, outputs: list[Any], adapter: Adapter) -> None:
        """Put an array with all values in the place of each generator."""
        size = 0
        while self.places:
            place = self.places[0]
            values: list[Any] = []
            while place in self.places:
                returned = await self._next(place, most=_BATCH, within=self._process.seconds - self._seconds)
                (array,) = await adapter.outputs([returned])
                added: Any = array["value"]
                values += added
                size += len(await in_cpu_thread(json.dumps, added))
                if size > MESSAGE_LIMIT:
                    exceeded = LimitExceeded("the size in bytes of a run's values", size, MESSAGE_LIMIT)
                    raise RunFailed(f"{exceeded}; a run of the route /v3/runs/stream sends the values of a generator one by one")
            outputs[place] = {"type": "array", "value": values, "file": None}

    async def stream(self, outputs: Sequence[Any], fixed_places: Sequence[int], adapter: Adapter, stream: RunStream) -> None:
        """Send the values in turns: in each, the next value of every generator that has not ended."""
        new_places = list(fixed_places)
        while self.places or new_places:
            newest = list(outputs)
            for place in list(self.places):
                for value in await self._next(place, most=1):
                    (newest[place],) = await adapter.outputs([value])
                    new_places.append(place)
            if new_places:
                await stream.send(StreamedOutputs(newest, sorted(new_places)))
            new_places = []

    async def _next(self, place: int, *, most: int, within: float | None = None) -> list[Any]:
        """Return the next values of a generator, as Python values."""
        started = time.monotonic()
        answer = await self._process.ask("next", {"place": place, "most": most}, what="the run", within=within)
        self._seconds += time.monotonic() - started
        if answer["has_ended"]:
            self.places.remove(place)
        return [_decoded(each) for each in answer["values"]]


@asynccontextmanager
async def _open_generators(process: PipelineProcess, places: Sequence[int]) -> AsyncIterator[_Generators]:
    """Close the generators that have not ended at the end of the block, so that their process can do another run."""
    generators = _Generators(process, places)
    try:
        yield generators
    except asyncio.CancelledError:
        process.discard()
        raise
    finally:
        if generators.places and process.is_usable:
            # The run has failed for another reason already, which is the one to report.
            with suppress(RunFailed):
                await process.ask("close", {}, what="the end of the run")


def _decoded(described: dict[str, Any]) -> Any:
    # Every file is a path here. Whether it is a file or a folder is checked on the disk.
    return decode_value(described, lambda file: Path(str(file["path"])))
