"""Fault: the lease of a cache entry outlives its process.

The entry then takes space for ever, and the cache says that it is full although nobody uses it.

What prevents it: `Leases._is_alive` looks whether the process that the name of a lease folder identifies is running.

What finds it: the check that each entry of a cache can be removed when all processes that used it have ended.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.cache.leases import Leases
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Believe that each process of this machine is running."""
    return rewritten_function(Leases, "_is_alive", old="return _is_running(int(match[2]), int(match[3]))", new="return True")
