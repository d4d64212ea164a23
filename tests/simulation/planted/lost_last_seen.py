"""Fault: a push asks which chunks are missing, and the last-seen times of the others are not set.

A collection then removes chunks that a push in progress counts on. The push ends well, because `commit` looks again,
but it sends these chunks twice.

What prevents it: `SqliteIndex.refreshed_rows` refreshes the rows that it reports and that nobody has asked for during
the last hour (I9).

What finds it: the check that a chunk that a push was told to be present stays during its grace period.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.index.sqlite import SqliteIndex
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Never find a last-seen time that is old."""
    return rewritten_function(
        SqliteIndex,
        "refreshed_rows",
        old="if state.last_seen < horizon]",
        new="if state.last_seen < 0]",
    )
