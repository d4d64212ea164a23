"""Take apart a text that names several servers."""

from __future__ import annotations

import re

_BETWEEN = re.compile(r"[\s,]+(?=https?://)", re.IGNORECASE)


def split_urls(text: str) -> list[str]:
    """Return the URLs of servers in a text that has commas or spaces between them. Any other text is one URL."""
    return _BETWEEN.split(text.strip().rstrip(",")) if _BETWEEN.search(text) else [text]
