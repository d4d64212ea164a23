"""Content-addressed file store and transfer service for model weights.

>>> import filestore
>>> async with filestore.connect("http://127.0.0.1:8080", token="...") as repository:
...     pushed = await filestore.push(repository, "my_model/")
...     await filestore.fetch_tree(repository, pushed.record, target="/models/my_model")
...     async with filestore.Cache("/var/cache/models", repository) as cache:
...         path = await cache.resolve(filestore.Directory(id=pushed.record.id))

Verbs: `connect`, `push`, `plan_push`, `fetch`, `fetch_tree`, `diff`, `copy`, `plan_copy`, `sync_to_name`, `sync_to_folder`,
`open_tensors`, and the methods of `Cache`. The same verbs without asyncio, for scripts and notebooks, are in
`filestore.blocking`. Every error is a `FilestoreError`; all of them are in `filestore.errors`. docs/python.md describes
everything by examples.

Each name is imported when it is first used, so that `import filestore` takes little time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filestore import blocking, errors
    from filestore.backends import connect
    from filestore.cache import Cache, CachedPath, ResolveResult, StreamingFile
    from filestore.core.digest import Digest
    from filestore.core.progress import Progress
    from filestore.core.records import Kind, Record
    from filestore.core.references import Directory, File, FileURL, Reference
    from filestore.download.download import DownloadLimits
    from filestore.errors import FilestoreError
    from filestore.format.codec import Codec
    from filestore.format.tensors import Tensor
    from filestore.format.zip.read import ZipLimits
    from filestore.repository.protocol import Repository
    from filestore.transfer.copy import CopyPlan, CopyResult, copy, plan_copy
    from filestore.transfer.diff import Difference, FileDifference, diff
    from filestore.transfer.diff_tensors import TensorDifference
    from filestore.transfer.fetch import FetchResult, fetch
    from filestore.transfer.fetch_tree import FetchTreeResult, fetch_tree
    from filestore.transfer.push import PlannedEntry, PushPlan, PushResult, plan_push, push
    from filestore.transfer.sources.push_cache import PushCache
    from filestore.transfer.sources.walk import Symlinks
    from filestore.transfer.stored_tensors import TensorFile, open_tensors
    from filestore.transfer.sync import SyncAction, SyncChange, SyncResult, sync_to_folder, sync_to_name

__all__ = [
    "Cache",
    "CachedPath",
    "Codec",
    "Commit",
    "CopyPlan",
    "CopyResult",
    "Difference",
    "Digest",
    "Directory",
    "DownloadLimits",
    "FetchResult",
    "FetchTreeResult",
    "File",
    "FileDifference",
    "FileURL",
    "FilestoreError",
    "Kind",
    "Label",
    "LabelKind",
    "PlannedEntry",
    "Progress",
    "PushCache",
    "PushPlan",
    "PushResult",
    "Record",
    "Reference",
    "Repository",
    "ResolveResult",
    "StreamingFile",
    "Symlinks",
    "SyncAction",
    "SyncChange",
    "SyncResult",
    "Tensor",
    "TensorDifference",
    "TensorFile",
    "ZipLimits",
    "blocking",
    "connect",
    "copy",
    "diff",
    "errors",
    "fetch",
    "fetch_tree",
    "open_tensors",
    "plan_copy",
    "plan_push",
    "push",
    "sync_to_folder",
    "sync_to_name",
]

_MODULES = {
    "Cache": "filestore.cache",
    "CachedPath": "filestore.cache",
    "Codec": "filestore.format.codec",
    "Commit": "filestore.core.commits",
    "CopyPlan": "filestore.transfer.copy",
    "CopyResult": "filestore.transfer.copy",
    "Difference": "filestore.transfer.diff",
    "Digest": "filestore.core.digest",
    "Directory": "filestore.core.references",
    "DownloadLimits": "filestore.download.download",
    "FetchResult": "filestore.transfer.fetch",
    "FetchTreeResult": "filestore.transfer.fetch_tree",
    "File": "filestore.core.references",
    "FileDifference": "filestore.transfer.diff",
    "FileURL": "filestore.core.references",
    "FilestoreError": "filestore.errors",
    "Kind": "filestore.core.records",
    "Label": "filestore.core.commits",
    "LabelKind": "filestore.core.commits",
    "PlannedEntry": "filestore.transfer.push",
    "Progress": "filestore.core.progress",
    "PushCache": "filestore.transfer.sources.push_cache",
    "PushPlan": "filestore.transfer.push",
    "PushResult": "filestore.transfer.push",
    "Record": "filestore.core.records",
    "Reference": "filestore.core.references",
    "Repository": "filestore.repository.protocol",
    "ResolveResult": "filestore.cache",
    "StreamingFile": "filestore.cache",
    "Symlinks": "filestore.transfer.sources.walk",
    "SyncAction": "filestore.transfer.sync",
    "SyncChange": "filestore.transfer.sync",
    "SyncResult": "filestore.transfer.sync",
    "Tensor": "filestore.format.tensors",
    "TensorDifference": "filestore.transfer.diff_tensors",
    "TensorFile": "filestore.transfer.stored_tensors",
    "ZipLimits": "filestore.format.zip.read",
    "blocking": "filestore.blocking",
    "connect": "filestore.backends",
    "copy": "filestore.transfer.copy",
    "diff": "filestore.transfer.diff",
    "errors": "filestore.errors",
    "fetch": "filestore.transfer.fetch",
    "fetch_tree": "filestore.transfer.fetch_tree",
    "open_tensors": "filestore.transfer.stored_tensors",
    "plan_copy": "filestore.transfer.copy",
    "plan_push": "filestore.transfer.push",
    "push": "filestore.transfer.push",
    "sync_to_folder": "filestore.transfer.sync",
    "sync_to_name": "filestore.transfer.sync",
}
"""Where each name is. A name that is itself a module of this package stands for that module."""


def __getattr__(name: str) -> object:
    home = _MODULES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(home)
    return module if home == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
