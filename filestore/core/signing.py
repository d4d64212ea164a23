"""Make and check signed URLs. A signed URL needs no token: the signature in its path permits one kind of request.

    /signed/NAMESPACE/EXPIRES/SIGNATURE/the/path

With this URL, everyone may request `/the/path` in that namespace until the time EXPIRES, in seconds since 1970. Only
the HTTP method that was signed is permitted. A URL for GET also permits HEAD. The signature is in the path and not in
the query, because some clients change or remove the query.

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
"""The beginning of a signed path. `/the/path` follows it. Routes of the server use it as a pattern."""

_SECONDS = re.compile(r"[1-9][0-9]{0,14}")
_SIGNED = re.compile(r"/signed/[a-z0-9][a-z0-9_-]{0,62}/[1-9][0-9]{0,14}/[0-9a-f]{64}/[!$->@-~]+\Z")


def sign(secret: bytes, purpose: str, *parts: str, expires_at: int) -> str:
    """Return the signature of the arguments: 64 hexadecimal digits. Nobody can compute it without `secret`."""
    # As JSON, so that different lists of parts are always different bytes.
    message = json.dumps([purpose, *parts, expires_at]).encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def verify(secret: bytes, signature: str, purpose: str, *parts: str, expires_at: int, now: float) -> None:
    """Raise UrlRefused if `sign` returns another signature for these arguments, or if the time `expires_at` is over."""
    expected = sign(secret, purpose, *parts, expires_at=expires_at)
    if not hmac.compare_digest(expected.encode(), signature.encode(errors="surrogatepass")):
        raise UrlRefused("its signature is not ours")
    if now >= expires_at:
        raise UrlRefused("it has expired")


def signed_path(secret: bytes, method: str, path: str, *, namespace: str, expires_at: int) -> str:
    """Return the signed path for `path`. The result is percent-encoded; `path` must not be, and begins with a slash."""
    signature = sign(secret, method, namespace, path, expires_at=expires_at)
    return quote(PREFIX.format(namespace=namespace, expires_at=expires_at, signature=signature) + path)


def unsigned_path(path: str) -> str:
    """Return the path inside a signed path. Any other path is returned unchanged."""
    _, first, *rest = path.split("/", 5)
    return f"/{rest[-1]}" if first == "signed" and len(rest) == 4 else path


def is_signed_path(path: str) -> bool:
    """Return whether a path has the form of a signed path. The signature is not checked."""
    return _SIGNED.match(path) is not None


def verify_path(secret: bytes, method: str, path: str, *, namespace: str, expires_at: str, signature: str, now: float) -> None:
    """Raise UrlRefused unless `signed_path` made this signature for `path` and `method`, and it has not expired."""
    # Each number has only one form, so that only the URL that was signed is accepted.
    if not _SECONDS.fullmatch(expires_at):
        raise UrlRefused("its signature is not ours")
    purpose = "GET" if method == "HEAD" else method
    verify(secret, signature, purpose, namespace, path, expires_at=int(expires_at), now=now)
