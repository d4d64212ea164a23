"""Links: signed URLs of one stored file that last for a chosen time, are listed, and can be revoked one by one."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from filestore.core.names import checked_name, is_owner, split_full_name
from filestore.core.records import checked_file_id
from filestore.core.timestamps import format_timestamp, parse_timestamp

LINK_SECONDS_LIMIT = 366 * 24 * 3600
"""The longest time that a link lasts, in seconds: a year."""
NONCE_PATTERN = re.compile(r"[0-9a-f]{32}\Z")
"""What the maker of a link chooses. The same one gives the same link, so a request can be sent again."""

_ID = re.compile(r"link_[0-9a-f]{16}\Z")
_TEXT_LIMIT = 1024


class Link(NamedTuple):
    """A link to one version of a name. Whoever has its URL can read the file until it expires or is revoked."""

    id: str
    """`link_` and 16 hexadecimal digits. It names the link, and does not tell its URL."""
    file_id: str
    name: str
    """The full name of the file."""
    created_at: int
    """In microseconds since 1970, as is `expires_at`."""
    expires_at: int
    made_by: str
    """The label of the token that made it, or the beginning of that token's digest."""
    path: str | None = None
    """The path below the server's URL. Only whoever makes a link learns it."""

    def as_json(self) -> dict[str, str]:
        """Return the form in which links are sent and printed. `link_from_json` is the inverse."""
        return {
            "id": self.id,
            "file_id": self.file_id,
            "name": self.name,
            "created_at": format_timestamp(self.created_at),
            "expires_at": format_timestamp(self.expires_at),
            "made_by": self.made_by,
            **({} if self.path is None else {"path": self.path}),
        }


def link_from_json(values: dict[str, Any]) -> Link:
    """Make a link of what `Link.as_json` returns. Its path is not checked.

    Raises KeyError, TypeError, ValueError or a FilestoreError if a value is missing or not valid.
    """
    texts = [values[name] for name in ("id", "file_id", "name", "created_at", "expires_at", "made_by")]
    path = values.get("path")
    if not all(isinstance(text, str) and len(text) <= _TEXT_LIMIT for text in texts) or not isinstance(path, str | None):
        raise TypeError("a value is not a short text")
    link_id, file_id, name, created_at, expires_at, made_by = texts
    owner, last = split_full_name(name)
    checked_name(last)
    if owner is not None and not is_owner(owner):
        raise ValueError("its owner is not one")
    return Link(
        checked_link_id(link_id),
        checked_file_id(file_id),
        name,
        parse_timestamp(created_at),
        parse_timestamp(expires_at),
        made_by,
        path,
    )


def checked_link_id(text: str) -> str:
    """Return the id of a link if it has the form of one. Raises ValueError."""
    if _ID.match(text) is None:
        raise ValueError("it is not the id of a link")
    return text
