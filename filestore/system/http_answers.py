"""What the head of an HTTP answer says of who made it, and how long it asks to wait.

Source: RFC 9110, sections 10.2.3 (Retry-After) and 10.2.4 (Server).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from filestore.errors import FilestoreError

RETRY_AFTER_LIMIT_SECONDS = 120.0
"""Who asks to wait longer than this is not asked again: the error says how long, and the user decides."""
_PAGE = "text/html"


class Said(NamedTuple):
    """What the header fields of an answer say of who made it, and what to do next; empty where it says nothing."""

    server: str = ""
    content_type: str = ""
    location: str = ""
    retry_after: str = ""
    date: str = ""

    @property
    def is_page(self) -> bool:
        """Whether it is a page for people, which filestore has none of."""
        return self.content_type.partition(";")[0].strip().lower() == _PAGE

    @property
    def retry_after_seconds(self) -> float | None:
        """How long whoever answered asks to wait; None where that is not said, or is malformed."""
        text = self.retry_after.strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            # By the clock of whoever answered, where the answer tells it: ours may be wrong.
            now = parsedate_to_datetime(self.date) if self.date else datetime.now(UTC)
            return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None


def said_by(headers: Mapping[str, str]) -> Said:
    """What header fields say; `headers` finds a field whatever the case of its name is."""
    return Said(*(headers.get(name, "") for name in ("Server", "Content-Type", "Location", "Retry-After", "Date")))


def may_try_again(error: FilestoreError) -> bool:
    """Whether another try may help, and comes within the time that anybody waits for it."""
    return error.retryable and (error.retry_after_seconds or 0.0) <= RETRY_AFTER_LIMIT_SECONDS


def pause_seconds(error: FilestoreError, otherwise: float) -> float:
    """How long to wait before the next try: `otherwise`, or longer where whoever answered asks for it."""
    return max(otherwise, error.retry_after_seconds or 0.0)
