"""Check bearer tokens (RFC 6750) and signed URLs. The server knows tokens only by their digests."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from aiohttp import web

from filestore.core.digest import Digest, token_digest
from filestore.core.names import UPSTREAM_NAMESPACE
from filestore.core.scopes import Scope
from filestore.core.signing import NO_ISSUER, SigningKeys, key_id_of, verify_path
from filestore.errors import TokenExpired, Unauthorized, UrlRefused
from filestore.http.server.access import Access
from filestore.http.server.jwt_tokens import JwtTokens, has_form
from filestore.http.server.origin import Origin
from filestore.repository.given_tokens import given_tokens
from filestore.repository.index.protocol import USED_MICROSECONDS, Index, TokenRow

REMEMBER_SECONDS = 1.0
"""How long a process may still accept a token after it was removed."""
CHALLENGE = 'Bearer realm="filestore"'
_UPSTREAM_PART = re.compile(r"~(hf_[A-Za-z0-9]{1,500})\Z")
"""The token of the upstream, after that of this server. No token that this server makes has such an end."""
REMOVED = "it was revoked, or the token with which it was asked for was removed, or has expired"


class _KnownToken(NamedTuple):
    row: TokenRow
    until: float


class Tokens:
    """Find out what the token of a request, or a signed URL, permits: first by `given`, then by the index.

    `given` are the tokens of this run, with their namespaces. They have all scopes, and are valid until this process ends, or
    until they are removed. With `knows_index`, the tokens of the index are valid too, and one that was given as well permits
    what the index says. Only accepted tokens of the index are remembered. So invalid tokens cannot fill the memory, and a new
    token works at once. Tokens are compared as digests, so the duration of a comparison says nothing about a token.
    """

    def __init__(
        self,
        index: Index,
        given: Mapping[Digest, str],
        *,
        knows_index: bool = True,
        jwt: JwtTokens | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`now` returns the time in microseconds since 1970, by which tokens expire."""
        self._index = index
        self._given = {digest: TokenRow(digest, namespace, "", 0) for digest, namespace in given.items()}
        self._knows_index = knows_index
        self._jwt = jwt
        self._clock = clock
        self._now = now
        self._removed: set[Digest] = set()
        self._limits: dict[Digest, TokenRow] = {}
        """The rows of given tokens that are in the index too."""
        self._known: dict[Digest, _KnownToken] = {}
        self._issuers: dict[Digest, str] = {}
        """The issuers of all known tokens."""
        self._rows: dict[str, TokenRow] = {}
        """The token behind each issuer, also one that has expired."""
        self._seen: set[str] = set()
        """The namespaces that had a valid token since this process began."""
        self._kept: set[str] = set()
        """The namespaces that have a token in the index, or one that any server of the folder was given."""
        self._used: set[Digest] = set()
        """The tokens that were accepted since the last call of `take_used`."""
        self._refused: dict[str, float] = {}
        """Until when the URLs of issuers without a valid token are refused without another look at the index."""
        self._keys: SigningKeys | None = None
        self._refreshing = asyncio.Lock()

    async def keys(self) -> SigningKeys:
        """Return the keys that sign URLs, as they were about a second ago."""
        if self._keys is None:
            self._keys = await self._index.signing_keys()
        return self._keys

    async def access(self, authorization: str | None) -> Access:
        """Return what the token in an Authorization header permits. Raises Unauthorized, TokenExpired."""
        access = await self._access(authorization)
        if access.namespace == UPSTREAM_NAMESPACE:
            raise Unauthorized("the server")
        return access

    async def _access(self, authorization: str | None) -> Access:
        token = split_token(_required_token(authorization))[0]
        digest = token_digest(token)
        is_given = digest in self._given and digest not in self._removed
        if self._jwt is not None and not is_given and has_form(token):
            return await self._jwt.access(token, digest, await self.keys())
        row = self._limits.get(digest, self._given[digest]) if is_given else await self._ask(digest)
        if row is None:
            raise Unauthorized("the server")
        if row.has_expired(self._now()):
            # The client has the right token, so it may know why it is refused.
            raise TokenExpired("the server")
        issuer = self._issuers.get(digest) or (await self.keys()).issuer(digest)
        # `is_valid` must know a token that is newer than the last `refresh`.
        self._issuers[digest] = issuer
        self._rows[issuer] = row
        self._seen.add(row.namespace)
        self._used.add(digest)
        return _access(row, issuer)

    async def signed(self, method: str, path: str, *, namespace: str, expires_at: str, signature: str) -> Access:
        """Return what a signed URL permits: what its token permits now. `path` is the path inside it. Raises UrlRefused."""
        keys = await self.keys()
        if keys.find(key_id_of(signature), now=time.time()) is None:
            # The key may be a new one.
            keys = self._keys = await self._index.signing_keys()
        signed = {"namespace": namespace, "expires_at": expires_at, "signature": signature}
        issuer = verify_path(keys, method, path, **signed, now=time.time())
        access = Access(namespace, issuer, is_signed=True)
        if issuer == NO_ISSUER or (self._jwt is not None and self._jwt.is_valid(access, keys)):
            return access
        row = self._valid_row(issuer, namespace)
        if row is None and self._clock() >= self._refused.get(issuer, 0.0):
            # The token may be newer than the last look at the index.
            await self.refresh()
            row = self._valid_row(issuer, namespace)
            if row is None:
                self._refused[issuer] = self._clock() + REMEMBER_SECONDS
        if row is None:
            raise UrlRefused(REMOVED)
        return _access(row, issuer, is_signed=True)

    def is_valid(self, access: Access, *, needed: Scope = Scope.READ) -> bool:
        """Return whether the token behind an access still permits what needs the scope `needed`, as the last `refresh` knows."""
        if access.issuer == NO_ISSUER:
            return True
        if self._jwt is not None and self._keys is not None and self._jwt.is_valid(access, self._keys):
            return True
        row = self._valid_row(access.issuer, access.namespace)
        return row is not None and row.scope.permits(needed) and access.prefix.startswith(row.prefix)

    async def refresh(self) -> None:
        """Read the tokens and the keys again. Raises StorageError, IndexDamaged, Busy."""
        async with self._refreshing:
            keys = await self._index.signing_keys()
            given = await given_tokens(self._index)
            rows = await self._index.tokens()
            removed = {token.digest for token in given if token.is_removed}
            known = {row.digest: row for row in rows} if self._knows_index else {}
            self._known = {
                digest: _KnownToken(known[digest], entry.until) for digest, entry in self._known.items() if digest in known
            }
            self._limits = {digest: row for digest, row in known.items() if digest in self._given}
            known |= {digest: self._limits.get(digest, row) for digest, row in self._given.items() if digest not in removed}
            self._keys, self._removed = keys, removed
            self._refused = {issuer: until for issuer, until in self._refused.items() if self._clock() < until}
            self._issuers = {digest: self._issuers.get(digest) or keys.issuer(digest) for digest in known}
            self._rows = {self._issuers[digest]: row for digest, row in known.items()}
            self._seen.update(self._valid_namespaces(known.values()))
            self._kept = self._valid_namespaces(rows) | {token.namespace for token in given if not token.is_removed}

    async def revoked_namespaces(self) -> frozenset[str]:
        """Return the namespaces that had a valid token here, and have none any more at any server of the folder.

        Raises StorageError, IndexDamaged, Busy.
        """
        await self.refresh()
        revoked = self._seen.difference(self._kept, self._valid_namespaces(self._rows.values()))
        return frozenset(namespace for namespace in revoked if self._jwt is None or not self._jwt.may_serve(namespace))

    def take_used(self) -> list[Digest]:
        """Return the tokens of the index that were accepted since the last call, unless their time of last use is recent."""
        used, self._used = self._used, set()
        now = self._now()
        used -= self._given.keys() - self._limits.keys()
        rows = (self._rows.get(self._issuers.get(digest, "")) for digest in used)
        # A time in the future is of a clock that was wrong.
        return [
            row.digest
            for row in rows
            if row is not None and (row.used_at is None or not now - USED_MICROSECONDS <= row.used_at <= now)
        ]

    def give_back(self, used: Iterable[Digest]) -> None:
        """Let the next call of `take_used` return these tokens again."""
        self._used.update(used)

    async def _ask(self, digest: Digest) -> TokenRow | None:
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known.until:
            return known.row
        row = await self._index.token(digest) if self._knows_index else None
        if row is None:
            self._known.pop(digest, None)
            return None
        self._known[digest] = _KnownToken(row, now + REMEMBER_SECONDS)
        return row

    def _valid_row(self, issuer: str, namespace: str) -> TokenRow | None:
        row = self._rows.get(issuer)
        return None if row is None or row.namespace != namespace or row.has_expired(self._now()) else row

    def _valid_namespaces(self, rows: Iterable[TokenRow]) -> set[str]:
        now = self._now()
        return {row.namespace for row in rows if not row.has_expired(now)}


def _access(row: TokenRow, issuer: str, *, is_signed: bool = False) -> Access:
    return Access(row.namespace, issuer, is_signed, row.scope, row.prefix, row.id, row.label)


async def header_access(request: web.Request, tokens: Tokens, _: Origin) -> Access:
    """Return what the token in the header Authorization of a request permits. Raises Unauthorized, TokenExpired."""
    return await tokens.access(request.headers.get("Authorization"))


def upstream_token(authorization: str | None) -> str | None:
    """Return the token of the upstream in an Authorization header, or None."""
    return split_token(_token(authorization) or "")[1]


def split_token(text: str) -> tuple[str, str | None]:
    """Return the token of this server in what a client sends, and the token of the upstream after it, or None.

    Clients of the Hub send one text only, so both tokens may be in it: `TOKEN~hf_...`.
    """
    found = _UPSTREAM_PART.search(text)
    return (text, None) if found is None else (text[: found.start()], found[1])


def gives_token(authorization: str | None) -> bool:
    """Return whether a request has a token, right or wrong. A Pipeline SDK client without a token sends the word None."""
    return _token(authorization) is not None


def _required_token(authorization: str | None) -> str:
    token = _token(authorization)
    if token is None:
        raise Unauthorized("the server")
    return token


def _token(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    return None if scheme.lower() != "bearer" or token in {"", "None"} else token
