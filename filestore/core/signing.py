"""URLs that need no token: a signature in the path permits one kind of request until it expires.

    /signed/NAMESPACE/EXPIRES/SIGNATURE/the/path

permits everyone who has the URL to request `/the/path` in that namespace, by the method that was signed (HEAD counts as
GET), until EXPIRES, in seconds since 1970. The signature is in the path, because some clients change or drop a query.

Source: RFC 2104 (HMAC), with SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from urllib.parse import quote

from filestore.errors import UrlRefused

PREFIX = "/signed/{namespace}/{expires_at}/{signature}"
"""The beginning of the pattern of a route, before the path."""

_SECONDS = re.compile(r"[1-9][0-9]{0,14}")
_SIGNED = re.compile(r"/signed/[a-z0-9][a-z0-9_-]{0,62}/[1-9][0-9]{0,14}/[0-9a-f]{64}/[!$->@-~]+\Z")


def sign(secret: bytes, purpose: str, *parts: str, expires_at: int) -> str:
    """Return 64 hexadecimal digits that can be made for these arguments only with `secret`."""
    # As JSON, so that different lists of parts are always different bytes.
    message = json.dumps([purpose, *parts, expires_at]).encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def verify(secret: bytes, signature: str, purpose: str, *parts: str, expires_at: int, now: float) -> None:
    """Raise UrlRefused if the signature is not the one that `sign` gives, or has expired."""
    expected = sign(secret, purpose, *parts, expires_at=expires_at)
    if not hmac.compare_digest(expected.encode(), signature.encode(errors="surrogatepass")):
        raise UrlRefused("its signature is not ours")
    if now >= expires_at:
        raise UrlRefused("it has expired")


def signed_path(secret: bytes, method: str, path: str, *, namespace: str, expires_at: int) -> str:
    """Return the signed path for `path`, percent-encoded. `path` is not encoded, and begins with a slash."""
    signature = sign(secret, method, namespace, path, expires_at=expires_at)
    return quote(PREFIX.format(namespace=namespace, expires_at=expires_at, signature=signature) + path)


def unsigned_path(path: str) -> str:
    """Return the path inside a signed path. Return any other path as it is."""
    _, first, *rest = path.split("/", 5)
    return f"/{rest[-1]}" if first == "signed" and len(rest) == 4 else path


def is_signed_path(path: str) -> bool:
    """Return whether a path has the form of a signed path. The signature is not checked."""
    return _SIGNED.match(path) is not None


def verify_path(secret: bytes, method: str, path: str, *, namespace: str, expires_at: str, signature: str, now: float) -> None:
    """Raise UrlRefused unless `signed_path` gave these values for a request of `path` by `method`."""
    # Each number has only one form, so that only the URL that was signed is accepted.
    if not _SECONDS.fullmatch(expires_at):
        raise UrlRefused("its signature is not ours")
    purpose = "GET" if method == "HEAD" else method
    verify(secret, signature, purpose, namespace, path, expires_at=int(expires_at), now=now)
