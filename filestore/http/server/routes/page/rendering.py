"""Make pages of templates. All values are escaped; the pages permit no code and no style but the files of this server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from filestore.core.scopes import Scope
from filestore.http.server.access import Access
from filestore.http.server.context import RequestContext
from filestore.http.server.request_record import record_of
from filestore.http.server.routes.page import formats, urls
from filestore.http.server.routes.page.assets import asset_url
from filestore.system.threads import in_cpu_thread

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
PAGE_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; worker-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not "no-referrer": with it, browsers do not name the origin of a form.
    "Referrer-Policy": "same-origin",
    "Vary": "Cookie, Authorization",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What each page says to the browser. The first one keeps pages out of all caches: each is for one viewer."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page, and what they may do."""

    namespace: str
    label: str
    """What the token is for, or its id."""
    scope: str
    prefix: str
    can_write: bool
    can_delete: bool
    is_admin: bool

    @classmethod
    def of(cls, access: Access) -> Viewer:
        """Return the viewer that has an access."""
        scope = access.scope
        return cls(
            access.namespace,
            access.label or access.token_id,
            str(scope),
            access.prefix,
            scope.permits(Scope.WRITE),
            scope.permits(Scope.DELETE),
            # A token with a prefix administers nothing: `Route.is_for_prefixes`.
            scope.permits(Scope.ADMIN) and not access.prefix,
        )


async def render(
    context: RequestContext, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: object
) -> web.Response:
    """Answer with a page. `template` is the name of a file in `templates`, and `values` are what it shows.

    It is made in a thread. Each template has `viewer` besides: a `Viewer`, or None without a session.
    """
    return await render_for(context.request, template, status=status, headers=headers, **values)


async def render_for(
    request: web.Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: object
) -> web.Response:
    """Answer with a page, as `render`, without a context."""
    access = record_of(request).access
    viewer = None if access is None else Viewer.of(access)
    path = own_path(request.path)
    body = await in_cpu_thread(_rendered, template, {"viewer": viewer, "path": path, **values})
    return web.Response(
        status=status, body=body, content_type="text/html", charset="utf-8", headers={**PAGE_HEADERS, **(headers or {})}
    )


def own_path(path: str) -> str:
    """Return the path of a request with one slash at its beginning. Two would name another host."""
    return "/" + path.lstrip("/")


async def ask_again(request: web.Request) -> web.Response | None:
    """Answer a request without a session that another site caused with a page that sends it again; return None for others.

    Who follows a link of another site may be signed in, but the browser sends the cookie only from a page of this server.
    """
    if request.method not in {"GET", "HEAD"} or request.headers.get("Sec-Fetch-Site") not in {"cross-site", "same-site"}:
        return None
    return await render_for(request, "again.html", target=own_path(request.path_qs))


def see_other(location: str) -> web.Response:
    """Send the browser to another page of this server. `location` is a path with a query, percent-encoded."""
    return web.Response(status=303, headers={**PAGE_HEADERS, "Location": location})


def _rendered(template: str, values: Mapping[str, object]) -> bytes:
    return _environment().get_template(template).render(values).encode()


@cache
def _environment() -> Environment:
    # Not at the start of a server: it takes 50 ms, and few servers show pages.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {"size": formats.size, "count": formats.count, "moment": formats.moment, "percent": formats.percent}
    environment.globals.update(
        static=asset_url,
        version=version("model-filestore"),
        page_url=urls.page_url,
        name_url=urls.name_url,
        file_url=urls.file_url,
    )
    return environment
