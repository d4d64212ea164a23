"""The location of an index, as messages show it."""

from __future__ import annotations

from urllib.parse import urlsplit

from filestore.core.object_location import INDEX_SCHEMES, shown_url
from filestore.errors import InvalidUrl

_ENCODED = "write the / ? # @ of a password as %2F %3F %23 %40"


def shown_location(url: str) -> str:
    """Return the URL of a database without the user, the password and the options. Raises InvalidUrl, which has none of them."""
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port
    except ValueError:
        # The text of this error may have a part of the password.
        raise InvalidUrl(shown_url(url), f"its host or port is not one; {_ENCODED}") from None
    if parts.scheme not in INDEX_SCHEMES:
        raise InvalidUrl(shown_url(url), "the location of an index in PostgreSQL begins with postgresql://")
    if "@" in parts.path:
        raise InvalidUrl(shown_url(url), f"a user and a password are before the host; {_ENCODED}")
    return shown_url(url)
