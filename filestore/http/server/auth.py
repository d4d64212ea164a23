"""Check bearer tokens (RFC 6750). The server knows tokens only by their digests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from filestore.core.digest import Digest, token_digest
from filestore.errors import Unauthorized
from filestore.repository.index.protocol import Index

REMEMBER_SECONDS = 2.0
"""How long a process may still accept a token after it was removed."""
CHALLENGE = 'Bearer realm="filestore"'


class _KnownToken(NamedTuple):
    namespace: str
    until: float


class Tokens:
    """Find the namespace of a token: first in `tokens`, then in the index if there is one.

    `tokens` are valid until this process ends. Only accepted tokens of the index are remembered. So invalid tokens
    cannot fill the memory, and a new token works at once. Tokens are compared as digests, so the duration of a
    comparison says nothing about a token.
    """

    def __init__(self, index: Index | None, tokens: Mapping[Digest, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._tokens = dict(tokens)
        self._clock = clock
        self._known: dict[Digest, _KnownToken] = {}

    async def namespace(self, authorization: str | None) -> str:
        """Return the namespace of the token in an Authorization header. Raises Unauthorized."""
        digest = _digest(authorization)
        namespace = self._tokens.get(digest) or await self._ask(digest)
        if namespace is None:
            raise Unauthorized("the server")
        return namespace

    async def namespaces(self) -> frozenset[str]:
        """Return the namespaces that have a valid token."""
        rows = [] if self._index is None else await self._index.tokens()
        return frozenset((*self._tokens.values(), *(row.namespace for row in rows)))

    async def _ask(self, digest: Digest) -> str | None:
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known.until:
            return known.namespace
        namespace = None if self._index is None else await self._index.token_namespace(digest)
        if namespace is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = _KnownToken(namespace, now + REMEMBER_SECONDS)
        return namespace


def _digest(authorization: str | None) -> Digest:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    # A Pipeline SDK client without a token sends the word None.
    if scheme.lower() != "bearer" or token in {"", "None"}:
        raise Unauthorized("the server")
    try:
        return token_digest(token)
    except UnicodeEncodeError:
        raise Unauthorized("the server") from None
