"""The location of an index, as messages show it."""

from __future__ import annotations

from urllib.parse import urlsplit

from filestore.errors import InvalidUrl

_SCHEMES = ("postgresql", "postgres")


def shown_location(url: str) -> str:
    """Return the URL of a database without the user, the password and the query. Raises InvalidUrl, without them."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidUrl("postgresql:", str(error)) from None
    if parts.scheme not in _SCHEMES:
        raise InvalidUrl(f"{parts.scheme}:", "the location of an index in PostgreSQL begins with postgresql://")
    name = f"[{host}]" if host and ":" in host else host or ""
    return f"postgresql://{name}{f':{port}' if port else ''}{parts.path}"
