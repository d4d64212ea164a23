"""Long lists: which rows are on a page, and where the other pages are."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from filestore.http.server.routes.page.rendering import own_path
from filestore.http.server.routes.page.urls import page_url
from filestore.http.server.routes.queries import number_in


class Paging(NamedTuple):
    """Which rows of a list are on a page."""

    number: int
    """The number of the page, from 1."""
    page_count: int
    start: int
    stop: int
    total: int
    """The rows of all pages."""
    previous_url: str
    """Empty for the first page."""
    next_url: str
    """Empty for the last page."""

    @classmethod
    def of(cls, request: web.Request, total: int, *, limit: int, key: str = "page") -> Paging:
        """Return the page of at most `limit` rows that a query asks for by `key`, or the nearest one that exists.

        A list without rows has one page. The other pages have the same query besides. Raises InvalidInput.
        """
        page_count = max(1, -(-total // limit))
        number = min(max(number_in(request, key) or 1, 1), page_count)

        def url(other: int) -> str:
            values = {**request.query, key: other}
            return page_url(own_path(request.path), **values) if 1 <= other <= page_count else ""

        start = (number - 1) * limit
        return cls(number, page_count, start, min(start + limit, total), total, url(number - 1), url(number + 1))
