"""Answer the conditions and the range that a request for a content has.

Source: RFC 9110, sections 13.2.2 (precedence of conditions) and 14 (ranges).
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from filestore.http import wire
from filestore.http.server.validators import attachment, matches_any, parse_range


def unchanged(request: web.Request, tag: str, headers: Mapping[str, str]) -> web.Response | None:
    """Return the answer to a client that has the content with this tag already. Return None if it must be sent.

    Raises HTTPPreconditionFailed if the client wants another content.
    """
    if request.if_match is not None and not matches_any(request.if_match, tag, weak=False):
        raise web.HTTPPreconditionFailed(text=f"the file's entity tag is {tag}")
    return web.Response(status=304, headers=headers) if matches_any(request.if_none_match, tag, weak=True) else None


def content_head(
    request: web.Request, tag: str, *, size: int, name: str, headers: Mapping[str, str]
) -> tuple[web.StreamResponse, range]:
    """Return the head of the answer with a content, and which of its bytes follow. `name` is what clients save it as.

    Raises InvalidRange.
    """
    part = None
    # If-Range has a strong tag or a date. No answer here has a date.
    if request.method == "GET" and request.headers.get("If-Range", f'"{tag}"') == f'"{tag}"':
        part = parse_range(request.headers.get("Range"), size)
    response = web.StreamResponse(status=206 if part else 200, headers=headers)
    response.headers["Content-Type"] = wire.OCTETS
    response.headers["Content-Disposition"] = attachment(name)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Accept-Ranges"] = "bytes"
    if part is not None:
        response.headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return response, part or range(size)
