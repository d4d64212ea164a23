"""The routes for pipelines, in the formats of the Pipeline SDK."""

from __future__ import annotations

import platform
import uuid
from typing import Any

from aiofiles.tempfile import TemporaryFile
from aiohttp import web

from filestore.core.names import checked_pipeline_name
from filestore.errors import InvalidInput
from filestore.http.server.app import Route
from filestore.http.server.body.forms import Form, receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.repository.local import LocalRepository
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.routes.bodies import json_object
from filestore.runtime.runs import timestamp
from filestore.runtime.server import Runtime
from filestore.system.threads import in_disk_thread, shield_until_done


class PipelineRoutes:
    """Answers requests about pipelines."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes."""
        return (Route("POST", "/v3/pipelines", self.create_pipeline),)

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
            inputs, outputs = _variables(form, "input_variables"), _variables(form, "output_variables")
            record = await push_spool(context, repository, spool, size=form.size, name=f"{pipeline_id}.graph")
        pipeline = Pipeline(
            id=pipeline_id,
            name=name,
            environment_id=environment_id,
            created_at=timestamp(),
            graph_id=record.id,
            path=record.path,
            input_variables=inputs,
            output_variables=outputs,
        )
        try:
            pipeline = await in_disk_thread(self._runtime.pipelines.add, pipeline)
        except BaseException:
            await shield_until_done(repository.remove(record.id))
            raise
        return web.json_response(pipeline.as_json())


def _field(form: Form, key: str) -> str:
    values = form.fields.get(key, [])
    if len(values) != 1:
        raise InvalidInput(f"the form has {len(values)} parts {key}, one is expected")
    return values[0]


def _check_python(form: Form) -> None:
    """Raise InvalidInput if a graph was made by another version of Python.

    A graph contains compiled code, and another version of Python would crash on it.
    """
    metadata = json_object(form.fields.get("_metadata", ["{}"])[-1], "_metadata")
    version = metadata.get("python_version")
    ours = platform.python_version()
    if isinstance(version, str) and version.split(".")[:2] != ours.split(".")[:2]:
        raise InvalidInput(f"the pipeline was made by Python {version}, and would run here on {ours}: make it with that version")


def _variables(form: Form, key: str) -> list[dict[str, Any]]:
    return [json_object(text, key) for text in form.fields.get(key, [])]
