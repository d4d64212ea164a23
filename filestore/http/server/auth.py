"""Check bearer tokens (RFC 6750) and signed URLs. The server knows tokens only by their digests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from filestore.core.digest import Digest, token_digest
from filestore.core.signing import NO_ISSUER, SigningKeys, key_id_of, verify_path
from filestore.errors import Unauthorized, UrlRefused
from filestore.http.server.access import Access
from filestore.repository.given_tokens import given_tokens
from filestore.repository.index.protocol import Index

REMEMBER_SECONDS = 1.0
"""How long a process may still accept a token after it was removed."""
TOKEN_ID_LENGTH = 16
"""The digits of the digest of a token by which logs and lists name it."""
CHALLENGE = 'Bearer realm="filestore"'
REMOVED = "the token with which it was asked for was removed"


class _KnownToken(NamedTuple):
    namespace: str
    until: float


class Tokens:
    """Find out what the token of a request, or a signed URL, permits: first by `given`, then by the index.

    `given` are the tokens of this run. They are valid until this process ends, or until they are removed. With
    `knows_index`, the tokens of the index are valid too. Only accepted tokens of the index are remembered. So invalid
    tokens cannot fill the memory, and a new token works at once. Tokens are compared as digests, so the duration of a
    comparison says nothing about a token.
    """

    def __init__(
        self,
        index: Index,
        given: Mapping[Digest, str],
        *,
        knows_index: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._given = dict(given)
        self._knows_index = knows_index
        self._clock = clock
        self._removed: set[Digest] = set()
        self._known: dict[Digest, _KnownToken] = {}
        self._issuers: dict[Digest, str] = {}
        """The issuers of all valid tokens."""
        self._namespaces: dict[str, str] = {}
        """The namespace of each issuer."""
        self._seen: set[str] = set()
        """The namespaces that had a valid token since this process began."""
        self._kept: set[str] = set()
        """The namespaces that have a token in the index, or one that any server of the folder was given."""
        self._keys: SigningKeys | None = None
        self._refreshing = asyncio.Lock()

    async def keys(self) -> SigningKeys:
        """Return the keys that sign URLs, as they were about a second ago."""
        if self._keys is None:
            self._keys = await self._index.signing_keys()
        return self._keys

    async def access(self, authorization: str | None) -> Access:
        """Return what the token in an Authorization header permits. Raises Unauthorized."""
        digest = _digest(authorization)
        is_given = digest in self._given and digest not in self._removed
        namespace = self._given[digest] if is_given else await self._ask(digest)
        if namespace is None:
            raise Unauthorized("the server")
        issuer = self._issuers.get(digest) or (await self.keys()).issuer(digest)
        # `is_valid` must know a token that is newer than the last `refresh`.
        self._issuers[digest] = issuer
        self._namespaces[issuer] = namespace
        self._seen.add(namespace)
        return Access(namespace, issuer, token_id=str(Digest(digest))[:TOKEN_ID_LENGTH])

    async def signed(self, method: str, path: str, *, namespace: str, expires_at: str, signature: str) -> Access:
        """Return what a signed URL permits. `path` is the path inside it. Raises UrlRefused."""
        keys = await self.keys()
        if keys.find(key_id_of(signature), now=time.time()) is None:
            # The key may be a new one.
            keys = self._keys = await self._index.signing_keys()
        signed = {"namespace": namespace, "expires_at": expires_at, "signature": signature}
        issuer = verify_path(keys, method, path, **signed, now=time.time())
        access = Access(namespace, issuer, is_signed=True)
        if not self.is_valid(access):
            await self.refresh()
        if not self.is_valid(access):
            raise UrlRefused(REMOVED)
        return access

    def is_valid(self, access: Access) -> bool:
        """Return whether the token behind an access is valid, as far as the last `refresh` knows."""
        return access.issuer == NO_ISSUER or self._namespaces.get(access.issuer) == access.namespace

    async def refresh(self) -> None:
        """Read the tokens and the keys again. Raises StorageError, IndexDamaged, Busy."""
        async with self._refreshing:
            keys = await self._index.signing_keys()
            given = await given_tokens(self._index)
            rows = await self._index.tokens()
            removed = {token.digest for token in given if token.is_removed}
            valid = {row.digest: row.namespace for row in rows} if self._knows_index else {}
            self._known = {digest: known for digest, known in self._known.items() if digest in valid}
            valid |= {digest: namespace for digest, namespace in self._given.items() if digest not in removed}
            self._keys, self._removed = keys, removed
            self._issuers = {digest: self._issuers.get(digest) or keys.issuer(digest) for digest in valid}
            self._namespaces = {self._issuers[digest]: namespace for digest, namespace in valid.items()}
            self._seen.update(valid.values())
            self._kept = {row.namespace for row in rows} | {token.namespace for token in given if not token.is_removed}

    async def revoked_namespaces(self) -> frozenset[str]:
        """Return the namespaces that had a valid token here, and have none any more at any server of the folder.

        Raises StorageError, IndexDamaged, Busy.
        """
        await self.refresh()
        return frozenset(self._seen.difference(self._kept, self._namespaces.values()))

    async def _ask(self, digest: Digest) -> str | None:
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known.until:
            return known.namespace
        row = await self._index.token(digest) if self._knows_index else None
        if row is None:
            self._known.pop(digest, None)
            return None
        self._known[digest] = _KnownToken(row.namespace, now + REMEMBER_SECONDS)
        return row.namespace


def gives_token(authorization: str | None) -> bool:
    """Return whether a request has a token, right or wrong. A Pipeline SDK client without a token sends the word None."""
    return _token(authorization) is not None


def _digest(authorization: str | None) -> Digest:
    token = _token(authorization)
    if token is None:
        raise Unauthorized("the server")
    return token_digest(token)


def _token(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    return None if scheme.lower() != "bearer" or token in {"", "None"} else token
