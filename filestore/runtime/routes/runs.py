"""The routes for runs, in the formats of both versions of the Pipeline SDK."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from filestore.errors import FilestoreError, InvalidInput
from filestore.http.server.app import Route
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.repository.local import LocalRepository
from filestore.runtime.generators import RunStream, StreamedOutputs
from filestore.runtime.routes.bodies import json_answer, json_object
from filestore.runtime.routes.streams import stream_run
from filestore.runtime.runs import Run
from filestore.runtime.server import Runtime
from filestore.runtime.values import for_display
from filestore.runtime.worker_protocol import MESSAGE_LIMIT
from filestore.system.threads import in_cpu_thread, in_disk_thread


class RunRoutes:
    """Answers requests about runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes."""
        return (
            Route("POST", "/v3/runs", self.create_run),
            Route("POST", "/v3/runs/stream", self.stream_run),
            Route("GET", "/v3/runs/{id}", self.get_run),
            Route("POST", "/v4/runs", self.create_run_v4),
            Route("POST", "/v4/runs/stream", self.stream_run_v4),
            Route("GET", "/v4/runs/{id}", self.get_run_v4),
        )

    async def create_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline. The answer is sent when the run has ended, or at once for an asynchronous run."""
        run = await self._run(context, pipeline="pipeline_id_or_pointer", inputs="input_data")
        return await json_answer(run.as_json)

    async def create_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, in the format of version 2 of the SDK."""
        run = await self._run(context, pipeline="pipeline", inputs="inputs")
        return await json_answer(run.as_json_v4)

    async def stream_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, and send each output in a line of its own as soon as there is one."""
        stream = RunStream()
        try:
            run = await self._run(context, pipeline="pipeline_id_or_pointer", inputs="input_data", stream=stream)
        except FilestoreError as error:
            return _readable_problem(context, error)
        return await stream_run(context, run, stream, _lines)

    async def stream_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, and send all outputs in a line for each new value, in the format of version 2 of the SDK."""
        stream = RunStream()
        run = await self._run(context, pipeline="pipeline", inputs="inputs", stream=stream)
        return await stream_run(context, run, stream, _lines_v4)

    async def get_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run and its outputs."""
        return await json_answer(self._runtime.runs.find(context.request.match_info["id"]).as_json)

    async def get_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run, in the format of version 2 of the SDK."""
        return await json_answer(self._runtime.runs.find(context.request.match_info["id"]).as_json_v4)

    async def _run(self, context: RequestContext, *, pipeline: str, inputs: str, stream: RunStream | None = None) -> Run:
        """Start the run that a request asks for by its members `pipeline`, `inputs` and async_run.

        A run with a `stream` is returned before its end.
        """
        async with context.whole_body(what="the size in bytes of the run's request", limit=MESSAGE_LIMIT) as body:
            # In a thread, because the body may be megabytes of JSON.
            asked = await in_cpu_thread(json_object, body.decode(errors="replace"), "the run's request")
            size = len(body)
        reference, input_data, is_async = asked.get(pipeline), asked.get(inputs), asked.get("async_run")
        if not isinstance(reference, str):
            raise InvalidInput(f"{pipeline} is missing: the id of a pipeline, or its name")
        if not isinstance(input_data, list):
            raise InvalidInput(f"{inputs} is missing: a list of inputs, which may be empty")
        if not isinstance(is_async, bool | None):
            # Any text would count as true, also "false".
            raise InvalidInput(f"async_run is {for_display(is_async)}; true or false is expected, without quotes")
        found = await in_disk_thread(self._runtime.pipelines.find, reference)
        run = self._runtime.begin(found, input_data, request_size=size, url=context.base_url, stream=stream)
        if stream is None and not is_async:
            await run.ended.wait()
        return run


def _lines(run: Run, outputs: StreamedOutputs | None) -> list[dict[str, Any]]:
    """Return the new outputs, each as `RunOutput` of the SDK, or at the end a failure as its `RunError`."""
    if outputs is not None:
        return [outputs.outputs[place] for place in outputs.new_places]
    error = run.as_json()["error"]
    return [] if error is None else [error]


def _lines_v4(run: Run, outputs: StreamedOutputs | None) -> list[dict[str, Any]]:
    """Return all outputs of this moment as one `ClusterRunResult` of the SDK, or at the end a failure as such."""
    if outputs is not None:
        return [run.as_json_v4() | {"outputs": list(outputs.outputs)}]
    described = run.as_json_v4()
    return [] if described["error"] is None else [described]


def _readable_problem(context: RequestContext, error: FilestoreError) -> web.Response:
    """Return a problem document that is also a `RunError`: the SDK does not look at the status of this answer."""
    answer = problem(context.request, error)
    document = json.loads(answer.text or "{}")
    answer.text = json.dumps(document | {"exception": document.get("detail", ""), "traceback": None})
    return answer
