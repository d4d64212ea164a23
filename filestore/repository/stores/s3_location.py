"""Where an object store is: `s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path_style=false&public_endpoint=URL`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from filestore.errors import InvalidUrl

S3_SCHEME = "s3"
_FORM = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._=-]{1,255}\Z")
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}\Z")
_PARAMETERS = ("endpoint", "region", "path_style", "public_endpoint")
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and the prefix of all keys of one repository in it. None of it is a secret."""

    bucket: str
    prefix: str = ""
    """Without a slash at its ends."""
    endpoint: str | None = None
    """The URL of the server. None means Amazon S3, or what AWS_ENDPOINT_URL names."""
    region: str | None = None
    """None means what AWS_REGION names, or us-east-1."""
    path_style: bool = True
    """Whether the bucket is in the path of a request, and not in its host."""
    public_endpoint: str | None = None
    """The URL by which clients reach the same server, in the URLs that are signed for them. None means `endpoint`."""

    def __str__(self) -> str:
        """Return the location for messages: without the query."""
        return f"{S3_SCHEME}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def url(self) -> str:
        """The location in one form, by which two of them can be compared. `parse_location` reads it again."""
        given = {
            "endpoint": self.endpoint,
            "region": self.region,
            "path_style": None if self.path_style else "false",
            "public_endpoint": self.public_endpoint,
        }
        query = urlencode({name: value for name, value in given.items() if value is not None}, safe=":/", quote_via=quote)
        return f"{self}?{query}" if query else str(self)

    @property
    def is_encrypted(self) -> bool:
        """Whether requests go through TLS."""
        return self.endpoint is None or self.endpoint.startswith("https://")


def parse_location(url: str) -> S3Location:
    """Return the location that `url` names. Raises InvalidUrl, which never shows a password."""
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise InvalidUrl(_shown(url), f"the URL of an object store looks like {_FORM}") from None
    if parts.scheme != S3_SCHEME or parts.fragment:
        raise InvalidUrl(_shown(url), f"the URL of an object store looks like {_FORM}")
    if "@" in parts.netloc:
        reason = "it has a key before the bucket; give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by a file"
        raise InvalidUrl(_shown(url), reason)
    if not _BUCKET.match(parts.netloc):
        raise InvalidUrl(_shown(url), f"it names no bucket; it looks like {_FORM}")
    values = dict(given)
    unknown = sorted(values.keys() - set(_PARAMETERS))
    if unknown or len(values) < len(given):
        raise InvalidUrl(_shown(url), f"after the ? it may have {', '.join(_PARAMETERS)}, each once")
    region = values.get("region")
    if region is not None and not _REGION.match(region):
        raise InvalidUrl(_shown(url), "its region is not one")
    path_style = _BOOLEANS.get(values.get("path_style", "true"))
    if path_style is None:
        raise InvalidUrl(_shown(url), "its path_style is neither true nor false")
    endpoint, public_endpoint = (_endpoint(url, values.get(name)) for name in ("endpoint", "public_endpoint"))
    return S3Location(parts.netloc, _prefix(url, parts.path), endpoint, region, path_style, public_endpoint)


def _prefix(url: str, path: str) -> str:
    prefix = path.strip("/")
    segments = prefix.split("/") if prefix else []
    if not all(_SEGMENT.match(segment) and segment.strip(".") for segment in segments):
        raise InvalidUrl(_shown(url), "its prefix is made of letters, digits and . _ = - with one slash between two parts")
    return prefix


def _endpoint(url: str, endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    reason = "its endpoint is the URL of a server, such as https://HOST:PORT, without a user and without a path"
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise InvalidUrl(_shown(url), reason) from None
    is_plain = parts.scheme in {"http", "https"} and "@" not in parts.netloc and parts.path in {"", "/"}
    if not has_host or not is_plain or parts.query or parts.fragment:
        raise InvalidUrl(_shown(url), reason)
    return f"{parts.scheme}://{parts.netloc}"


def _shown(url: str) -> str:
    """Return a URL without what may be a password: its user and its query."""
    scheme, separator, rest = url.partition("://")
    host_and_path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}{separator}{host_and_path.rpartition('@')[2]}"
