"""The routes for runs, in the formats of both versions of the Pipeline SDK."""

from __future__ import annotations

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.app import Route
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository
from filestore.runtime.routes.bodies import json_answer, json_object
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
            Route("GET", "/v3/runs/{id}", self.get_run),
            Route("POST", "/v4/runs", self.create_run_v4),
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

    async def get_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run and its outputs."""
        return await json_answer(self._runtime.runs.find(context.request.match_info["id"]).as_json)

    async def get_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run, in the format of version 2 of the SDK."""
        return await json_answer(self._runtime.runs.find(context.request.match_info["id"]).as_json_v4)

    async def _run(self, context: RequestContext, *, pipeline: str, inputs: str) -> Run:
        """Start the run that a request asks for by its members `pipeline`, `inputs` and async_run."""
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
        run = self._runtime.begin(found, input_data, request_size=size, url=context.base_url)
        if not is_async:
            await run.ended.wait()
        return run
