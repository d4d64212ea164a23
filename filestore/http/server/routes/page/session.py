"""Sessions of browsers. The cookie of a session is a signature like that of a signed URL, and not the token.

    NAMESPACE.EXPIRES.SIGNATURE.VIEWER

VIEWER is what the token permitted when the session began: its scope, prefix, id, label and end, as JSON in base64url. The
signature covers all of it, and names the issuer, so a session ends with its token, on every server of the repository. No server
remembers sessions.

A browser sends the cookie with any request to this server, also with one that another site has caused. So a session permits an
unsafe method only if the browser says that a page of this server sent the request. Source: the Fetch Metadata specification of
the W3C, and RFC 6265bis for `SameSite=Strict`, which is not enough alone: it permits other ports and hosts of the same domain.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from typing import Any

from aiohttp import web
from yarl import URL

from filestore.core.names import is_namespace
from filestore.core.scopes import Scope
from filestore.core.signing import NOT_OURS, SigningKeys, path_signature
from filestore.errors import InvalidInput, TokenExpired, Unauthorized, UrlRefused
from filestore.http.server.access import Access
from filestore.http.server.auth import Tokens, gives_token, header_access
from filestore.http.server.origin import Origin

SESSION_SECONDS = 12 * 3600
"""How long a session lasts, if its token does not end before."""
COOKIE_LIMIT = 4000
"""Characters that a cookie may have. Browsers drop one of more than 4,096, with its name and attributes."""

_METHOD = "SESSION"
"""Signed in place of an HTTP method, so that no signed URL is a session, and no session is a URL."""
_SAFE = frozenset({"GET", "HEAD"})


async def session_access(request: web.Request, tokens: Tokens, origin: Origin) -> Access:
    """Return what the session of a request permits, or its token if the header Authorization has one.

    A proxy may ask for a password of its own, which browsers then send in this header with each request.

    Raises Unauthorized without either, TokenExpired for a session that is over, UrlRefused for one that this repository never
    signed, and InvalidInput for an unsafe method that no page of this server sent.
    """
    if gives_token(request.headers.get("Authorization")):
        return await header_access(request, tokens, origin)
    cookie = request.cookies.get(cookie_name(origin.base_url(request)))
    if cookie is None:
        raise Unauthorized("the server")
    if request.method not in _SAFE:
        check_same_origin(request, origin)
    return await _access(cookie, tokens)


def check_same_origin(request: web.Request, origin: Origin) -> None:
    """Raise InvalidInput unless the browser says that a page of this server has sent the request."""
    site = request.headers.get("Sec-Fetch-Site")
    if site == "same-origin":
        return
    given, own = request.headers.get("Origin"), origin.base_url(request)
    # Browsers say the first only where a connection is encrypted or local.
    if site is None and given is not None and _origin_of(given) == _origin_of(own) is not None:
        return
    said = f"the browser names {given!r} as the place" if given else "the browser does not say that it was one"
    raise InvalidInput(
        f"only a page of this server may send this, and {said}; open {own}/ and try again. Behind a proxy, "
        "the server needs its public URL"
    )


def begin_session(access: Access, keys: SigningKeys) -> tuple[str, int]:
    """Return the cookie of a new session, and when it ends, in seconds since 1970. Raises InvalidInput if it is too long."""
    expires_at = int(time.time()) + SESSION_SECONDS
    if access.expires_at is not None:
        expires_at = min(expires_at, access.expires_at)
    viewer = {
        "scope": str(access.scope),
        "prefix": access.prefix,
        "id": access.token_id,
        "label": access.label,
        "until": access.expires_at,
    }
    text = urlsafe_b64encode(json.dumps(viewer).encode()).decode().rstrip("=")
    signature = path_signature(keys, _METHOD, text, namespace=access.namespace, expires_at=expires_at, issuer=access.issuer)
    cookie = f"{access.namespace}.{expires_at}.{signature}.{text}"
    if len(cookie) > COOKIE_LIMIT:
        raise InvalidInput("the prefix or the label of this token is too long for a session in a browser")
    return cookie, expires_at


def set_cookie(response: web.StreamResponse, base_url: str, cookie: str) -> None:
    """Let the browser keep a cookie until it is closed. An empty one ends the session."""
    is_secure = URL(base_url).scheme == "https"
    if cookie:
        response.set_cookie(cookie_name(base_url), cookie, path="/", httponly=True, samesite="Strict", secure=is_secure)
    else:
        response.del_cookie(cookie_name(base_url), path="/", httponly=True, samesite="Strict", secure=is_secure)


def cookie_name(base_url: str) -> str:
    """Return the name of the cookie. It has the port, because browsers send the cookies of a host to all of its ports.

    With TLS it begins with `__Host-`: browsers then accept it only from this host, and over TLS.
    """
    url = URL(base_url)
    return f"{'__Host-' if url.scheme == 'https' else ''}filestore-{url.port}"


async def _access(cookie: str, tokens: Tokens) -> Access:
    namespace, _, rest = cookie.partition(".")
    expires_at, _, rest = rest.partition(".")
    signature, _, text = rest.partition(".")
    signed = {"namespace": namespace, "expires_at": expires_at, "signature": signature}
    if not is_namespace(namespace):
        raise Unauthorized("the server")
    try:
        now = await tokens.signed(_METHOD, text, **signed)
    except UrlRefused as error:
        if error.args[0] == NOT_OURS:
            raise
        raise TokenExpired("the server") from None
    # The signature is ours, so the rest is what `begin_session` wrote.
    viewer: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    scope, prefix = Scope.parse(viewer["scope"]), viewer["prefix"]
    # The token may permit less than it did when the session began.
    if not prefix.startswith(now.prefix):
        raise TokenExpired("the server")
    return replace(
        now,
        is_signed=False,
        scope=min(scope, now.scope),
        prefix=prefix,
        token_id=viewer["id"],
        label=viewer["label"],
        expires_at=viewer["until"],
    )


def _origin_of(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parsed = URL(url)
    except ValueError:
        return None
    if parsed.user is not None:
        return None  # no browser names a place so
    return parsed.scheme, parsed.raw_host, parsed.port
