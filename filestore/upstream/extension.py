"""Add an upstream to a server: routes of the Hub API that answer for the upstream where a name is not here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from filestore.core.names import UPSTREAM_NAMESPACE
from filestore.core.scopes import Scope
from filestore.errors import InvalidInput, NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.route import Answer, Route
from filestore.http.server.routes.hub import listing, repos
from filestore.http.server.routes.hub.names import repository_in
from filestore.http.server.routes.hub.resolve import resolve
from filestore.http.server.routes.hub.routes import HUB_ROUTES
from filestore.http.server.worker import Extension
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.files import storage_errors
from filestore.system.owners import make_private
from filestore.system.threads import in_disk_thread
from filestore.transfer.parallelism import IN_A_SERVER
from filestore.upstream.answers import Answers
from filestore.upstream.options import UpstreamOptions
from filestore.upstream.upstream import Upstream

FOLDER_NAME = "upstream"
"""The folder, in that of the repository, in which a server keeps what it knows of its upstream."""


def upstream_extension(root: Path, options: UpstreamOptions) -> Extension:
    """Return the extension that adds an upstream to a server of `root`."""

    @asynccontextmanager
    async def extension(store: ChunkStore, index: Index) -> AsyncIterator[Sequence[Route]]:
        repository = LocalRepository(store, index, location=str(root), namespace=UPSTREAM_NAMESPACE, transfer_limits=IN_A_SERVER)
        folder = root / FOLDER_NAME
        with storage_errors(folder):
            await in_disk_thread(make_private, folder)
        upstream = Upstream(options, folder, repository)
        try:
            yield _routes(Answers(upstream))
        finally:
            await upstream.close()

    return extension


def _routes(answers: Answers) -> Sequence[Route]:
    """Return the routes of the Hub API that read, in their order, and the one that creates: these ask the upstream too."""
    others: dict[Answer, Callable[[RequestContext], Awaitable[web.StreamResponse]]] = {
        listing.describe: answers.describe,
        listing.list_tree: answers.list_tree,
        listing.describe_paths: answers.describe_paths,
        listing.list_refs: answers.list_refs,
        listing.check_access: answers.check,
        resolve: answers.resolve,
    }
    reading = (route for route in HUB_ROUTES if route.scope is Scope.READ)
    creating = next(route for route in HUB_ROUTES if route.answer is repos.create_repository)
    return [
        creating._replace(answer=_unless_known(answers)),
        *(
            route._replace(answer=_either(route.answer, others[route.answer])) if route.answer in others else route
            for route in reading
        ),
    ]


def _unless_known(answers: Answers) -> Answer:
    """Return a function that creates a repository, unless the upstream has one of this name, which it would hide."""

    async def answered(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        hub = await repos.new_repository(context)
        if not await _has(repository, hub.name) and await answers.is_known(context, hub):
            raise InvalidInput(
                f"the upstream of this server has {hub.name!r}, which an upload here would hide; choose another owner or name"
            )
        return await repos.create_at(context, repository, hub)

    return answered


def _either(answer: Answer, other: Callable[[RequestContext], Awaitable[web.StreamResponse]]) -> Answer:
    """Return a function that answers by `answer` for a name that is here, and by `other` for any other name."""

    async def answered(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
        name = repository_in(context.request).name
        # The body of a request can be read once.
        if context.request.method != "POST" or await _has(repository, name):
            try:
                return await answer(context, repository)
            except NotFound as error:
                # What is not in a repository that is here is not looked for at the upstream.
                if type(error) is not NotFound:
                    raise
        # A token that sees only the names with a prefix does not see others at the upstream.
        if not repository.sees(name):
            raise NotFound(name)
        return await other(context)

    return answered


async def _has(repository: LocalRepository, name: str) -> bool:
    try:
        await repository.find_commit(name)
    except NotFound:
        return False
    return True
