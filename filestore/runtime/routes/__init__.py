"""The runtime's routes for pipelines, pointers and runs, in the formats of the Pipeline SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from filestore.http.server.app import Route
from filestore.http.server.worker import Extension
from filestore.repository.index.protocol import Index
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
        self._parts = (PipelineRoutes(runtime), PointerRoutes(runtime), RunRoutes(runtime))

    @property
    def all(self) -> tuple[Route, ...]:
        """Return the routes for a server that also serves files."""
        return tuple(route for part in self._parts for route in part.all)


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
