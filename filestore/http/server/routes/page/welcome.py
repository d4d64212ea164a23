"""The first page, and how a session begins and ends."""

from __future__ import annotations

from urllib.parse import parse_qs

from aiohttp import web

from filestore.errors import FilestoreError, InvalidInput, TokenExpired, TooManyGuesses, Unauthorized
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.route import Entrance
from filestore.http.server.routes.page.rendering import ask_again, render, see_other
from filestore.http.server.routes.page.session import begin_session, check_same_origin, cookie_name, session_access, set_cookie
from filestore.http.server.routes.page.urls import NAMES

FORM_LIMIT = 64 << 10
"""Bytes of a form. A token has at most some thousand."""
FIELDS_LIMIT = 100
"""Fields of a form."""
FORMS = ("/ui/login", "/ui/logout")
"""Where the forms go that begin and end a session."""


async def show_welcome(context: RequestContext, entrance: Entrance) -> web.StreamResponse:
    """Say what this server is, and ask for a token. A reader with a session is sent to the stored names."""
    request = context.request
    following = _own_path(request.query.get("next"))
    try:
        access = await entrance.visitor(request, session_access)
    except TooManyGuesses:
        # By a cookie that this repository never made. It is removed below.
        access = None
    if access is not None:
        return see_other(following)
    response = await ask_again(request) or await _welcome(context, following)
    if cookie_name(context.base_url) in request.cookies:
        set_cookie(response, context.base_url, "")
    return response


async def return_to_start(_: RequestContext, __: Entrance) -> web.StreamResponse:
    """Send a reader to the first page who opens the address of a form, as it is in the browser after a wrong token."""
    return see_other("/")


async def return_to_links(_: RequestContext, __: Entrance) -> web.StreamResponse:
    """Send a reader to the links who opens the address at which one is made."""
    return see_other("/ui/links")


async def sign_in(context: RequestContext, entrance: Entrance) -> web.StreamResponse:
    """Begin a session with the token of the form."""
    check_same_origin(context.request, context.origin)
    form = await read_form(context)
    following = _own_path(form.get("next"))
    try:
        access = await entrance.enter(context.request, form.get("token", "").strip())
    except (Unauthorized, TooManyGuesses) as error:
        return await _welcome(context, following, error)
    cookie, _ = begin_session(access, context.keys)
    response = see_other(following)
    set_cookie(response, context.base_url, cookie)
    return response


async def sign_out(context: RequestContext, _: Entrance) -> web.StreamResponse:
    """End the session in this browser."""
    check_same_origin(context.request, context.origin)
    response = see_other("/")
    set_cookie(response, context.base_url, "")
    return response


async def read_form(context: RequestContext) -> dict[str, str]:
    """Return the fields of a form that a page sent; of a repeated one the last. Raises InvalidInput, LimitExceeded."""
    if context.request.content_type != "application/x-www-form-urlencoded":
        raise InvalidInput("a form of a page of this server is expected")
    async with context.whole_body(what="the size of the form in bytes", limit=FORM_LIMIT) as body:
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_LIMIT, errors="strict")
        except ValueError:
            raise InvalidInput("the form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}


async def _welcome(context: RequestContext, following: str, error: FilestoreError | None = None) -> web.Response:
    status, message, headers = 200, "", {}
    if error is not None:
        answer = problem(context.request, error)
        status = answer.status
        headers = {name: value for name, value in answer.headers.items() if name in {"Retry-After", "WWW-Authenticate"}}
        match error:
            case TooManyGuesses():
                message = "Too many wrong tokens came from your address. Wait a minute, or give the right one."
            case TokenExpired():
                message = "This token has expired. Ask for a new one."
            case _:
                message = "This server does not know the token. Check that you copied all of it."
    return await render(context, "welcome.html", status=status, headers=headers, following=following, message=message)


def _own_path(text: str | None) -> str:
    """Return a path of a page of this server, or that of the first one if `text` is anything else."""
    # A browser reads `//host` and `/\\host` as another host.
    is_own = text is not None and text.startswith("/ui/") and text.isprintable() and text.isascii() and "\\" not in text
    return text if text is not None and is_own and not text.startswith(FORMS) else NAMES
