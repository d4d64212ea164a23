"""The routes for pointers, in the formats of the Pipeline SDK."""

from __future__ import annotations

from aiohttp import web

from filestore.http.server.app import Route
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository
from filestore.runtime.server import Runtime


class PointerRoutes:
    """Answers requests about pointers, which name pipelines."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes."""
        return (Route("GET", "/v3/pointers", self.list_pointers),)

    async def list_pointers(self, _: RequestContext, __: LocalRepository) -> web.StreamResponse:
        """Return an empty list: a pipeline is known only by its id and its name."""
        return web.json_response({"data": []})
