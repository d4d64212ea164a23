"""Read what a form of a page sends."""

from __future__ import annotations

from urllib.parse import parse_qsl

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext

FORM_LIMIT = 16 << 10
"""Bytes of the largest form. A name has 255 bytes, each of which may be sent as three."""
_FIELDS_LIMIT = 50
_FORM = "application/x-www-form-urlencoded"


async def form_of(context: RequestContext) -> dict[str, str]:
    """Return the fields of a form by their names, the last one of each.

    Raises InvalidInput if the body is not a form, LimitExceeded, Interrupted, Stalled.
    """
    if context.request.content_type != _FORM:
        raise web.HTTPUnsupportedMediaType(text=f"the body of this request has the type {_FORM}")
    async with context.whole_body(what="the size of the form in bytes", limit=FORM_LIMIT) as body:
        try:
            fields = parse_qsl(
                body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_LIMIT, strict_parsing=bool(body)
            )
        except ValueError:
            raise InvalidInput("the form is not valid") from None
    return dict(fields)


def field(form: dict[str, str], name: str) -> str:
    """Return the text of a field. Raises InvalidInput if the form does not have it."""
    text = form.get(name)
    if not text:
        raise InvalidInput(f"the form has no {name}")
    return text
