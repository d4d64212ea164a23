"""Check JSON Web Tokens (RFC 7519), which another party signs, and find out what their claims permit.

A token is accepted if it has a signature of a known key, names this server as its audience, and has not expired. The
signature is checked once: an accepted token is remembered by its digest until it expires, or until a key or a rule
changes.

Every process must know whether a signed URL is still valid that a token asked for in another process. So the issuer of
such a URL does not stand for the token. It stands for what every process knows: the key, the rule and the namespace.
The URL ends no later than the token.

Source: RFC 8725 (best current practices for JSON Web Tokens).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filestore.core.digest import Digest, token_digest
from filestore.core.signing import SigningKeys
from filestore.errors import InvalidContent, InvalidSetting, MissingPackage, TokenExpired, Unauthorized
from filestore.http.server.access import Access
from filestore.http.server.jwt_grants import ClaimNames, Grants, Rules, parse_rules
from filestore.http.server.jwt_keys import PublicKey, find_key, parse_keys
from filestore.http.server.jwt_sources import FetchedKeys, WatchedFile, read_limited
from filestore.http.server.rarely import Rarely
from filestore.system.threads import work_beside

logger = logging.getLogger("filestore.access")

TOKEN_LIMIT = 8192
"""The most characters of a token."""
REMEMBERED_LIMIT = 4096
"""How many accepted tokens a process remembers. The one that was used longest ago is forgotten first."""
LEEWAY_SECONDS = 60
"""How far the clock of the signer may be ahead of ours. A token that has expired is refused at once."""
CHECK_SECONDS = 0.5
"""The time between two looks at the files of keys and rules."""
LABEL_LIMIT = 100
NAMESPACES_LIMIT = 1024
"""For how many namespaces the valid issuers are remembered."""

_ID_DIGITS = 12
_FORM = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){2}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtOptions:
    """Which JSON Web Tokens a server accepts."""

    keys: Path | str
    """The JWKS: a file, or a URL."""
    issuer: str
    audience: str
    rules: Path | None = None
    """A file of rules (`jwt_grants`). Without one, the claims that are named below count."""
    namespace_claim: str = "filestore_namespace"
    scope_claim: str = "scope"
    prefix_claim: str | None = None


def check_options(options: JwtOptions) -> None:
    """Raise MissingPackage or InvalidSetting if tokens cannot be checked with these options. A URL is not fetched. Blocks."""
    try:
        import cryptography  # noqa: F401, PLC0415  # an extra
        import jwt  # noqa: F401, PLC0415  # the same
    except ImportError:
        raise MissingPackage("PyJWT", "jwt_keys", "jwt") from None
    files: list[tuple[str, Path | None, Callable[[bytes], object]]] = [("jwt_rules", options.rules, parse_rules)]
    if isinstance(options.keys, Path):
        files.append(("jwt_keys", options.keys, parse_keys))
    for setting, path, parse in files:
        try:
            if path is not None:
                parse(read_limited(path))
        except OSError as error:
            raise InvalidSetting(setting, f"{path}: {error.strerror or error}") from None
        except InvalidContent as error:
            raise InvalidSetting(setting, f"{path}: {error}") from None


def has_form(token: str) -> bool:
    """Return whether a token has the form of a JSON Web Token. No token that filestore makes has it."""
    return _FORM.fullmatch(token) is not None


class JwtTokens:
    """The JSON Web Tokens that one server process accepts."""

    def __init__(self, options: JwtOptions, *, now: Callable[[], float] = time.time, keys: FetchedKeys | None = None) -> None:
        """`now` returns seconds since 1970. `keys` takes the place of those that `options` name."""
        self._options = options
        self._now = now
        self._keys: WatchedFile[tuple[PublicKey, ...]] | FetchedKeys
        if keys is not None:
            self._keys = keys
        elif isinstance(options.keys, Path):
            self._keys = WatchedFile(options.keys, parse_keys, empty=())
        else:
            self._keys = FetchedKeys(options.keys)
        self._rules = None if options.rules is None else WatchedFile(options.rules, parse_rules, empty=Rules(()))
        self._claims = ClaimNames(options.namespace_claim, options.scope_claim, options.prefix_claim)
        self._known: OrderedDict[Digest, Access] = OrderedDict()
        """The accepted tokens."""
        self._issuers: dict[str, frozenset[str]] = {}
        """The issuers of each namespace that are valid now."""
        self._known_by: tuple[object, object] = (None, None)
        """The keys and the grants by which both were found."""
        self._refusals: dict[str, Rarely] = {}
        """Why tokens were refused. The reasons are few, because none repeats what a client sent."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep keys and rules up to date during the block."""
        await self._look()
        fetching = [self._keys.run()] if isinstance(self._keys, FetchedKeys) else []
        async with work_beside(self._keep_looking(), *fetching):
            yield

    async def access(self, token: str, digest: Digest, signing: SigningKeys) -> Access:
        """Return what a token permits. Raises Unauthorized, and TokenExpired for one that is right but for its time."""
        self._forget_what_changed()
        access = self._known.get(digest)
        try:
            if access is None:
                access = await self._checked(token, signing)
        except InvalidContent as error:
            self._log_refusal(str(error))
            raise Unauthorized("the server") from None
        if access.expires_at is None or self._now() >= access.expires_at:
            self._known.pop(digest, None)
            self._log_refusal("it has expired")
            raise TokenExpired("the server")
        self._known[digest] = access
        self._known.move_to_end(digest)
        if len(self._known) > REMEMBERED_LIMIT:
            self._known.popitem(last=False)
        return access

    def is_valid(self, access: Access, signing: SigningKeys) -> bool:
        """Return whether a token gave an access by a key and a rule that are valid now, and has not expired."""
        self._forget_what_changed()
        if access.expires_at is not None and self._now() >= access.expires_at:
            return False
        issuers = self._issuers.get(access.namespace)
        if issuers is None:
            sources = self._grants.sources(access.namespace)
            issuers = frozenset(_issuer(signing, key, source, access.namespace) for key in self._keys.value for source in sources)
            if len(self._issuers) >= NAMESPACES_LIMIT:
                self._issuers.clear()
            self._issuers[access.namespace] = issuers
        return access.issuer in issuers

    def may_serve(self, namespace: str) -> bool:
        """Return whether there can be a token for a namespace."""
        return bool(self._grants.sources(namespace))

    @property
    def _grants(self) -> Grants:
        return self._claims if self._rules is None else self._rules.value

    def _forget_what_changed(self) -> None:
        found_by = (self._keys.value, self._grants)
        if found_by[0] is not self._known_by[0] or found_by[1] is not self._known_by[1]:
            self._known_by = found_by
            self._known.clear()
            self._issuers.clear()

    async def _checked(self, token: str, signing: SigningKeys) -> Access:
        """Return what a token permits whose signature is checked here. Its expiry is not. Raises InvalidContent."""
        if len(token) > TOKEN_LIMIT:
            raise InvalidContent(f"it has more than {TOKEN_LIMIT} characters")
        key = await self._key_for(_header(token))
        claims = self._verified(token, key)
        self._check_times(claims)
        grant = self._grants.find(claims)
        subject = claims.get("sub")
        named = f"{claims['iss']}\n{subject}" if subject else token
        return Access(
            grant.namespace,
            _issuer(signing, key, grant.source, grant.namespace),
            scope=grant.scope,
            prefix=grant.prefix,
            token_id=f"jwt:{str(token_digest(named))[:_ID_DIGITS]}",
            label=_printable(subject),
            expires_at=math.floor(claims["exp"]),
        )

    async def _key_for(self, header: Mapping[str, Any]) -> PublicKey:
        key_id, algorithm = header.get("kid"), header.get("alg")
        key = find_key(self._keys.value, key_id, algorithm)
        if key is None and isinstance(self._keys, FetchedKeys):
            await self._keys.ask()
            key = find_key(self._keys.value, key_id, algorithm)
        if key is None:
            raise InvalidContent("no key with its id is known, or its algorithm does not fit that key")
        return key

    def _verified(self, token: str, key: PublicKey) -> dict[str, Any]:
        """Return the claims of a token that `key` has signed for this server. Raises InvalidContent."""
        import jwt  # noqa: PLC0415  # an extra

        options = self._options
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=options.audience,
                issuer=options.issuer,
                # The times are checked below, by one clock.
                options={"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except jwt.InvalidAudienceError:
            raise InvalidContent("it is for another audience") from None
        except jwt.InvalidIssuerError:
            raise InvalidContent("it has another issuer") from None
        except jwt.InvalidSignatureError:
            raise InvalidContent("its signature is wrong") from None
        except jwt.MissingRequiredClaimError as error:
            raise InvalidContent(f"its claim {error.claim!r} is missing") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise InvalidContent("it is malformed") from None
        if not isinstance(claims, dict) or claims["iss"] != options.issuer:
            raise InvalidContent("it has another issuer")
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
                raise InvalidContent(f"its claim {name!r} is not a time")
        for name in ("nbf", "iat"):
            if claims.get(name, 0) > self._now() + LEEWAY_SECONDS:
                raise InvalidContent("it is not valid yet")

    def _log_refusal(self, reason: str) -> None:
        refusals = self._refusals.setdefault(reason, Rarely(clock=self._now))
        if refusals.count():
            logger.info("a JSON Web Token was refused: %s; for a minute, this is not logged again", reason)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        for watched in (self._keys, self._rules):
            if isinstance(watched, WatchedFile):
                await watched.look()


def _issuer(signing: SigningKeys, key: PublicKey, source: str, namespace: str) -> str:
    # No token has a space, so no token has this digest.
    return signing.issuer(token_digest(f"jwt {key.thumbprint} {source} {namespace}"))


def _header(token: str) -> Mapping[str, Any]:
    """Return the header of a token. Nothing in it is to be trusted. Raises InvalidContent."""
    encoded = token.partition(".")[0]
    try:
        header = json.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("kid"), str | None):
        raise InvalidContent("it is malformed")
    # Both change what the signature is about. Source: RFC 7515, section 4.1.11; RFC 7797.
    if "crit" in header or "b64" in header:
        raise InvalidContent("it has an extension that is not known here")
    return header


def _printable(subject: object) -> str:
    text = subject[:LABEL_LIMIT] if isinstance(subject, str) else ""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
