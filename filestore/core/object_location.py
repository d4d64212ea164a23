"""Where a repository past one machine is: the URLs of an object store and of a database. Nothing shows a password of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from filestore.errors import InvalidSetting, InvalidUrl

STORE_SCHEME = "s3"
INDEX_SCHEMES = ("postgresql", "postgres")
_FORM = "the URL of an object store looks like s3://BUCKET/PREFIX?endpoint=URL"


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """Where a repository past one machine is. As text, it shows no user, no password and no option."""

    store: str = field(repr=False)
    """`s3://BUCKET/PREFIX?endpoint=...`"""
    index: str = field(repr=False)
    """`postgresql://USER@HOST:PORT/DATABASE`. It may have a password."""

    def __str__(self) -> str:
        return f"{shown_url(self.store)} with the index {shown_url(self.index)}"

    @classmethod
    def of(cls, url: str, index: str | None) -> ObjectLocation:
        """Return the location of an object store and its index. Raises InvalidUrl, InvalidSetting."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise InvalidUrl(shown_url(url), _FORM) from None
        if not parts.netloc or parts.username is not None or parts.fragment:
            raise InvalidUrl(shown_url(url), _FORM)
        if index is None:
            raise InvalidUrl(
                shown_url(url), "an object store needs an index in PostgreSQL; give its URL as index", hint="give-index"
            )
        if not is_database(index):
            raise InvalidSetting("index", "the URL of a database is expected, such as postgresql://USER@HOST/DATABASE")
        return cls(url, index)


def is_object_store(url: str) -> bool:
    """Return whether `url` is that of an object store."""
    return url.lower().startswith(f"{STORE_SCHEME}://")


def is_database(url: str) -> bool:
    """Return whether `url` can be that of a database in PostgreSQL."""
    try:
        return urlsplit(url).scheme in INDEX_SCHEMES
    except ValueError:
        return False


def has_password(index: str) -> bool:
    """Return whether the URL of a database has a password, as a part of its own or among its options."""
    try:
        parts = urlsplit(index)
    except ValueError:
        return "@" in index  # it is refused later
    return parts.password is not None or "password" in parse_qs(parts.query)


def shown_url(url: str) -> str:
    """Return a URL without its user, its password and its options, for messages and logs.

    A password may have a `/`, `?` or `#` that is not encoded. So only the scheme is left where it may begin or end anywhere.
    """
    scheme, separator, rest = url.partition("://")
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    if not separator or (":" in place and "@" in rest[len(place) :]):
        return f"{scheme.partition(':')[0]}:"
    return f"{scheme}{separator}{place.rpartition('@')[2]}"
