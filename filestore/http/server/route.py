"""What the server knows about a kind of request: who may send it, and which function answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.core.scopes import Scope
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository

Answer = Callable[[RequestContext, LocalRepository], Awaitable[web.StreamResponse]]


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
