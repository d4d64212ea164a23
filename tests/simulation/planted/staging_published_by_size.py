"""Fault: a staging file that has the size of the file is published as if it were whole.

A staging file has its full size from its first moment, and its content arrives in any order.

What prevents it: `_fetch` in `filestore/transfer/fetch.py` lets the receiver verify what a staging file holds, chunk by
chunk (I3), and receive the rest.

What finds it: the check that a fetched file has the bytes that were pushed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.transfer import fetch
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Verify and receive nothing if an earlier fetch has left a staging file."""
    verify = "await receiving.reuse(staging, [*local, *seeds], resume=staging.held)"
    return rewritten_function(fetch, "_fetch", old=verify, new=f"staging.held or {verify}")
