"""Find the route of a request among many, without trying each of them.

Each path begins with any number of slashes, because a base URL that ends in a slash adds one. aiohttp sorts its routes by what
is before their first variable part, which is nothing then, so it tries one pattern after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

ExpectHandler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class RouteTable(web.AbstractResource):
    """The routes of a server. Of those that match a request, it gets the one that was added first.

    A route is tried only if the path of the request begins with the segments that are before the variable part of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._resources: list[web.DynamicResource] = []
        self._places: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        """The places in `_resources` of those that have the same segments before their variable part."""
        self._depth = 0
        """The most segments of a key of `_places`."""

    def add_route(
        self, method: str, path: str, handler: Handler, *, expect_handler: ExpectHandler | None = None
    ) -> web.AbstractRoute:
        """Add a route for one method. `path` begins with a slash, and is a pattern of aiohttp."""
        pattern = "/{slashes:/*}" + path.removeprefix("/")
        if not (self._resources and self._resources[-1].raw_match(pattern)):
            fixed = _fixed_segments(path)
            self._places[fixed].append(len(self._resources))
            self._depth = max(self._depth, len(fixed))
            self._resources.append(web.DynamicResource(pattern))
        return self._resources[-1].add_route(method, handler, expect_handler=expect_handler)

    # What aiohttp calls.

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """Return the route with what its pattern found, and the methods that others with this path permit."""
        # A client may send thousands of segments.
        segments = tuple(request.rel_url.path_safe.lstrip("/").split("/", self._depth)[: self._depth])
        places: list[int] = []
        for count in range(len(segments) + 1):
            places += self._places.get(segments[:count], ())
        permitted: set[str] = set()
        for place in sorted(places):
            found, methods = await self._resources[place].resolve(request)
            if found is not None:
                return found, methods
            permitted |= methods
        return None, permitted

    @property
    def canonical(self) -> str:
        """Return the path that all requests begin with."""
        return "/"

    def raw_match(self, path: str) -> bool:  # noqa: ARG002  # as in aiohttp
        """Return False: aiohttp adds no routes to this object."""
        return False

    def get_info(self) -> Any:
        """Return nothing: the table is not one route."""
        return {}

    def url_for(self, **_: str) -> URL:
        """Raise NotImplementedError: the table has many URLs."""
        raise NotImplementedError

    def add_prefix(self, prefix: str) -> None:  # as in aiohttp
        """Raise NotImplementedError: the table is not part of a larger application."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(map(len, self._resources))

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        for resource in self._resources:
            yield from resource


def _fixed_segments(path: str) -> tuple[str, ...]:
    """Return the segments of a pattern that are before its first variable part, or all if it has none."""
    fixed, brace, _ = path.removeprefix("/").partition("{")
    if not brace:
        return tuple(fixed.split("/"))
    return tuple(fixed.split("/")[:-1])
