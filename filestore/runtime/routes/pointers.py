"""The routes for pointers, in the formats of the Pipeline SDK."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from filestore.core.scopes import Scope
from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.http.server.route import Route
from filestore.repository.local import LocalRepository
from filestore.runtime.routes.bodies import page_answer, page_asked_for, receive_object
from filestore.runtime.server import Runtime
from filestore.system.threads import in_disk_thread

_TARGET = "pointer_or_pipeline_id"


class PointerRoutes:
    """Answers requests about pointers, which name pipelines."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes."""
        # The name of a pointer may hold slashes. A pointer decides which code a run is.
        return (
            Route("GET", "/v3/pointers", self.list_pointers, Scope.READ, is_for_prefixes=False),
            Route("POST", "/v3/pointers", self.create_pointer, Scope.ADMIN, is_for_prefixes=False),
            Route("PATCH", "/v3/pointers/{pointer:.+}", self.edit_pointer, Scope.ADMIN, is_for_prefixes=False),
            Route("DELETE", "/v3/pointers/{pointer:.+}", self.delete_pointer, Scope.ADMIN, is_for_prefixes=False),
        )

    async def list_pointers(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Answer with a page of pointers, those of the newest pipeline first."""
        page = page_asked_for(context.request)
        list_page = partial(self._runtime.pipelines.pointer_page, skip=page.skip, limit=page.limit)
        total, pointers = await in_disk_thread(list_page, pipeline_name=context.request.query.get("pipeline_name"))
        return await page_answer(page, total, lambda: [pointer.as_json() for pointer in pointers])

    async def create_pointer(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Make a pointer, and answer with it."""
        asked = await receive_object(context, "the pointer")
        text, target, locked = asked.get("pointer"), asked.get(_TARGET), asked.get("locked")
        if not isinstance(text, str):
            raise InvalidInput("pointer is missing: the name of the new pointer, NAME:TAG")
        if not isinstance(target, str):
            raise InvalidInput(f"{_TARGET} is missing: the id of a pipeline, or another pointer to it")
        create = partial(self._runtime.pipelines.create_pointer, locked=_checked_lock(locked) or False)
        return web.json_response((await in_disk_thread(create, text, target)).as_json(), status=201)

    async def edit_pointer(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Move a pointer, lock it or unlock it, and answer with it."""
        asked = await receive_object(context, "the change of a pointer")
        target, locked = asked.get(_TARGET), asked.get("locked")
        if not isinstance(target, str | None):
            raise InvalidInput(f"{_TARGET} is not a text: the id of a pipeline, or another pointer to it")
        edit = partial(self._runtime.pipelines.edit_pointer, target=target, locked=_checked_lock(locked))
        return web.json_response((await in_disk_thread(edit, context.request.match_info["pointer"])).as_json())

    async def delete_pointer(self, context: RequestContext, _: LocalRepository) -> web.StreamResponse:
        """Delete a pointer, and answer with what it was. Its pipeline stays."""
        text = context.request.match_info["pointer"]
        return web.json_response((await in_disk_thread(self._runtime.pipelines.remove_pointer, text)).as_json())


def _checked_lock(locked: object) -> bool | None:
    if not isinstance(locked, bool | None):
        raise InvalidInput("locked is neither true nor false nor null")
    return locked
