"""What the server knows about a kind of request: who may send it, and which function answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.core.scopes import Scope
from filestore.http.server.access import Access
from filestore.http.server.auth import Tokens, header_access
from filestore.http.server.context import RequestContext
from filestore.http.server.origin import Origin
from filestore.repository.local import LocalRepository

Answer = Callable[[RequestContext, LocalRepository], Awaitable[web.StreamResponse]]
AccessReader = Callable[[web.Request, Tokens, Origin], Awaitable[Access]]
"""Returns what a request may use. Raises Unauthorized, TokenExpired, UrlRefused, InvalidInput."""


class Route(NamedTuple):
    """A kind of request that needs a token, and the function that answers it."""

    method: str
    path: str
    answer: Answer
    scope: Scope
    """The scope that the token of a request needs."""
    is_transfer: bool = False
    """Whether the request is a part of a transfer, which may continue while the server stops."""
    continues: bool = False
    """Whether a server that is stopping takes the request on any connection: it continues an upload that began earlier, or
    asks how the server is.
    """
    can_be_signed: bool = False
    """Whether a signed URL is accepted instead of a token."""
    public_namespace: Callable[[web.Request], Awaitable[str | None]] | None = None
    """Returns the namespace in which a request needs no token, or None if it needs one."""
    is_for_prefixes: bool = True
    """Whether a token that sees only the names with a prefix may be used."""
    dialect: Callable[[Handler], Handler] | None = None
    """Returns a handler that tells errors, those of the token too, as the clients of this route understand them."""
    access: AccessReader = header_access
    """Finds what the request may use. With a signed URL it is not called."""


class Entrance(Protocol):
    """What finds out who asks, for requests that need no token."""

    async def enter(self, request: web.Request, token: str) -> Access:
        """Return what a token permits. A wrong one is counted. Raises Unauthorized, TokenExpired, TooManyGuesses."""

    async def visitor(self, request: web.Request, read: AccessReader) -> Access | None:
        """Return what `read` finds, or None if the request has nothing that permits anything. Raises TooManyGuesses."""


class PublicRoute(NamedTuple):
    """A kind of request that needs no token, and the function that answers it."""

    method: str
    path: str
    answer: Callable[[RequestContext, Entrance], Awaitable[web.StreamResponse]]
    dialect: Callable[[Handler], Handler]
    """As that of a `Route`."""
