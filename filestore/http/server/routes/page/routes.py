"""The routes of the pages. They are not an API: `docs/pages.md` says what people find there."""

from __future__ import annotations

from functools import partial

from filestore.core.scopes import Scope
from filestore.http.server.route import PublicRoute, Route
from filestore.http.server.routes.page.actions import (
    ask_label_removal,
    ask_removal,
    make_link,
    remove_label,
    remove_version,
    set_label,
    show_label_form,
)
from filestore.http.server.routes.page.admin import show_admin
from filestore.http.server.routes.page.assets import ASSET_PATH, show_asset
from filestore.http.server.routes.page.chunks import show_chunks
from filestore.http.server.routes.page.compare import show_comparison
from filestore.http.server.routes.page.content import send_content
from filestore.http.server.routes.page.errors import as_pages, show_nothing
from filestore.http.server.routes.page.file import show_file
from filestore.http.server.routes.page.links import ask_revocation, revoke_link, show_links
from filestore.http.server.routes.page.names import show_names
from filestore.http.server.routes.page.session import session_access
from filestore.http.server.routes.page.space import show_space
from filestore.http.server.routes.page.tensors import show_tensors
from filestore.http.server.routes.page.transfers import show_transfers
from filestore.http.server.routes.page.upload import show_upload
from filestore.http.server.routes.page.versions import show_versions
from filestore.http.server.routes.page.welcome import return_to_links, return_to_start, show_welcome, sign_in, sign_out

PUBLIC_ROUTES: tuple[PublicRoute, ...] = (
    PublicRoute("GET", "/", show_welcome, as_pages),
    PublicRoute("POST", "/ui/login", sign_in, as_pages),
    PublicRoute("POST", "/ui/logout", sign_out, as_pages),
    PublicRoute("GET", "/ui/login", return_to_start, as_pages),
    PublicRoute("GET", "/ui/logout", return_to_start, as_pages),
    PublicRoute("GET", "/ui", return_to_start, as_pages),
    PublicRoute("GET", "/ui/link", return_to_links, as_pages),
    PublicRoute("GET", ASSET_PATH, show_asset, as_pages),
)

_page = partial(Route, access=session_access, dialect=as_pages)

PAGE_ROUTES: tuple[Route, ...] = (
    _page("GET", "/ui/names", show_names, Scope.READ),
    _page("GET", "/ui/name", show_versions, Scope.READ),
    _page("GET", "/ui/file", show_file, Scope.READ),
    _page("GET", "/ui/content", send_content, Scope.READ, is_transfer=True),
    _page("GET", "/ui/tensors", show_tensors, Scope.READ),
    _page("GET", "/ui/compare", show_comparison, Scope.READ),
    _page("GET", "/ui/chunks", show_chunks, Scope.READ),
    _page("GET", "/ui/space", show_space, Scope.READ),
    _page("GET", "/ui/upload", show_upload, Scope.WRITE),
    _page("GET", "/ui/transfers", show_transfers, Scope.READ),
    _page("GET", "/ui/links", show_links, Scope.READ),
    _page("GET", "/ui/label", show_label_form, Scope.WRITE),
    _page("POST", "/ui/label", set_label, Scope.WRITE),
    _page("POST", "/ui/link", make_link, Scope.WRITE),
    _page("GET", "/ui/remove", ask_removal, Scope.DELETE),
    _page("POST", "/ui/remove", remove_version, Scope.DELETE),
    _page("GET", "/ui/unlabel", ask_label_removal, Scope.DELETE),
    _page("POST", "/ui/unlabel", remove_label, Scope.DELETE),
    _page("GET", "/ui/unlink", ask_revocation, Scope.DELETE),
    _page("POST", "/ui/unlink", revoke_link, Scope.DELETE),
    _page("GET", "/ui/admin", show_admin, Scope.ADMIN, is_for_prefixes=False),
    # The last one, as it takes all paths.
    _page("GET", "/ui/{rest:.*}", show_nothing, Scope.READ),
)
