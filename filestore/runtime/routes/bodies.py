"""Read JSON objects and pages from requests, and send JSON that may be megabytes long."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web

from filestore.core.records import parse_json
from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.system.threads import in_cpu_thread

BODY_LIMIT = 1 << 20
"""The largest number of bytes in the body of a small request. LimitExceeded is raised for more."""
PAGE_DEFAULT = 1000
PAGE_LIMIT = 10_000
"""The largest number of items in a page. InvalidInput is raised for more."""


class Page(NamedTuple):
    """The part of a list that a request asks for."""

    skip: int
    limit: int


def page_asked_for(request: web.Request) -> Page:
    """Return the page that a query's `skip` and `limit` select. Raises InvalidInput."""
    return Page(
        _number(request, "skip", 0, least=0, most=1 << 62), _number(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_LIMIT)
    )


async def page_answer(page: Page, total: int, data: Callable[[], list[dict[str, Any]]]) -> web.Response:
    """Return an answer with a page of a list that has `total` items, in the format of the Pipeline SDK's `Paginated`."""
    return await json_answer(lambda: {"skip": page.skip, "limit": page.limit, "total": total, "data": data()})


async def receive_object(context: RequestContext, where: str) -> dict[str, Any]:
    """Receive the small JSON object of a request. `where` names it in errors. Raises InvalidInput, LimitExceeded."""
    async with context.whole_body(what=f"the size in bytes of {where}", limit=BODY_LIMIT) as body:
        return json_object(body.decode(errors="replace"), where)


def json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a text. `where` names it in the error, which says where it breaks. Raises InvalidInput."""
    try:
        value = parse_json(text, any_number=True)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidInput(f"{where} is not a JSON object: at {place}, JSON breaks: {error.msg}") from None
    except ValueError as error:
        raise InvalidInput(f"{where} is not a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object")
    return value


async def json_answer(document: Callable[[], dict[str, Any]]) -> web.Response:
    """Return an answer with JSON that may be megabytes long. It is encoded in a thread."""
    body = await in_cpu_thread(lambda: json.dumps(document()).encode())
    return web.Response(body=body, content_type="application/json")


def _number(request: web.Request, key: str, default: int, *, least: int, most: int) -> int:
    text = request.query.get(key, str(default))
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not least <= number <= most:
        raise InvalidInput(f"{key} is {text[:60]!r}; allowed are {least} to {most}")
    return number
