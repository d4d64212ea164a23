"""Read JSON objects from requests, and send JSON that may be megabytes long."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.system.threads import in_cpu_thread


def json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a text. `where` names it in the error. Raises InvalidInput."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object")
    return value


async def json_answer(document: Callable[[], dict[str, Any]]) -> web.Response:
    """Return an answer with JSON that may be megabytes long. It is encoded in a thread."""
    body = await in_cpu_thread(lambda: json.dumps(document()).encode())
    return web.Response(body=body, content_type="application/json")
