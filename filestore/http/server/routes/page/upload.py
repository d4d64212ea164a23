"""The page for uploads from a browser. Its script sends files in parts, by the routes of `routes/sdk/multipart.py`."""

from __future__ import annotations

from aiohttp import web

from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.rendering import render
from filestore.repository.local import LocalRepository


async def show_upload(context: RequestContext, _: LocalRepository) -> web.StreamResponse:
    """Show where files and folders are chosen and dropped."""
    return await render(context, "upload.html")
