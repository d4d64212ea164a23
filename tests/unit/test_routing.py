"""The table of routes gives each request the route that aiohttp finds when it tries one after the other."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web
from yarl import URL

from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.http.server.app import ROUTES
from filestore.http.server.routes.page.routes import PAGE_ROUTES, PUBLIC_ROUTES
from filestore.http.server.routing import RouteTable

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
VALUES = ("a", "a/b", "main", "0" * 64, "7", "pipeline_files/a/b", "datasets/a/b", "%20", "")
"""What may be in the place of a variable part."""
ADDED = [(route.method, route.path) for route in PUBLIC_ROUTES] + [
    (route.method, path)
    for route in (*PAGE_ROUTES, *ROUTES)
    for path in ([route.path, SIGNED_PREFIX + route.path] if route.can_be_signed else [route.path])
]
"""The methods and paths of all routes, in their order."""
PATHS = sorted({path for _, path in ADDED})


async def answer(_: web.Request) -> web.StreamResponse:
    """A handler that nobody calls."""
    return web.Response()


@pytest.fixture(scope="module")
def table() -> RouteTable:
    """The table of all routes of a server."""
    made = RouteTable()
    for method, path in ADDED:
        made.add_route(method, path, answer)
    return made


@pytest.fixture(scope="module")
def one_by_one() -> web.UrlDispatcher:
    """The same routes, as aiohttp keeps them."""
    made = web.UrlDispatcher()
    for method, path in ADDED:
        made.add_route(method, "/{slashes:/*}" + path.removeprefix("/"), answer)
    return made


def filled(path: str, value: str) -> str:
    """A path that a client may send for a pattern. Braces are nested once at most."""
    return re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", value, path)


def asked(method: str, path: str) -> web.Request:
    """A request as the table sees it."""
    return cast(web.Request, SimpleNamespace(method=method, rel_url=URL(path, encoded=True)))


@pytest.mark.parametrize("value", VALUES)
def test_each_request_gets_the_same_route(table: RouteTable, one_by_one: web.UrlDispatcher, value: str) -> None:
    """The route, what its pattern finds, and the methods that the path permits are the same."""

    async def compare() -> int:
        found_count = 0
        for path in PATHS:
            for slashes, end in (("/", ""), ("///", "/"), ("/", "/more")):
                request_path = slashes + filled(path, value).lstrip("/") + end
                for method in METHODS:
                    request = asked(method, request_path)
                    expected = await one_by_one.resolve(request)
                    found, methods = await table.resolve(request)
                    if found is None:
                        refusal = expected.http_exception
                        assert refusal is not None, request_path
                        permitted = refusal.allowed_methods if isinstance(refusal, web.HTTPMethodNotAllowed) else set()
                        assert methods == permitted, request_path
                    else:
                        found_count += 1
                        assert dict(found) == dict(expected), request_path
                        assert found.route.method == expected.route.method
                        assert found.route.resource is not None
                        assert expected.route.resource is not None
                        assert found.route.resource.canonical == expected.route.resource.canonical, request_path
        return found_count

    assert asyncio.run(compare()) > len(PATHS)


def test_a_path_of_very_many_segments_is_not_found(table: RouteTable) -> None:
    """What is looked up does not grow with the path."""
    for path in ("/native" * 100_000, "/native/v1" + "/" * 100_000):
        assert asyncio.run(table.resolve(asked("GET", path))) == (None, set())


def test_a_method_is_added_to_the_path_before_it(table: RouteTable) -> None:
    """All routes are counted and listed, and the methods of one path share its pattern."""
    made = RouteTable()
    first = made.add_route("GET", "/a/{name}", answer)
    second = made.add_route("PUT", "/a/{name}", answer)
    assert first.resource is second.resource
    assert list(made) == [first, second]
    assert len(made) == len(list(made)) == 2
    with pytest.raises(RuntimeError, match="never be executed"):
        made.add_route("PUT", "/a/{name}", answer)
    assert len(table) == len(list(table)) > len(PATHS)
