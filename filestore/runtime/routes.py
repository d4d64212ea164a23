"""The runtime's routes for pipelines, pointers and runs, in the formats of the Pipeline SDK."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiofiles.tempfile import TemporaryFile
from aiohttp import web

from filestore.core.names import checked_pipeline_name
from filestore.errors import InvalidInput
from filestore.http.server.app import Route
from filestore.http.server.body.forms import Form, receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.http.server.worker import Extension
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.runs import Run, timestamp
from filestore.runtime.server import MakeCache, Runtime, RuntimeLimits, open_runtime
from filestore.runtime.worker_protocol import MESSAGE_LIMIT
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done


class Routes:
    """Answers the requests of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes for a server that also serves files."""
        return (
            Route("POST", "/v3/pipelines", self.create_pipeline),
            Route("GET", "/v3/pointers", self.list_pointers),
            Route("POST", "/v3/runs", self.create_run),
            Route("GET", "/v3/runs/{id}", self.get_run),
            Route("POST", "/v4/runs", self.create_run_v4),
            Route("GET", "/v4/runs/{id}", self.get_run_v4),
        )

    async def create_pipeline(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Store the graph of a form as a new pipeline with a new id.

        From then on, the name in the form means this pipeline.
        """
        pipeline_id = f"pipeline_{uuid.uuid4().hex}"
        async with TemporaryFile("w+b", buffering=0, dir=context.spool_folder) as spool:
            form = await receive_form(context, spool, file_part="graph", check_name=lambda _: None)
            if form.file_name is None:
                raise InvalidInput(
                    "the form has no part graph with the pickled pipeline; upload_pipeline of the Pipeline SDK sends one"
                )
            # Check the whole form before anything is stored.
            name, environment_id = checked_pipeline_name(_field(form, "name")), _field(form, "environment_id_or_name")
            _check_python(form)
            variables = {key: _variables(form, key) for key in ("input_variables", "output_variables")}
            record = await push_spool(context, repository, spool, size=form.size, name=f"{pipeline_id}.graph")
        pipeline = Pipeline(
            id=pipeline_id,
            name=name,
            environment_id=environment_id,
            created_at=timestamp(),
            graph_id=record.id,
            path=record.path,
            **variables,
        )
        try:
            await in_disk_thread(self._runtime.pipelines.add, pipeline)
        except BaseException:
            await shield_until_done(repository.remove(record.id))
            raise
        return web.json_response(pipeline.as_json())

    async def list_pointers(self, _: RequestContext, __: LocalRepository) -> web.StreamResponse:
        """Return an empty list: a pipeline is known only by its id and its name."""
        return web.json_response({"data": []})

    async def create_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline. The answer is sent when the run has ended, or at once for an asynchronous run."""
        run = await self._run(context, pipeline="pipeline_id_or_pointer", inputs="input_data")
        return await _answer(run.as_json)

    async def create_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Run a pipeline, in the format of version 2 of the SDK."""
        run = await self._run(context, pipeline="pipeline", inputs="inputs")
        return await _answer(run.as_json_v4)

    async def get_run(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run and its outputs."""
        return await _answer(self._runtime.runs.find(context.request.match_info["id"]).as_json)

    async def get_run_v4(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Return the state of a run, in the format of version 2 of the SDK."""
        return await _answer(self._runtime.runs.find(context.request.match_info["id"]).as_json_v4)

    async def _run(self, context: RequestContext, *, pipeline: str, inputs: str) -> Run:
        """Start the run that a request asks for by its members `pipeline`, `inputs` and async_run."""
        async with context.whole_body(what="the size in bytes of the run's request", limit=MESSAGE_LIMIT) as body:
            # In a thread, because the body may be megabytes of JSON.
            asked = await in_cpu_thread(_json, body.decode(errors="replace"), "the run's request")
            size = len(body)
        reference, input_data = asked.get(pipeline), asked.get(inputs)
        if not isinstance(reference, str):
            raise InvalidInput(f"{pipeline} is missing: the id of a pipeline, or its name")
        if not isinstance(input_data, list):
            raise InvalidInput(f"{inputs} is missing: a list of inputs, which may be empty")
        found = await in_disk_thread(self._runtime.pipelines.find, reference)
        run = self._runtime.begin(found, input_data, request_size=size, url=context.base_url)
        if not asked.get("async_run"):
            await run.ended.wait()
        return run


async def _answer(document: Callable[[], dict[str, Any]]) -> web.Response:
    """Return an answer with JSON that may be megabytes long. It is encoded in a thread."""
    body = await in_cpu_thread(lambda: json.dumps(document()).encode())
    return web.Response(body=body, content_type="application/json")


def runtime_extension(
    root: Path,
    make_cache: MakeCache,
    *,
    environ: Mapping[str, str],
    limits: RuntimeLimits,
    signed_seconds: int,
) -> Extension:
    """Return the extension that adds a runtime to a server of `root`.

    The other arguments are described at `open_runtime` and `LocalRepository`.
    """

    @asynccontextmanager
    async def extension(store: ChunkStore, index: Index) -> AsyncIterator[Sequence[Route]]:
        repository = LocalRepository(store, index, location=str(root), signed_seconds=signed_seconds)
        folder = root / "runtime" / repository.namespace
        async with open_runtime(repository, make_cache, folder, environ=environ, limits=limits) as runtime:
            yield Routes(runtime).all

    return extension


def _field(form: Form, key: str) -> str:
    values = form.fields.get(key, [])
    if len(values) != 1:
        raise InvalidInput(f"the form has {len(values)} parts {key}, one is expected")
    return values[0]


def _check_python(form: Form) -> None:
    """Raise InvalidInput if a graph was made by another version of Python.

    A graph contains compiled code, and another version of Python would crash on it.
    """
    metadata = _json(form.fields.get("_metadata", ["{}"])[-1], "_metadata")
    version = metadata.get("python_version")
    ours = platform.python_version()
    if isinstance(version, str) and version.split(".")[:2] != ours.split(".")[:2]:
        raise InvalidInput(f"the pipeline was made by Python {version}, and would run here on {ours}: make it with that version")


def _variables(form: Form, key: str) -> list[dict[str, Any]]:
    return [_json(text, key) for text in form.fields.get(key, [])]


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object")
    return value
