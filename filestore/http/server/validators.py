"""Read and write the HTTP headers for ranges, entity tags and names, without I/O.

Source: RFC 9110, sections 8.8.3 (entity tags), 13 (conditional requests) and 14 (ranges); RFC 6266 and 8187 (names).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from aiohttp import ETag

from filestore.errors import InvalidRange

IMMUTABLE = "private, max-age=31536000, immutable"
"""Cache-Control of content that is named by its digest."""

_RANGE = re.compile(r"bytes=(?:([0-9]{1,20})-([0-9]{1,20})?|-([0-9]{1,20}))", re.IGNORECASE)
# Matches each character that needs an escape in a quoted value, or that some clients do not keep.
_PLAIN = re.compile(r"[^A-Za-z0-9 !#$&'()+,.;=@^_`{}~\[\]-]")


def parse_range(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header asks for, out of `size` bytes; None for all of them.

    A header that is malformed, has another unit or has several ranges is ignored, as the RFC allows. A range of empty
    content is ignored too, because some clients always send one. Raises InvalidRange if the content has no byte in the
    range.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or size == 0:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last is not None else size
        if last is not None and int(last) < start:
            return None
    if start >= stop:
        raise InvalidRange(str(header), size)
    return range(start, stop)


def matches_any(tags: Iterable[ETag] | None, value: str, *, weak: bool) -> bool:
    """Return whether an If-Match or If-None-Match header names the content whose tag is `value`.

    If-Match needs the strong comparison, If-None-Match the weak one.
    """
    return any(tag.value in {"*", value} and (weak or not tag.is_weak) for tag in tags or ())


def attachment(name: str) -> str:
    """Return a Content-Disposition header that makes clients save a file under `name`."""
    plain = _PLAIN.sub("_", name)
    if plain == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
