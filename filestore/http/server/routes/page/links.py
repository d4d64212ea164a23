"""The page of the links of a namespace, and their end."""

from __future__ import annotations

from aiohttp import web

from filestore.core.links import checked_link_id
from filestore.errors import NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render, see_other
from filestore.http.server.routes.page.urls import page_url
from filestore.http.server.routes.page.welcome import read_form
from filestore.repository.local import LocalRepository

_ID_SHOWN = 100
SHOWN_LIMIT = 200
"""The most links of a page."""


async def show_links(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Show the links, the newest first, without their URLs, which only their makers know."""
    links = list(reversed(await repository.links()))
    paging = Paging.of(context.request, len(links), limit=SHOWN_LIMIT)
    shown = links[paging.start : paging.stop]
    revoked = context.request.query.get("revoked", "")
    return await render(context, "links.html", links=shown, paging=paging, revoked=revoked if _is_id(revoked) else "")


async def ask_revocation(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Ask whether to end a link. Raises NotFound."""
    link_id = context.request.query.get("id", "")
    link = next((each for each in await repository.links() if each.id == link_id), None)
    if link is None:
        raise NotFound(link_id)
    return await render(context, "unlink.html", link=link)


async def revoke_link(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """End the link of the form, and go back to the others. Raises NotFound."""
    link_id = (await read_form(context)).get("id", "")
    if not _is_id(link_id):
        raise NotFound(link_id[:_ID_SHOWN])
    context.noted.facts["link"] = link_id
    link = await repository.revoke_link(link_id)
    return see_other(page_url("/ui/links", revoked=link.id))


def _is_id(text: str) -> bool:
    try:
        checked_link_id(text)
    except ValueError:
        return False
    return True
