"""Translate errors of the disk below a store."""

from __future__ import annotations

from functools import partial

from filestore.errors import StorageError, StorageFull
from filestore.system.files import access_error, storage_errors


def _repository_error(where: str, error: OSError) -> StorageError:
    found = access_error(where, error)
    if isinstance(found, StorageFull):
        found.hint = "free-repository"
    return found


translated = partial(storage_errors, translate=_repository_error)
"""Raises StorageError or StorageFull instead of OSError in a `with` block. The argument is what the error names."""
