"""Make and check signed URLs. A signed URL needs no token: the signature in its path permits one kind of request.

    /signed/NAMESPACE/EXPIRES/SIGNATURE/the/path

With this URL, everyone may request `/the/path` in that namespace until the time EXPIRES, in seconds since 1970. Only
the HTTP method that was signed is permitted. A URL for GET also permits HEAD. The signature is in the path and not in
the query, because some clients change or remove the query. It has 64 hexadecimal digits:

    KEY       8    the id of the signing key
    ISSUER   16    the issuer: it stands for the token with which the URL was asked for, and does not tell that token
    MAC      40    the first 160 bits of HMAC-SHA256 over everything that is signed, the key and the issuer

Source: RFC 2104 (HMAC), with SHA-256; its section 5 says how short a MAC may be.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from urllib.parse import quote

from filestore.core.digest import Digest
from filestore.errors import UrlRefused

PREFIX = "/signed/{namespace}/{expires_at}/{signature}"
"""The beginning of a signed path. `/the/path` follows it. Routes of the server use it as a pattern."""
NOT_OURS = "its signature is not ours"
"""The reason of UrlRefused for a URL that nobody who has a key has signed."""
NO_ISSUER = "0" * 16
"""The issuer of a URL that was not asked for with a token."""

_KEY_DIGITS, _ISSUER_DIGITS, _MAC_DIGITS = 8, 16, 40
_SECONDS = re.compile(r"[1-9][0-9]{0,14}")
_SIGNATURE = re.compile(r"(?P<key>[0-9a-f]{8})(?P<issuer>[0-9a-f]{16})(?P<mac>[0-9a-f]{40})")
_SIGNED = re.compile(r"/signed/[a-z0-9][a-z0-9_-]{0,62}/[1-9][0-9]{0,14}/[0-9a-f]{64}/[!$->@-~]+\Z")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs URLs."""

    secret: bytes = field(repr=False)
    made_at: int
    """When it was made, in seconds since 1970. 0 for the first key of a repository."""

    @property
    def id(self) -> str:
        """8 hexadecimal digits that name the key in a URL, and do not tell it."""
        return _mac(self.secret, "id")[:_KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys of a repository: the current one signs, and the previous one is accepted for some time."""

    secret: bytes = field(repr=False)
    """The secret of the repository, which never changes. Issuers depend on it, so they outlive a key."""
    current: SigningKey
    previous: SigningKey | None = None
    previous_until: int = 0
    """Until when URLs of the previous key are accepted, in seconds since 1970."""

    @classmethod
    def first(cls, secret: bytes) -> SigningKeys:
        """Return the keys of a repository whose key was never changed."""
        return cls(secret, SigningKey(bytes.fromhex(_mac(secret, "the first signing key")), 0))

    def rotated(self, new_secret: bytes, *, now: int, until: int) -> SigningKeys:
        """Return the keys after a rotation. URLs of the key that is current now are accepted until the time `until`."""
        previous = self.current if until > now else None
        return SigningKeys(self.secret, SigningKey(new_secret, now), previous, until if previous is not None else 0)

    def find(self, key_id: str, *, now: float) -> SigningKey | None:
        """Return the accepted key with this id, or None."""
        if key_id == self.current.id:
            return self.current
        if self.previous is not None and key_id == self.previous.id and now < self.previous_until:
            return self.previous
        return None

    def issuer(self, token_digest: Digest) -> str:
        """Return the issuer of the URLs that a token asks for. It does not tell the token or its digest."""
        return _mac(self.secret, "issuer", str(token_digest))[:_ISSUER_DIGITS]


def sign(secret: bytes, purpose: str, *parts: str, expires_at: int) -> str:
    """Return the signature of the arguments: 64 hexadecimal digits. Nobody can compute it without `secret`."""
    return _mac(secret, purpose, *parts, expires_at)


def signed_path(keys: SigningKeys, method: str, path: str, *, namespace: str, expires_at: int, issuer: str = NO_ISSUER) -> str:
    """Return the signed path for `path`. The result is percent-encoded; `path` must not be, and begins with a slash."""
    signature = path_signature(keys, method, path, namespace=namespace, expires_at=expires_at, issuer=issuer)
    return quote(PREFIX.format(namespace=namespace, expires_at=expires_at, signature=signature) + path)


def path_signature(keys: SigningKeys, method: str, path: str, *, namespace: str, expires_at: int, issuer: str) -> str:
    """Return the signature that `verify_path` accepts for `path`, `method` and the other arguments."""
    return _signature(keys.current, issuer, method, namespace, path, expires_at=expires_at)


def unsigned_path(path: str) -> str:
    """Return the path inside a signed path. Any other path is returned unchanged."""
    _, first, *rest = path.split("/", 5)
    return f"/{rest[-1]}" if first == "signed" and len(rest) == 4 else path


def is_signed_path(path: str) -> bool:
    """Return whether a path has the form of a signed path. The signature is not checked."""
    return _SIGNED.match(path) is not None


def key_id_of(signature: str) -> str:
    """Return the id of the key that a signature names. It is empty if the signature has not the form of one."""
    return signature[:_KEY_DIGITS] if _SIGNATURE.fullmatch(signature) else ""


def verify_path(keys: SigningKeys, method: str, path: str, *, namespace: str, expires_at: str, signature: str, now: float) -> str:
    """Return the issuer of a signed path.

    Raises UrlRefused unless `signed_path` made this signature for `path` and `method`, and it has not expired.
    """
    found = _SIGNATURE.fullmatch(signature)
    key = None if found is None else keys.find(found["key"], now=now)
    # Each number has only one form, so that only the URL that was signed is accepted.
    if found is None or key is None or not _SECONDS.fullmatch(expires_at):
        raise UrlRefused(NOT_OURS)
    purpose = "GET" if method == "HEAD" else method
    expected = _signature(key, found["issuer"], purpose, namespace, path, expires_at=int(expires_at))
    if not hmac.compare_digest(expected, signature):
        raise UrlRefused(NOT_OURS)
    if now >= int(expires_at):
        raise UrlRefused("it has expired")
    return found["issuer"]


def _signature(key: SigningKey, issuer: str, purpose: str, *parts: str, expires_at: int) -> str:
    return f"{key.id}{issuer}{_mac(key.secret, purpose, *parts, expires_at, key.id, issuer)[:_MAC_DIGITS]}"


def _mac(secret: bytes, *parts: str | int) -> str:
    # As JSON, so that different lists of parts are always different bytes.
    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()
