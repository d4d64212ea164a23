"""`docs/openapi.yaml` describes the routes of a server and of a runtime: all of them, and no others."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.http.server.app import ROUTES
from filestore.http.server.route import Route
from filestore.runtime.routes.pipelines import PipelineRoutes
from filestore.runtime.routes.pointers import PointerRoutes
from filestore.runtime.routes.runs import RunRoutes
from tests.fuzz import fuzzer
from tests.fuzz.fuzzer import REPOSITORY
from tests.fuzz.needs import needs_own_venv

DOCUMENT = REPOSITORY / "docs" / "openapi.yaml"
TABLE_ROW = re.compile(r"\| `([a-z-]+)` \| ([0-9]{3}) \|")
CONTENT_PATHS = {
    "/{path:pipeline_files/.*}": "/pipeline_files/{first}/{second}/{digest}/{name}",
    "/{path:run_files/.*}": "/run_files/{first}/{second}/{uuid}/{name}",
}
"""The patterns of routes for content, and the form of the paths that they have."""
METHODS = {"get", "put", "post", "patch", "delete"}


def _described() -> Any:
    return yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))


def _operations(*, of_runtime: bool) -> set[tuple[str, str]]:
    """The operations of the document, by method and path."""
    return {
        (method.upper(), path)
        for path, operations in _described()["paths"].items()
        for method, operation in operations.items()
        if method in METHODS and ("runtime" in operation["tags"]) == of_runtime
    }


def _served(routes: Iterator[Route]) -> set[tuple[str, str]]:
    """The routes of a server, by method and path, in the form of the document."""
    found = set()
    for route in routes:
        prefix = "/storage" if route.path.startswith("/storage/") else ""
        plain = route.path.removeprefix(prefix)
        path = prefix + CONTENT_PATHS.get(plain, re.sub(r":[^{}]+\}", "}", plain))
        found.add((route.method, path))
        if route.can_be_signed:
            found.add((route.method, SIGNED_PREFIX + path))
    return found


def _runtime_routes() -> Iterator[Route]:
    # The lists of routes use nothing else of these objects.
    for routes in (PipelineRoutes, PointerRoutes, RunRoutes):
        yield from cast(Any, routes).__new__(routes).all


def test_the_document_has_each_route_of_a_server() -> None:
    """A route is described, and what is described is a route."""
    assert _served(iter(ROUTES)) | {("GET", "/healthz"), ("GET", "/readyz")} == _operations(of_runtime=False)


def test_the_document_has_each_route_of_a_runtime() -> None:
    """A route of a runtime is described, and what is described for a runtime is one of its routes."""
    own = _served(_runtime_routes())
    assert own - _operations(of_runtime=False) == _operations(of_runtime=True)


def test_the_document_has_each_error() -> None:
    """The slugs of each status are those of the table of errors."""
    table: dict[str, set[str]] = {}
    for line in (REPOSITORY / "docs" / "http-api.md").read_text(encoding="utf-8").splitlines():
        if found := TABLE_ROW.match(line):
            table.setdefault(found[2], set()).add(found[1])
    described = _described()
    responses = described["components"]["responses"]
    names = {
        (status, answer["$ref"].rpartition("/")[2])
        for operations in described["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if "$ref" in answer
    }
    slugs = {status: set(responses[name].get("x-slugs", ())) for status, name in names}
    assert table == {status: found for status, found in slugs.items() if found}
    assert len(names) == len({status for status, _ in names}) == len(responses)


def test_each_operation_has_a_name_of_its_own() -> None:
    """Tools make functions of the names."""
    names = [operation["operationId"] for operations in _described()["paths"].values() for operation in operations.values()]
    assert len(names) == len(set(names))


@needs_own_venv
def test_the_document_is_valid() -> None:
    """The document is one of OpenAPI 3.1."""
    validator = Path(fuzzer.OWN_PYTHON).with_name("openapi-spec-validator")
    done = subprocess.run([validator, "--schema", "3.1", DOCUMENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
