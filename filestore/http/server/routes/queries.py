"""Read the values in the query of a request."""

from __future__ import annotations

import re
from urllib.parse import unquote

from aiohttp import web

from filestore.errors import InvalidInput

_NUMBER = re.compile(r"[0-9]{1,18}")


def required(request: web.Request, key: str) -> str:
    """Return the text that a query gives for `key`. Raises InvalidInput if there is none."""
    text = request.query.get(key)
    if not text:
        raise InvalidInput(f"the query has no {key}")
    return text


def truth_in(request: web.Request, key: str) -> bool:
    """Return the truth value that a query gives for `key`; False without one. Raises InvalidInput."""
    text = request.query.get(key, "false")
    if text not in {"true", "false"}:
        raise InvalidInput(f"{key} is {text!r}; allowed are true and false")
    return text == "true"


def number_in(request: web.Request, key: str) -> int | None:
    """Return the whole number that a query gives for `key`, or None. Raises InvalidInput."""
    text = request.query.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"{key} is {text!r}; a whole number is expected")
    return int(text)


def limited_number(request: web.Request, key: str, limit: int) -> int:
    """Return the number from 1 to `limit` that a query gives for `key`; `limit` without one. Raises InvalidInput."""
    number = number_in(request, key)
    if number is not None and not 1 <= number <= limit:
        raise InvalidInput(f"{key} is {number}; allowed are 1 to {limit}")
    return limit if number is None else number


def seconds_in(request: web.Request, key: str) -> float | None:
    """Return the number of seconds that a query gives for `key`, or None. Raises InvalidInput."""
    text = request.query.get(key)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e12:
        raise InvalidInput(f"{key} is {text!r}; a number of seconds is expected")
    return seconds


def quoted_header(request: web.Request, header: str) -> str | None:
    """Return the percent-encoded text of a header, or None. Raises UnicodeDecodeError if it is not valid UTF-8."""
    text = request.headers.get(header)
    return None if text is None else unquote(text, errors="strict")
