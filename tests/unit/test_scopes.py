"""The scope of a token decides which requests it permits."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from filestore.core.scopes import Scope
from filestore.errors import Forbidden, InvalidInput, OutsidePrefix, ScopeMissing
from filestore.http.server.access import Access
from filestore.http.server.app import ROUTES
from filestore.http.server.context import RequestContext
from filestore.http.server.route import Route
from filestore.http.server.routes.page.routes import PAGE_ROUTES
from filestore.repository.local import LocalRepository
from filestore.runtime.routes import Routes
from filestore.runtime.routes.pipelines import PipelineRoutes
from filestore.runtime.routes.pointers import PointerRoutes
from filestore.runtime.routes.runs import RunRoutes

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("scope", Scope)
def test_scope_contains_those_below_it(scope: Scope) -> None:
    """A token may do what its scope and each lower one permit, and nothing else."""
    for needed in Scope:
        access = Access("team", scope=scope)
        if needed <= scope:
            access.check_scope(needed)
        else:
            with pytest.raises(ScopeMissing, match=f"scope '{needed}' or a higher one; this token has '{scope}'"):
                access.check_scope(needed)


def test_prefix_ends_requests_about_all_names() -> None:
    """A token that sees all names may ask about all of them."""
    Access("team").check_whole()
    with pytest.raises(OutsidePrefix, match="names that begin with 'logs-', and not for requests that concern all names"):
        Access("team", prefix="logs-").check_whole()


def test_scope_is_named_by_its_word() -> None:
    """Each scope is parsed from its name, and any other word is refused with the list of names."""
    assert ["read", "write", "delete", "admin"] == [str(scope) for scope in Scope]
    assert list(Scope) == [Scope.parse(str(scope)) for scope in Scope]
    with pytest.raises(InvalidInput, match="'READ' does not exist; give one of read, write, delete, admin"):
        Scope.parse("READ")


def documented() -> dict[str, str]:
    """The scope of each route, as docs/http-api.md lists it."""
    section = (DOCS / "http-api.md").read_text().partition("\n## Scopes\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([A-Z]+ [^`]+)` \| (\w+) \|", section, re.MULTILINE))


def served() -> list[Route]:
    """All routes of a server and of a runtime."""
    return [*ROUTES, *(route for kind in (PipelineRoutes, PointerRoutes, RunRoutes) for route in kind(Mock()).all)]


def shown(route: Route) -> str:
    """The method and the path of a route in the form of the documentation."""
    path = re.sub(r"\{path:(\w+)/\.\*\}", r"\1/PATH", route.path)
    return f"{route.method} {re.sub(r':[^}]+', '', path)}"


def test_scopes_of_all_routes_are_documented() -> None:
    """The page says what the server asks for. The runtime serves some paths of the server by routes of its own."""
    asked = {shown(route): str(route.scope) for route in served()}
    assert asked == documented()
    assert len(set(served())) >= len(asked)
    assert {(shown(route), str(route.scope)) for route in served()} == set(asked.items())


def test_scopes_of_all_pages_are_documented() -> None:
    """A row of the table may be about several pages. A form may be on the page of another one."""
    rows = re.findall(r"^\| (`/ui/.*?) \| .* \| `(\w+)`[^|]* \|$", (DOCS / "pages.md").read_text(), re.MULTILINE)
    documented = {path: scope for paths, scope in rows for path in re.findall(r"/ui/\w+", paths)}
    pages = [route for route in PAGE_ROUTES if "{" not in route.path]
    assert documented == {route.path: str(route.scope) for route in pages}
    # The forms of a page have its scope.
    assert set(documented.items()) == {(route.path, str(route.scope)) for route in pages}


def test_only_a_high_scope_removes_or_changes() -> None:
    """`read` is enough for questions only, and `write` for nothing that removes what is stored."""
    harmless = {"POST /native/v1/chunks/get", "POST /native/v1/chunks/verify", "POST /native/v1/files/freed"}
    harmless |= {
        "POST /native/v1/files/{id}/sign",
        "POST /native/v1/peer-ticket",
        "POST /api/{type}/{repository}/paths-info/{revision}",
        "POST /api/validate-yaml",
    }
    for route in served():
        if route.method != "GET":
            assert (route.scope > Scope.READ) == (shown(route) not in harmless), shown(route)
        # An upload that is cancelled was never stored.
        is_upload = shown(route) == "DELETE /v3/pipeline_files/uploads/{upload_id}"
        if (route.method in {"DELETE", "PATCH"} or "cancel" in route.path) and not is_upload:
            assert route.scope >= Scope.DELETE, shown(route)


def test_only_files_are_for_prefixes() -> None:
    """What a runtime does with pipelines and runs concerns all names."""
    refused = {shown(route) for route in served() if not route.is_for_prefixes}
    assert {"GET /native/v1/status", "GET /metrics"} == refused & {shown(route) for route in ROUTES}
    paths = {shown(route) for route in served()} - {shown(route) for route in ROUTES} - refused
    assert {"GET /storage/run_files/PATH"} == paths


async def test_a_token_of_another_namespace_neither_runs_nor_sees_anything_of_a_runtime() -> None:
    """A JSON Web Token may have any namespace. With such a one, only the files of that namespace are read."""
    routes = Routes(Mock(namespace="default")).all
    files = [route for route in routes if route.public_namespace is not None]
    assert {"GET"} == {route.method for route in files}
    for route in set(routes) - set(files):
        with pytest.raises(Forbidden, match="only with a token of the namespace 'default'"):
            await route.answer(cast("RequestContext", None), cast("LocalRepository", SimpleNamespace(namespace="team")))
