"""Sign URLs by which objects can be read, as obstore does, in a fifth of its time.

obstore signs the first of many URLs. The others differ from it in the key alone, so whatever obstore knows of the store (the
host, the place of the bucket, the region) is taken from the first one. If its signature cannot be made here, as with the
credentials of a machine, which only obstore has, obstore signs all.

Source: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)" of the Amazon S3 API reference.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

if TYPE_CHECKING:
    from obstore.store import S3Credential

_UNCHANGED = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""Keys, each after a slash, that a URL has as they are."""
_SIGNATURE = "&X-Amz-Signature="


class Secret(NamedTuple):
    """Credentials that are known here."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Secret({self.access_key!r}, ...)"


class NotedCredentials:
    """A source of credentials for obstore, which remembers what obstore has. obstore calls this object."""

    def __init__(self, source: Callable[[], S3Credential]) -> None:
        self._source = source
        self._secret: Secret | None = None

    def __call__(self) -> S3Credential:
        """Return what the source has. Blocks, and raises what the source raises."""
        found = self._source()
        self._secret = Secret(found["access_key_id"], found["secret_access_key"])
        return found

    def secret(self) -> Secret | None:
        """Return what obstore has got last."""
        return self._secret


def environment_secret(environ: Mapping[str, str]) -> Secret | None:
    """Return the credentials that obstore finds in the environment, if they are complete."""
    access_key, secret_key = (environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return Secret(access_key, secret_key) if access_key and secret_key else None


class UrlSigner:
    """Makes URLs that differ from one that obstore has signed in their keys."""

    def __init__(self, secret: Callable[[], Secret | None]) -> None:
        """`secret` returns what obstore has signed with, or None if it is not known here."""
        self._secret = secret

    def urls(self, first: str, keys: Sequence[str]) -> list[str] | None:
        """Return a URL for each of `keys`. obstore has just signed `first`, for the first one.

        Return None if obstore must sign them, because the first one would be another here.
        """
        secret = self._secret()
        path, _, query = first.partition("?")
        if secret is None or not path.endswith(f"/{keys[0]}") or not _UNCHANGED.fullmatch(f"/{'/'.join(keys)}"):
            return None
        start = path.removesuffix(keys[0])
        unsigned = query.partition(_SIGNATURE)[0]
        end = f"?{unsigned}{_SIGNATURE}"
        values = dict(parse_qsl(unsigned))
        parts = urlsplit(start)
        # In the order of their names, and with %20 for a space. The URL of obstore has them in another order, and a +.
        asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(values.items()))
        before = f"GET\n{parts.path}"
        after = f"\n{asked}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        begun = _BegunSignature(secret, values.get("X-Amz-Credential", ""), values.get("X-Amz-Date", ""))
        if f"{start}{keys[0]}{end}{begun.of(f'{before}{keys[0]}{after}')}" != first:
            return None
        return [f"{start}{key}{end}{begun.of(f'{before}{key}{after}')}" for key in keys]


class _BegunSignature:
    """The signature of a text that lacks only the digest of the request.

    It is an HMAC whose two hashes have begun: `hmac.HMAC.copy` takes a microsecond more for each URL.
    """

    def __init__(self, secret: Secret, credential: str, time: str) -> None:
        scope = credential.partition("/")[2]
        key = f"AWS4{secret.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block) + f"AWS4-HMAC-SHA256\n{time}\n{scope}\n".encode())
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def of(self, request: str) -> str:
        """Return the signature of a canonical request."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(sha256(request.encode()).hexdigest().encode())
        outer.update(inner.digest())
        return outer.hexdigest()
