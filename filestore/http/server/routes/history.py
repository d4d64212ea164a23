"""Answer questions about commits, and read and write labels.

Source: `docs/http-api.md`, which is the specification.
"""

from __future__ import annotations

from aiohttp import web

from filestore.core.commits import MAIN, LabelKind
from filestore.core.scopes import Scope
from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.queries import limited_number, number_in, required, truth_in
from filestore.repository.local import LocalRepository

COMMITS_LIMIT = 300
"""The largest number of commits in one answer. Their messages take 12 KiB each in JSON, at most."""


async def check_name(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer whether a commit can be made under a name, on a branch of it."""
    request = context.request
    name = context.noted.facts["name"] = required(request, "name")
    await repository.check_new_name(name, branch=request.query.get("branch", MAIN))
    return web.json_response({"name": name})


async def list_commits(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the commits of a name, from the one of a revision back to the first one."""
    request = context.request
    name = context.noted.facts["name"] = required(request, "name")
    found = await repository.history(
        name,
        revision=request.query.get("revision"),
        limit=limited_number(request, "limit", COMMITS_LIMIT),
        before=number_in(request, "before"),
    )
    return web.json_response({"commits": [commit.as_json() for commit in found]})


async def list_labels(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the tags and branches of a name."""
    name = context.noted.facts["name"] = required(context.request, "name")
    return web.json_response({"labels": [label.as_json() for label in await repository.labels(name)]})


async def set_label(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Set a tag or a branch. Answer with it."""
    request = context.request
    name = context.noted.facts["name"] = required(request, "name")
    try:
        kind = LabelKind(request.query.get("kind", LabelKind.TAG.value))
    except ValueError:
        raise InvalidInput(f"the kind is {request.query['kind']!r}; allowed are {', '.join(LabelKind)}") from None
    force = truth_in(request, "force")
    access = context.noted.access
    if force and access is not None:
        # The version that loses it may be removed then.
        access.check_scope(Scope.DELETE)
    label = await repository.set_label(
        name, required(request, "label"), kind=kind, revision=request.query.get("revision"), force=force
    )
    return web.json_response(label.as_json())


async def remove_label(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a tag or a branch. Answer with it."""
    request = context.request
    name = context.noted.facts["name"] = required(request, "name")
    return web.json_response((await repository.remove_label(name, required(request, "label"))).as_json())
