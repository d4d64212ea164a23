"""Make, list and revoke links.

Source: `docs/http-api.md`, which is the specification.
"""

from __future__ import annotations

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.queries import number_in, required
from filestore.repository.links import OPERATOR, LinkMaker
from filestore.repository.local import LocalRepository


async def make_link(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Make a link to a file. Answer with it and its path."""
    request = context.request
    file_id = context.noted.facts["record"] = required(request, "file_id")
    seconds = number_in(request, "seconds")
    if seconds is None:
        raise InvalidInput("the query has no seconds, which say how long the link lasts")
    link = await repository.make_link(file_id, seconds=seconds, nonce=request.query.get("nonce"), maker=maker_of(context))
    context.noted.facts |= {"link": link.id, "name": link.name}
    return web.json_response(link.as_json(), headers={"Cache-Control": "no-store"})


async def list_links(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:  # noqa: ARG001  # all have it
    """Answer with the links of the namespace, without their paths."""
    return web.json_response({"links": [link.as_json() for link in await repository.links()]})


async def revoke_link(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Revoke a link. Answer with it."""
    link_id = context.noted.facts["link"] = context.request.match_info["id"]
    return web.json_response((await repository.revoke_link(link_id)).as_json())


def maker_of(context: RequestContext) -> LinkMaker:
    """Return who makes a link by a request."""
    access = context.noted.access
    return OPERATOR if access is None else LinkMaker(access.token_id, access.label, access.expires_at is not None)
