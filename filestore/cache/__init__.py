"""The cache of a machine that runs models: verified, ready-to-open paths.

    ROOT/format                                     {"cache": 1}
    ROOT/repositories/<fingerprint>.json            which repository a location and token stand for
    ROOT/<repository id>/<namespace>/
        records/<file id>.json                      what an id means: it never changes
        files/ab/cd/<digest>/entry.json             what a hit checks
        files/ab/cd/<digest>/manifest               its canonical bytes: what other versions may share of it
        files/ab/cd/<digest>/content/<name>         the file, read-only
        trees/ab/cd/<digest>/entry.json, manifest
        trees/ab/cd/<digest>/tail                   the zip's bytes from its central directory on
        trees/ab/cd/<digest>/content/<name>/...     the tree that the zip unpacks to, read-only
        staging/<digest>, staging/<digest>-tree     an entry that is being fetched by who holds its lock
        staging/.<digest>.*, staging/.<digest>-tree.*   one that is about to appear or to go, or is fetched without a lock
        locks/<digest>, locks/<digest>-tree
    ROOT/leases/                                    what is in use by which process: see `leases.py`

The mtime of an `entry.json` is when the entry was last used, to the minute. What URLs add to this is in `urls.py`.

An entry appears by one rename of its folder (I3). Locks save work and nothing more: where one fails, two processes fetch
the same entry, each in a place of its own, and the later rename finds the earlier one's. What a crash leaves in staging is
used, once it was verified, and cleared by whoever next fetches the same entry, or needs the room. An entry without
`manifest` was made by an older program: it is as good as any other, and no seed.
"""

from __future__ import annotations

from filestore.cache.cache import CACHE_VERSION, Cache, CachedPath, ResolveResult
from filestore.cache.streaming import StreamingFile
from filestore.cache.verify import verify_cache

__all__ = ["CACHE_VERSION", "Cache", "CachedPath", "ResolveResult", "StreamingFile", "verify_cache"]
