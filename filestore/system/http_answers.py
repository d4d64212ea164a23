"""Read the header fields of an HTTP answer: which server made it, its id, and how long to wait before the next try.

Source: RFC 9110, sections 10.2.3 (Retry-After) and 10.2.4 (Server).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from filestore.errors import FilestoreError

RETRY_AFTER_LIMIT_SECONDS = 120.0
"""If a server asks for a longer wait than this, the client does not retry. The error tells the user the time."""
_PAGE = "text/html"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIELDS = ("Server", "Content-Type", "Location", "Retry-After", "Date", "X-Request-Id")


class Said(NamedTuple):
    """Header fields of an answer: which server made it, and what the client should do next.

    A field that is missing in the answer is empty here.
    """

    server: str = ""
    content_type: str = ""
    location: str = ""
    retry_after: str = ""
    date: str = ""
    given_id: str = ""

    @property
    def request_id(self) -> str:
        """The id of the request. It is empty if the field is missing or malformed."""
        return self.given_id if _REQUEST_ID.fullmatch(self.given_id) else ""

    @property
    def media_type(self) -> str:
        """The type of the content, in lower case and without parameters. It is empty if the field is missing."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def is_page(self) -> bool:
        """Whether the answer is an HTML page. A filestore server never sends one, so another server made the answer."""
        return self.media_type == _PAGE

    @property
    def retry_after_seconds(self) -> float | None:
        """How many seconds the server asks the client to wait. None if the field is missing or malformed."""
        text = self.retry_after.strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            # By the clock of the server, if the answer has it: our clock may be wrong.
            now = parsedate_to_datetime(self.date) if self.date else datetime.now(UTC)
            return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None


def said_by(headers: Mapping[str, str]) -> Said:
    """Return the fields of `headers` that this module reads. `headers` must ignore the case of field names."""
    return Said(*(headers.get(name, "") for name in _FIELDS))


def may_try_again(error: FilestoreError) -> bool:
    """Return whether another try may help and the server does not ask for a longer wait than the limit."""
    return error.retryable and (error.retry_after_seconds or 0.0) <= RETRY_AFTER_LIMIT_SECONDS
