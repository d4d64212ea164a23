"""Content-addressed file store and transfer service for model weights.

>>> from filestore import Cache, File, connect
>>> async with connect("http://127.0.0.1:8080", token="...") as repository:
...     path = await Cache("/var/cache/models", repository).resolve(File(id="file_..."))

Errors: `filestore.errors`. Names are imported on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filestore.backends import connect
    from filestore.cache import Cache
    from filestore.core.records import Record
    from filestore.core.references import Directory, File, FileURL, Reference
    from filestore.errors import FilestoreError

__all__ = ["Cache", "Directory", "File", "FileURL", "FilestoreError", "Record", "Reference", "connect"]

_HOMES = {
    "Cache": "filestore.cache",
    "Directory": "filestore.core.references",
    "File": "filestore.core.references",
    "FileURL": "filestore.core.references",
    "FilestoreError": "filestore.errors",
    "Record": "filestore.core.references",
    "Reference": "filestore.core.references",
    "connect": "filestore.backends",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
