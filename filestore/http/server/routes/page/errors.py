"""Tell errors as pages. A script, which accepts JSON only, gets the problem document that all routes answer with."""

from __future__ import annotations

import json
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.http.server.context import RequestContext
from filestore.http.server.errors import answer_or_problem, problem
from filestore.http.server.request_record import ProblemAnswer, record_of
from filestore.http.server.routes.page.rendering import ask_again, own_path, render_for, see_other

_SESSION_OVER = frozenset({"unauthorized", "token-expired", "url-refused"})
"""The errors of a session that does not permit anything any more."""


def as_pages(handler: Handler) -> Handler:
    """Return a handler whose errors are pages. A reader without a session is sent to the first page, and then back."""

    async def answered(request: web.Request) -> web.StreamResponse:
        response = await answer_or_problem(handler, request)
        if not isinstance(response, ProblemAnswer) or response.prepared or not _wants_page(request):
            return response
        if response.slug in _SESSION_OVER:
            return await _to_sign_in(request)
        return await page_of(request, response)

    return answered


def as_pages_in_browsers(handler: Handler) -> Handler:
    """Return a handler whose errors are pages for a browser. All others, and scripts, get the problem document.

    It is for URLs that people open who have no token, such as those of links. Their pages have no menu, whoever asks.
    """

    async def answered(request: web.Request) -> web.StreamResponse:
        response = await answer_or_problem(handler, request)
        if not isinstance(response, ProblemAnswer) or response.prepared or "text/html" not in request.headers.get("Accept", ""):
            return response
        return await page_of(request, response, viewer=None)

    return answered


async def _to_sign_in(request: web.Request) -> web.Response:
    following = f"/?next={quote(own_path(request.path_qs), safe='')}" if request.method in {"GET", "HEAD"} else "/"
    return await ask_again(request) or see_other(following)


def _wants_page(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "*/*")
    return "text/html" in accepted or "json" not in accepted


async def page_of(request: web.Request, answer: web.Response, **values: object) -> web.Response:
    """Return a page that says what a problem document says."""
    kept = {"Retry-After", "Content-Range", "WWW-Authenticate"}
    headers = {name: value for name, value in answer.headers.items() if name in kept}
    return await render_for(
        request,
        "error.html",
        status=answer.status,
        headers=headers,
        detail=_capitalized(_detail(answer)),
        request_id=record_of(request).id,
        is_ours=answer.status >= 500,
        **values,
    )


def sentence_of(context: RequestContext, error: Exception) -> str:
    """Return what an answer says about an error, as a sentence. Facts about the server itself are only in its log."""
    return f"{_capitalized(_detail(problem(context.request, error)))}."


def _detail(answer: web.Response) -> str:
    document = json.loads(answer.body) if isinstance(answer.body, bytes) else {}
    return str(document.get("detail", answer.reason))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


async def show_nothing(context: RequestContext, _: object) -> web.StreamResponse:
    """Answer for a path under `/ui/` that is not a page."""
    return await render_for(
        context.request,
        "error.html",
        status=404,
        detail="This page does not exist.",
        request_id=context.noted.id,
        is_ours=False,
    )
