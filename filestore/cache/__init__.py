"""Keep verified files and trees on the machine that runs models, as paths that are ready to open.

    ROOT/format                                     {"cache": 1}
    ROOT/repositories/<fingerprint>.json            the repository that a location and a token stand for
    ROOT/<repository id>/<namespace>/
        records/<file id>.json                      the record of an id: it never changes
        files/ab/cd/<digest>/entry.json             what a hit checks
        files/ab/cd/<digest>/manifest               its canonical bytes, by which other files find chunks that they share
        files/ab/cd/<digest>/content/<name>         the file, read-only
        trees/ab/cd/<digest>/entry.json, manifest
        trees/ab/cd/<digest>/tail                   the zip's bytes from its central directory on
        trees/ab/cd/<digest>/content/<name>/...     the tree that the zip unpacks to, read-only
        staging/<digest>, staging/<digest>-tree     an entry that the holder of its lock is fetching
        staging/.<digest>.*, staging/.<digest>-tree.*   an entry that is published or removed, or is fetched without a lock
        locks/<digest>, locks/<digest>-tree
    ROOT/leases/                                    which process uses what: see `leases.py`

The mtime of an `entry.json` is the time of the last use of the entry, to the minute. `urls.py` describes the files for
URLs, and `stored_entries.py` those for single files and folders of stored directories.

An entry appears by one rename of its folder (I3). Locks only save work. If one fails, two processes fetch the same
entry, each in its own folder, and the second rename finds the entry of the first. The next fetch of an entry verifies
and reuses what a crash left in staging. That fetch, or an eviction, removes the rest. An entry without `manifest` was
made by an older program. It can be used like any other, but not as a seed.
"""

from __future__ import annotations

from filestore.cache.cache import CACHE_VERSION, Cache, CachedPath, ResolveResult
from filestore.cache.streaming import StreamingFile
from filestore.cache.verify import verify_cache

__all__ = ["CACHE_VERSION", "Cache", "CachedPath", "ResolveResult", "StreamingFile", "verify_cache"]
