"""What the header fields of an HTTP answer say: which server made it, and how long to wait before the next try.

Source: RFC 9110, sections 10.2.3 (Retry-After) and 10.2.4 (Server).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from filestore.errors import FilestoreError

RETRY_AFTER_LIMIT_SECONDS = 120.0
"""If a server asks to wait longer than this, there is no retry. The error says how long, and the user decides."""
_PAGE = "text/html"


class Said(NamedTuple):
    """The header fields of an answer that say who made it, and what to do next. A field that is missing is empty."""

    server: str = ""
    content_type: str = ""
    location: str = ""
    retry_after: str = ""
    date: str = ""

    @property
    def is_page(self) -> bool:
        """Whether the answer is a page for people. Filestore itself sends no such page."""
        return self.content_type.partition(";")[0].strip().lower() == _PAGE

    @property
    def retry_after_seconds(self) -> float | None:
        """How long the server asks to wait. None if it does not say that, or if the field is malformed."""
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
    """Return what header fields say. `headers` must find a field by its name in any case."""
    return Said(*(headers.get(name, "") for name in ("Server", "Content-Type", "Location", "Retry-After", "Date")))


def may_try_again(error: FilestoreError) -> bool:
    """Return whether another try may help, and comes soon enough to wait for it."""
    return error.retryable and (error.retry_after_seconds or 0.0) <= RETRY_AFTER_LIMIT_SECONDS


def pause_seconds(error: FilestoreError, otherwise: float) -> float:
    """Return how long to wait before the next try: `otherwise`, or longer if the server asked for it."""
    return max(otherwise, error.retry_after_seconds or 0.0)
