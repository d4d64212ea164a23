"""Read and check the format file of a repository. It contains the id and the format versions of the repository."""

from __future__ import annotations

import json
import re
import secrets

from filestore.core.names import checked_namespace
from filestore.core.records import parse_json
from filestore.errors import (
    UnknownFormat,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.repository.protocol import Identity
from filestore.repository.stores.protocol import ChunkStore

REPOSITORY_VERSION = 1
REPOSITORY_ID_PATTERN = re.compile(r"[0-9a-f]{32}\Z")


async def read_format(store: ChunkStore, *, location: str, new_id: str | None = None) -> tuple[str, int]:
    """Return the id and the cutting version of the repository in `store`. If none exists yet, make one.

    A new repository gets the id `new_id` (32 hexadecimal digits), or a random id if `new_id` is None. Raises
    UnknownFormat if the format file is damaged, or has a version that this program does not know.
    """
    proposed = {"format": REPOSITORY_VERSION, "cutting": CHUNKING_VERSION, "id": new_id or secrets.token_hex(16)}
    kept = await store.initialise(json.dumps(proposed).encode() + b"\n")
    try:
        values = parse_json(kept)
        version, chunking_version, repository_id = values["format"], values["cutting"], str(values["id"])
    except (ValueError, KeyError, TypeError):
        raise UnknownFormat(location, "that cannot be read", str(REPOSITORY_VERSION)) from None
    check_versions(location, version=version, chunking_version=chunking_version)
    if not REPOSITORY_ID_PATTERN.match(repository_id):
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    return repository_id, CHUNKING_VERSION


def checked_identity(
    repository_id: object, namespace: object, chunking_version: object, *, upload_limit: object = None
) -> Identity:
    """Make the identity of a repository from values that a server sent, and check them.

    They are checked because caches use them in paths (I4). Raises ValueError or InvalidName if a value is not valid.
    """
    if not isinstance(repository_id, str) or not REPOSITORY_ID_PATTERN.match(repository_id):
        raise ValueError("its id is not 32 hexadecimal digits")
    if not isinstance(namespace, str) or type(chunking_version) is not int:
        raise ValueError("its namespace is not a text, or its cutting version is not a number")
    if upload_limit is not None and not (type(upload_limit) is int and 0 <= upload_limit < 1 << 63):
        raise ValueError("its limit of uploads is not a number")
    return Identity(repository_id, checked_namespace(namespace), chunking_version, upload_limit)


def check_versions(location: str, *, version: object, chunking_version: object) -> None:
    """Raise UnknownFormat if this program does not know the versions of a repository."""
    if version != REPOSITORY_VERSION:
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    if chunking_version != CHUNKING_VERSION:
        raise UnknownFormat(f"the cutting of {location}", str(chunking_version), str(CHUNKING_VERSION))
