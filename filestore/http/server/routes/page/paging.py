"""Pages of long tables: which rows one page has."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from filestore.http.server.routes.queries import number_in


class Paging(NamedTuple):
    """Which rows of a table are on a page."""

    number: int
    """The number of the page, from 1."""
    page_count: int
    start: int
    stop: int
    total: int
    """The rows of all pages."""

    @classmethod
    def of(cls, total: int, number: int, rows_at_once: int) -> Paging:
        """Return the page with a number, or the nearest one that exists. A table without rows has one page."""
        page_count = max(1, -(-total // rows_at_once))
        number = min(max(number, 1), page_count)
        start = (number - 1) * rows_at_once
        return cls(number, page_count, start, min(start + rows_at_once, total), total)


def page_asked(request: web.Request) -> int:
    """Return the number of the page that a query asks for: 1 without one. Raises InvalidInput."""
    return number_in(request, "page") or 1
