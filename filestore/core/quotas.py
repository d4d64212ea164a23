"""The quota of a namespace or of a token: the limits of what it may keep and do."""

from __future__ import annotations

from typing import NamedTuple

LIMIT = 1 << 62
"""The largest value of a limit."""
LEAST_RATE = 65536
"""The least bytes per second that can be set. With fewer, a connection would often look as if it had stalled."""


class Quota(NamedTuple):
    """Limits. None means that there is none."""

    size: int | None = None
    """Bytes of content of all records, each version with its whole size."""
    stored_size: int | None = None
    """Bytes of stored frames and manifests. Content that several records share counts once."""
    name_count: int | None = None
    """Different names of records."""
    uploads: int | None = None
    """Uploads in progress. It takes the place of the setting `uploads_limit`."""
    connections: int | None = None
    requests_per_second: int | None = None
    bytes_per_second: int | None = None
    """Bytes of request and answer bodies together."""


NO_QUOTA = Quota()
KEPT = ("size", "stored_size", "name_count", "uploads")
"""The limits that only a namespace can have: the tokens of a namespace share what is stored in it."""
EVERYBODY = ""
"""Stands for each namespace that has no quota of its own."""
