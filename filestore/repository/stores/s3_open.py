"""Open an object store. This module is imported without the package that speaks to it, which is an extra."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from filestore.errors import MissingPackage
from filestore.repository.stores.object_map import ObjectMap
from filestore.repository.stores.s3_location import S3Location

if TYPE_CHECKING:
    from filestore.repository.stores.s3 import S3Store
    from filestore.repository.stores.s3_client import S3Client


def new_s3_client(location: S3Location, *, retry_seconds: float | None = None) -> S3Client:
    """Return a client for a location. No request is made. Raises MissingPackage, StorageError.

    `retry_seconds` is how long it tries again to use a store that has answered before.

    The credentials are those of the environment (AWS_ACCESS_KEY_ID and others), of the file that AWS_SHARED_CREDENTIALS_FILE
    names, which is read again when it is replaced, of a container, or of the machine.
    """
    try:
        from filestore.repository.stores.s3_client import S3Client  # noqa: PLC0415  # an extra
    except ImportError:
        raise MissingPackage("obstore", "an object store", "s3") from None
    from filestore.repository.stores.s3_credentials import find_file  # noqa: PLC0415  # with the client

    credentials = find_file(os.environ)
    return S3Client(location, credentials=credentials, **({} if retry_seconds is None else {"retry_seconds": retry_seconds}))


async def open_s3_store(
    client: S3Client, objects: ObjectMap, *, scratch: Path | None, min_free: int | None = None, read_only: bool = False
) -> S3Store:
    """Open the store at the location of `client`, whose objects the index `objects` names.

    `scratch` is a folder on a disk of this machine, for content that is on its way. It is made. None means one
    among the temporary folders, which all processes of this user share. `min_free` is how many bytes of its disk stay free. With
    `read_only`, nothing is put. Raises StorageError, StorageFull.
    """
    from filestore.repository.stores.s3 import open_store_of  # noqa: PLC0415  # an extra, which the client needs too

    return await open_store_of(client, objects, scratch=scratch, min_free=min_free, read_only=read_only)
