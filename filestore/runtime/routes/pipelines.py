"""The routes for pipelines, in the formats of the Pipeline SDK."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from filestore.core.names import checked_pipeline_name
from filestore.core.references import PipelineReference, Reference
from filestore.core.scopes import Scope
from filestore.core.timestamps import parse_timestamp
from filestore.errors import InvalidInput
from filestore.http.server.body.forms import Form, receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.http.server.route import Route
from filestore.repository.local import LocalRepository
from filestore.runtime.environments import Environment
from filestore.runtime.pipelines import REQUIREMENTS, Pipeline
from filestore.runtime.routes.bodies import json_object, page_answer, page_asked_for, receive_object
from filestore.runtime.runs import timestamp
from filestore.runtime.server import Runtime
from filestore.runtime.uses import scan_graph
from filestore.system.threads import in_disk_thread, shield_until_done

logger = logging.getLogger("filestore.runtime")

_NUMBER = re.compile(r"[0-9]{1,16}")


class PipelineRoutes:
    """Answers requests about pipelines."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes."""
        # A pointer may hold slashes. What runs on the server is decided by tokens that may do everything there.
        return (
            Route("POST", "/v3/pipelines", self.create_pipeline, Scope.ADMIN, is_for_prefixes=False),
            Route("GET", "/v3/pipelines", self.list_pipelines, Scope.READ, is_for_prefixes=False),
            Route("GET", "/v3/pipelines/{id:.+}", self.get_pipeline, Scope.READ, is_for_prefixes=False),
            Route("PATCH", "/v3/pipelines/{id:.+}", self.edit_pipeline, Scope.ADMIN, is_for_prefixes=False),
            Route("DELETE", "/v3/pipelines/{id:.+}", self.delete_pipeline, Scope.ADMIN, is_for_prefixes=False),
            Route("GET", "/v3/core/resources", self.list_resources, Scope.READ, is_for_prefixes=False),
        )

    async def create_pipeline(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Store the graph of a form as a new pipeline with a new id.

        It becomes the newest version of its name.
        """
        pipeline_id = f"pipeline_{uuid.uuid4().hex}"
        async with context.form_spool(repository) as (spool, written):
            form = await receive_form(context, spool, file_part="graph", check_name=lambda _: None, written=written)
            if form.file_name is None:
                raise InvalidInput(
                    "the form has no part graph with the pickled pipeline; upload_pipeline of the Pipeline SDK sends one"
                )
            # Check the whole form before anything is stored.
            name, environment_id = checked_pipeline_name(_field(form, "name")), _field(form, "environment_id_or_name")
            _check_unlike_pointer(name)
            if not environment_id.isprintable():
                raise InvalidInput("environment_id_or_name is not one line of printable text")
            requirements = _requirements(form)
            environments = self._runtime.environments
            _check_python(form, environments.find(environment_id))
            inputs, outputs = _variables(form, "input_variables"), _variables(form, "output_variables")
            named = await in_disk_thread(scan_graph, Path(f"/dev/fd/{spool.fileno()}"))
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
            requirements=requirements,
        )
        answer = (await shield_until_done(self._add(pipeline, named))).as_json()
        warning = environments.warning(environment_id)
        if warning is not None:
            logger.warning("%s: %s", pipeline_id, warning)
            answer["warning"] = warning
        return web.json_response(answer)

    async def _add(self, pipeline: Pipeline, named: Sequence[Reference]) -> Pipeline:
        """Add a pipeline whose graph is stored and names stored files. If it cannot be added, remove its graph."""
        uses = self._runtime.uses
        try:
            # In this order, so that no file is removed that a pipeline needs. A kill in between is repaired at a start.
            await uses.add(pipeline, named)
            pipeline = await in_disk_thread(self._runtime.pipelines.add, pipeline)
        except Exception:
            await uses.remove(pipeline)
            raise
        # Again, because its version is known only now.
        await uses.add(pipeline, named)
        await self._runtime.release_if_deleted(pipeline)
        return pipeline

    async def list_pipelines(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with a page of pipelines, the newest first."""
        page, name = page_asked_for(context.request), context.request.query.get("name")
        list_page = partial(self._runtime.pipelines.page, name=name, skip=page.skip, limit=page.limit)
        total, pipelines = await in_disk_thread(list_page)
        return await page_answer(page, total, lambda: [_listed(pipeline) for pipeline in pipelines])

    async def get_pipeline(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with a pipeline."""
        pipeline = await in_disk_thread(self._runtime.pipelines.find, context.request.match_info["id"])
        return web.json_response(pipeline.as_json())

    async def edit_pipeline(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Change what is kept of a pipeline's needs, and answer with the pipeline."""
        asked = await receive_object(context, "the change of a pipeline")
        changed = {name: asked[name] for name in REQUIREMENTS if asked.get(name) is not None}
        edit = partial(self._runtime.pipelines.edit, now=timestamp())
        pipeline = await in_disk_thread(edit, context.request.match_info["id"], checked_requirements(changed))
        return web.json_response(pipeline.as_json())

    async def delete_pipeline(self, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Delete a pipeline and its graph, and answer with what it was."""
        pipeline = await shield_until_done(self._remove(repository, context.request.match_info["id"]))
        return web.json_response(pipeline.as_json())

    async def _remove(self, repository: LocalRepository, reference: str) -> Pipeline:
        pipeline = await repository.with_reserve(partial(in_disk_thread, self._runtime.pipelines.remove, reference))
        await self._runtime.uses.remove(pipeline)
        await self._runtime.unload(pipeline.id)
        return pipeline

    async def list_resources(self, _: RequestContext, __: LocalRepository) -> web.StreamResponse:
        """Answer with this runtime as the only resource. The SDK reads a list of JSON texts."""
        return web.json_response([json.dumps(self._runtime.as_resource())])


def checked_requirements(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names of `REQUIREMENTS`, if they have the types that the Pipeline SDK reads. Raises InvalidInput."""
    for name, value in asked.items():
        if name == "accelerators":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InvalidInput(f"{name} is not a list of texts")
        elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
            raise InvalidInput(f"{name} is not a whole number")
    return dict(asked)


def _requirements(form: Form) -> dict[str, Any]:
    """Return what a form says of a pipeline's needs. Numbers are texts in a form."""
    asked: dict[str, Any] = {}
    for name in REQUIREMENTS:
        values = form.fields.get(name, [])
        if values and name == "accelerators":
            asked[name] = values
        elif values:
            asked[name] = int(values[-1]) if _NUMBER.fullmatch(values[-1]) else values[-1]
    return checked_requirements(asked)


def _listed(pipeline: Pipeline) -> dict[str, Any]:
    """Return a pipeline as a list has it: the SDK's command takes the time for a number of seconds, in lists only."""
    return pipeline.as_json() | {"created_at": parse_timestamp(pipeline.created_at) / 1_000_000}


def _field(form: Form, key: str) -> str:
    values = form.fields.get(key, [])
    if len(values) != 1:
        raise InvalidInput(f"the form has {len(values)} parts {key}, one is expected")
    return values[0]


def _check_unlike_pointer(name: str) -> None:
    """Raise InvalidInput if a new name could be mistaken for a pointer to another pipeline."""
    if PipelineReference.parse(name).pointer is not None:
        raise InvalidInput(
            f"{name!r} ends like a pointer; upload the pipeline under a name without it, and each upload gets the next version"
        )


def _check_python(form: Form, environment: Environment) -> None:
    """Raise InvalidInput if a graph was made by another version of Python than that of its environment."""
    metadata = json_object(form.fields.get("_metadata", ["{}"])[-1], "_metadata")
    version = metadata.get("python_version")
    if isinstance(version, str) and not environment.runs_graph_of(version):
        ours = environment.python_version
        raise InvalidInput(f"the pipeline was made by Python {version}, and would run here on {ours}: make it with that version")


def _variables(form: Form, key: str) -> list[dict[str, Any]]:
    return [json_object(text, key) for text in form.fields.get(key, [])]
