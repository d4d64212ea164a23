"""The routes of the Hub API. A route whose path others begin with follows them."""

from __future__ import annotations

from functools import partial

from filestore.core.scopes import Scope
from filestore.http.server.route import Route
from filestore.http.server.routes.hub import listing
from filestore.http.server.routes.hub.dialect import in_dialect
from filestore.http.server.routes.hub.names import API_REPOSITORY, API_TYPE, REPOSITORY, REVISION
from filestore.http.server.routes.hub.resolve import resolve
from filestore.http.server.routes.hub.write_routes import HUB_WRITE_ROUTES

_read = partial(Route, scope=Scope.READ, dialect=in_dialect)
_API = f"/api/{API_REPOSITORY}"

HUB_ROUTES: tuple[Route, ...] = (
    *HUB_WRITE_ROUTES,
    _read("GET", "/api/whoami-v2", listing.describe_account),
    _read("GET", f"{_API}/revision/{REVISION}", listing.describe),
    _read("GET", f"{_API}/tree/{REVISION}", listing.list_tree),
    _read("GET", f"{_API}/tree/{REVISION}/{{path:.*}}", listing.list_tree),
    _read("POST", f"{_API}/paths-info/{REVISION}", listing.describe_paths),
    _read("GET", f"{_API}/commits/{REVISION}", listing.list_commits),
    _read("GET", f"{_API}/refs", listing.list_refs),
    _read("GET", f"{_API}/auth-check", listing.check_access),
    _read("GET", _API, listing.describe),
    _read("GET", f"/api/{API_TYPE}", listing.list_repositories),
    _read("GET", f"/{REPOSITORY}/resolve/{REVISION}/{{path:.+}}", resolve, is_transfer=True),
    _read("GET", f"/{REPOSITORY}/raw/{REVISION}/{{path:.+}}", resolve, is_transfer=True),
)
