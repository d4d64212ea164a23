"""Recognise the URLs of the repository's own server. They mean the stored file, and are not downloaded.

A URL may be signed or plain, and a signature may have expired: the path in the URL names the file. One server has more
than one name: `localhost` and `127.0.0.1`, or the name of a proxy in front of it. So a URL of another host also means
the stored file, if its path names a record of this repository: such a path has the digest of the content, or the random
id of a record.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote, urlsplit

from filestore.cache import Cache
from filestore.core.digest import Digest
from filestore.core.references import redact_url
from filestore.errors import InvalidInput, InvalidReference, NotFound
from filestore.repository.protocol import Repository
from filestore.runtime.values import Stored

_STORED_PATH = re.compile(
    r"(?P<path>/(?:pipeline_files|run_files)/[0-9a-f]{2}/.+)|/v3/pipeline_files/download/(?P<id>file_[0-9a-f]{32})\Z"
)
_SIGNATURE = r"(?:/signed/[^/]+/[^/]+/[^/]+)?"
_OWN_PATH = re.compile(_SIGNATURE + f"(?:/storage(?=/run_files/))?(?:{_STORED_PATH.pattern})", re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class OwnUrls:
    """The URLs of one server, which may have several base URLs."""

    def __init__(self, bases: Iterable[str]) -> None:
        self._bases = [(_address(parts), f"{parts.path.rstrip('/')}/") for parts in map(urlsplit, bases)]

    def stored(self, wanted: Stored) -> Stored:
        """Return the reference of the stored file, if `wanted` is a URL below a base URL; otherwise `wanted`.

        Raises InvalidReference if such a URL is not that of a stored file.
        """
        parts = _parts(wanted)
        if parts is None:
            return wanted
        address = _address(parts)
        base = next((base for known, base in self._bases if known == address and parts.path.startswith(base)), None)
        if base is None:
            return wanted
        found = _OWN_PATH.fullmatch("/" + unquote(parts.path.removeprefix(base)).lstrip("/"))
        if found is None:
            raise InvalidReference(redact_url(str(wanted.url)), "it is a URL of this server, but not that of a stored file")
        reference = _reference(wanted, found)
        _ = reference.url or reference.reference  # raises an error for an invalid path before anything is fetched
        return reference


async def stored_here(cache: Cache, repository: Repository, wanted: Stored) -> Stored:
    """Return the reference of the stored file, if `wanted` is a URL whose path names a record; otherwise `wanted`.

    A proxy may have a folder of the URL, so the path may be the end of a longer one. If the file is in the cache, the
    repository is not asked. Raises what `Repository.record` raises, except NotFound.
    """
    parts = _parts(wanted)
    found = None if parts is None else _STORED_PATH.search(unquote(parts.path))
    if found is None:
        return wanted
    reference = _reference(wanted, found)
    try:
        if reference.url is None and await cache.cached(reference) is None:
            await repository.record(reference.reference)
    except (InvalidInput, NotFound):
        return wanted
    return reference


def _parts(wanted: Stored) -> SplitResult | None:
    """Return the parts of a URL. Return None if `wanted` is not a URL, or one that cannot be downloaded from either."""
    try:
        return None if wanted.url is None else urlsplit(wanted.url)
    except ValueError:
        return None


def _reference(wanted: Stored, found: re.Match[str]) -> Stored:
    """Return the reference of a stored file. A SHA-256 of `wanted` is known only after a download, which then happens."""
    make = type(wanted)
    expected = None if wanted.origin is None else wanted.origin.expected
    if isinstance(expected, Digest):
        return make(digest=str(expected))
    if expected is not None:
        return wanted
    return make(found["path"]) if found["id"] is None else make(id=found["id"])


def _address(parts: SplitResult) -> tuple[str, int | None]:
    """Return the host and the port of a URL. All names of this machine's loopback are one host.

    The scheme is not compared, because not every proxy says which one the client uses. So None is the port of a URL
    with the default port of its scheme.
    """
    host = (parts.hostname or "").rstrip(".")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    try:
        port = parts.port
    except ValueError:
        port = -1  # such a URL is refused by the download
    return "localhost" if is_loopback else host, None if port == _DEFAULT_PORTS.get(parts.scheme.lower()) else port
