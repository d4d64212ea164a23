"""The runtime's routes for pipelines, pointers and runs, in the formats of the Pipeline SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from filestore.errors import Forbidden
from filestore.http.server.context import RequestContext
from filestore.http.server.route import Answer, Route
from filestore.http.server.worker import Extension
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.runtime.environments import Environments
from filestore.runtime.routes.pipelines import PipelineRoutes
from filestore.runtime.routes.pointers import PointerRoutes
from filestore.runtime.routes.runs import RunRoutes
from filestore.runtime.run_files import OutputRepository
from filestore.runtime.server import MakeCache, Runtime, RuntimeLimits, open_runtime


class Routes:
    """Answers the requests of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._parts = (PipelineRoutes(runtime), PointerRoutes(runtime), RunRoutes(runtime))

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes for a server that also serves files."""
        routes = (route for part in self._parts for route in part.all)
        # The outputs of runs are files, which each token finds in its own namespace.
        return tuple(
            route if route.public_namespace is not None else route._replace(answer=partial(self._answer_own, route.answer))
            for route in routes
        )

    async def _answer_own(self, answer: Answer, context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        """Answer a request with a token of the runtime's namespace. Raises Forbidden for any other token."""
        # A JSON Web Token may have any namespace, and what a runtime has belongs to one.
        if repository.namespace != self._runtime.namespace:
            raise Forbidden("the runtime", self._runtime.namespace)
        return await answer(context, repository)


def runtime_extension(
    root: Path,
    make_cache: MakeCache,
    *,
    environ: Mapping[str, str],
    limits: RuntimeLimits,
    environments: Environments,
    signed_seconds: int,
) -> Extension:
    """Return the extension that adds a runtime to a server of `root`.

    The other arguments are described at `open_runtime` and `OutputRepository`.
    """

    @asynccontextmanager
    async def extension(store: ChunkStore, index: Index) -> AsyncIterator[Sequence[Route]]:
        repository = OutputRepository(store, index, location=str(root), signed_seconds=signed_seconds)
        folder = root / "runtime" / repository.namespace
        async with open_runtime(
            repository, make_cache, folder, environ=environ, limits=limits, environments=environments
        ) as runtime:
            yield Routes(runtime).all

    return extension
