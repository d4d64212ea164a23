"""The routes for runs, in the formats of both versions of the Pipeline SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from filestore.core.paths import RUN_FILES_PREFIX
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.core.timestamps import format_timestamp
from filestore.errors import FilestoreError, InvalidInput, NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.route import Route
from filestore.http.server.routes.content import get_content
from filestore.repository.local import LocalRepository
from filestore.runtime.errors import ExpiredOutput
from filestore.runtime.generators import RunStream, StreamedOutputs
from filestore.runtime.routes.bodies import json_answer, json_object, page_answer, page_asked_for
from filestore.runtime.routes.run_logs import follow_logs
from filestore.runtime.routes.streams import stream_run
from filestore.runtime.run_files import Expiry
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
        path = f"{{path:{RUN_FILES_PREFIX}/.*}}"
        return (
            Route("POST", "/v3/runs", self.create_run, Scope.WRITE, is_for_prefixes=False),
            Route("GET", "/v3/runs", self.list_runs, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v3/runs/stream", self.stream_run, Scope.WRITE, is_for_prefixes=False),
            Route("GET", "/v3/runs/{id}", self.get_run, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v3/runs/{id}/cancel", self.cancel_run, Scope.DELETE, is_for_prefixes=False),
            Route("GET", "/v3/runs/{id}/logs", self.get_logs, Scope.READ, is_for_prefixes=False),
            Route("GET", "/v3/logs/run/{id}", self.follow_logs, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v4/runs", self.create_run_v4, Scope.WRITE, is_for_prefixes=False),
            Route("GET", "/v4/runs", self.list_runs_v4, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v4/runs/stream", self.stream_run_v4, Scope.WRITE, is_for_prefixes=False),
            Route("GET", "/v4/runs/{id}", self.get_run_v4, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v4/runs/{id}/cancel", self.cancel_run_v4, Scope.DELETE, is_for_prefixes=False),
            Route("GET", f"/{path}", self.get_output, Scope.READ, can_be_signed=True, public_namespace=self._public_namespace),
            # The Pipeline SDK's documentation shows this path.
            Route("GET", f"/storage/{path}", self.get_output, Scope.READ, public_namespace=self._public_namespace),
        )

    async def create_run(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Run a pipeline. The answer is sent when the run has ended, or at once for an asynchronous run."""
        run = await self._run(context, pipeline="pipeline_id_or_pointer", inputs="input_data")
        return await self._answer(context, repository, run, run.as_json)

    async def create_run_v4(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, in the format of version 2 of the SDK."""
        run = await self._run(context, pipeline="pipeline", inputs="inputs")
        return await self._answer(context, repository, run, run.as_json_v4)

    async def list_runs(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with a page of runs without their results, the newest first."""
        return await self._page(context, Run.as_json)

    async def list_runs_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with a page of runs, in the format of version 2 of the SDK."""
        return await self._page(context, Run.as_json_v4)

    async def stream_run(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, and send each output in a line of its own as soon as there is one."""
        stream = RunStream()
        try:
            run = await self._run(context, pipeline="pipeline_id_or_pointer", inputs="input_data", stream=stream)
        except FilestoreError as error:
            return _readable_problem(context, error)
        return await stream_run(
            context, run, stream, _lines, partial(self._runtime.with_urls, run, url=context.base_url, repository=repository)
        )

    async def stream_run_v4(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, and send all outputs in a line for each new value, in the format of version 2 of the SDK."""
        stream = RunStream()
        run = await self._run(context, pipeline="pipeline", inputs="inputs", stream=stream)
        return await stream_run(
            context, run, stream, _lines_v4, partial(self._runtime.with_urls, run, url=context.base_url, repository=repository)
        )

    async def get_run(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Return the state of a run and its outputs, with URLs that were signed now."""
        run = await self._runtime.runs.find(context.request.match_info["id"])
        return await self._answer(context, repository, run, run.as_json)

    async def get_run_v4(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Return the state of a run, in the format of version 2 of the SDK."""
        run = await self._runtime.runs.find(context.request.match_info["id"])
        return await self._answer(context, repository, run, run.as_json_v4)

    async def cancel_run(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """End a run, and answer with it. A run that has ended stays as it is."""
        run = await self._runtime.cancel(context.request.match_info["id"])
        return await self._answer(context, repository, run, run.as_json)

    async def cancel_run_v4(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """End a run, in the format of version 2 of the SDK."""
        run = await self._runtime.cancel(context.request.match_info["id"])
        return await self._answer(context, repository, run, run.as_json_v4)

    async def get_logs(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with the lines that a run has printed up to now."""
        run_id = context.request.match_info["id"]
        lines = await self._runtime.runs.lines(run_id)
        told = [{"time": format_timestamp(line.time // 1000), "text": line.text} for line in lines]
        return await json_answer(lambda: {"run_id": run_id, "lines": told})

    async def follow_logs(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Send the lines of a run over a WebSocket, until the run has ended."""
        return await follow_logs(context, self._runtime.runs, context.request.match_info["id"])

    async def get_output(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Answer with the bytes of a stored file, or say that the file has expired."""
        try:
            return await get_content(context, repository)
        except NotFound as error:
            path = context.request.match_info["path"]
            if await self._expiry(path) not in {None, Expiry.NONE}:
                raise ExpiredOutput(path) from error
            raise

    async def _public_namespace(self, request: web.Request) -> str | None:
        """Return the runtime's namespace for the path of an output of a run, if everyone may read those."""
        is_public = self._runtime.limits.public_outputs and await self._expiry(request.match_info["path"]) is not None
        return self._runtime.namespace if is_public else None

    async def _expiry(self, path: str) -> Expiry | None:
        """Return how far the removal of an output has come, or None if the path is not that of an output."""
        try:
            file_id = Reference.parse_path(path).id
        except FilestoreError:
            return None
        return None if file_id is None else await in_disk_thread(self._runtime.run_files.expiry, file_id)

    async def _answer(
        self, context: RequestContext, repository: LocalRepository, run: Run, answer: Callable[[bytes | None], dict[str, Any]]
    ) -> web.Response:
        outputs = await self._runtime.outputs_of(run, url=context.base_url, repository=repository)
        return await json_answer(lambda: answer(outputs))

    async def _page(self, context: RequestContext, answer: Callable[[Run], dict[str, Any]]) -> web.Response:
        page, pipeline_id = page_asked_for(context.request), context.request.query.get("pipeline_id")
        total, runs = await self._runtime.runs.page(pipeline_id=pipeline_id, skip=page.skip, limit=page.limit)
        return await page_answer(page, total, lambda: [_without_traceback(answer(run)) for run in runs])

    async def _run(self, context: RequestContext, *, pipeline: str, inputs: str, stream: RunStream | None = None) -> Run:
        """Start the run that a request asks for by its members `pipeline`, `inputs` and async_run.

        A run with a `stream` is returned before its end.
        """
        async with context.whole_body(what="the size in bytes of the run's request", limit=MESSAGE_LIMIT) as body:
            # In a thread, because the body may be megabytes of JSON.
            text = body.decode(errors="replace")
            asked = await in_cpu_thread(json_object, text, "the run's request")
        reference, input_data, is_async = asked.get(pipeline), asked.get(inputs), asked.get("async_run")
        if not isinstance(reference, str):
            raise InvalidInput(f"{pipeline} is missing: the id of a pipeline, or its name")
        if not isinstance(input_data, list):
            raise InvalidInput(f"{inputs} is missing: a list of inputs, which may be empty")
        if not isinstance(is_async, bool | None):
            # Any text would count as true, also "false".
            raise InvalidInput(f"async_run is {for_display(is_async)}; true or false is expected, without quotes")
        found = await in_disk_thread(self._runtime.pipelines.find, reference)
        run = await self._runtime.begin(found, input_data, request=text, url=context.base_url, stream=stream)
        if stream is None and not is_async:
            await run.ended.wait()
        return run


def _without_traceback(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run as a list has it: 10,000 tracebacks would be too long for one answer."""
    return run if run["error"] is None else run | {"error": run["error"] | {"traceback": None}}


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
