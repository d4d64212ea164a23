"""What the pages of names and versions share: slow answers, the scope of the reader, and errors in one sentence."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from filestore.core.scopes import Scope
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.routes.page.errors import page_of
from filestore.http.server.routes.page.rendering import PAGE_HEADERS
from filestore.http.server.slow import answer_slowly

PAGE_SIZE = 3 << 19
"""Bytes of the largest page that comes late: 50 commits with messages, authors and labels that all have to be escaped."""
_HEADERS = {**PAGE_HEADERS, "Content-Type": "text/html; charset=utf-8"}


async def render_slowly(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.StreamResponse:
    """Answer with the page that `work` makes, which may take minutes. It ends when the reader leaves."""
    return await answer_slowly(context, _as_page(context, work), document_size=PAGE_SIZE, goes_on=False, headers=_HEADERS)


async def _as_page(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.Response:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        # Here, because its head may say already that a page follows.
        return await page_of(context.request, problem(context.request, error))


def permits(context: RequestContext, scope: Scope) -> bool:
    """Return whether the token of the reader permits what needs a scope."""
    access = context.noted.access
    return access is not None and access.scope.permits(scope)


def sentence_of(context: RequestContext, error: Exception) -> str:
    """Return what an answer says about an error, as a sentence. Facts about the server itself are only in its log."""
    detail = detail_of(problem(context.request, error))
    return f"{detail[:1].upper()}{detail[1:]}."


def detail_of(answer: web.Response) -> str:
    """Return what a problem document says."""
    return str(json.loads(answer.body)["detail"]) if isinstance(answer.body, bytes) else ""
