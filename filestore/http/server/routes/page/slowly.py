"""What the pages of names and versions share: slow answers, the scope of the reader, and errors in one sentence."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from filestore.core.scopes import Scope
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.slow import answer_slowly

PAGE_SIZE = 512 << 10
"""Bytes of the largest page that comes late."""


async def render_slowly(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.StreamResponse:
    """Answer with the page that `work` makes, which may take minutes. It ends when the reader leaves."""
    return await answer_slowly(context, work, document_size=PAGE_SIZE, goes_on=False, headers={"Content-Type": "text/html"})


def permits(context: RequestContext, scope: Scope) -> bool:
    """Return whether the token of the reader permits what needs a scope."""
    access = context.noted.access
    return access is not None and access.scope.permits(scope)


def sentence_of(context: RequestContext, error: Exception) -> str:
    """Return what an answer says about an error. Facts about the server itself are only in its log."""
    return sentence_in(problem(context.request, error))


def sentence_in(answer: web.Response) -> str:
    """Return what a problem document says, as a sentence."""
    detail = str(json.loads(answer.body)["detail"]) if isinstance(answer.body, bytes) else ""
    return f"{detail[:1].upper()}{detail[1:]}."
