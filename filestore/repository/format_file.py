"""The format file of a repository: its id and the versions that it was made with."""

from __future__ import annotations

import json
import re
import secrets

from filestore.core.names import checked_namespace
from filestore.errors import (
    UnknownFormat,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.repository.protocol import Identity
from filestore.repository.stores.protocol import ChunkStore

REPOSITORY_VERSION = 1
REPOSITORY_ID_PATTERN = re.compile(r"[0-9a-f]{32}\Z")


async def read_format(store: ChunkStore, *, location: str, new_id: str | None = None) -> tuple[str, int]:
    """The id and the cutting version of the repository in `store`, which is made one where it is none yet.

    A new one gets the id `new_id` (32 hex digits), without it a random one. Raises UnknownFormat.
    """
    proposed = {"format": REPOSITORY_VERSION, "cutting": CHUNKING_VERSION, "id": new_id or secrets.token_hex(16)}
    kept = await store.initialise(json.dumps(proposed).encode() + b"\n")
    try:
        values = json.loads(kept)
        version, chunking_version, repository_id = values["format"], values["cutting"], str(values["id"])
    except (ValueError, KeyError, TypeError):
        raise UnknownFormat(location, "that cannot be read", str(REPOSITORY_VERSION)) from None
    check_versions(location, version=version, chunking_version=chunking_version)
    if not REPOSITORY_ID_PATTERN.match(repository_id):
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    return repository_id, CHUNKING_VERSION


def checked_identity(repository_id: object, namespace: object, chunking_version: object) -> Identity:
    """What a repository says of itself, checked: caches make paths of it (I4). Raises ValueError or InvalidName."""
    if not isinstance(repository_id, str) or not REPOSITORY_ID_PATTERN.match(repository_id):
        raise ValueError("its id is not 32 hexadecimal digits")
    if not isinstance(namespace, str) or type(chunking_version) is not int:
        raise ValueError("its namespace is no text, or its cutting version no number")
    return Identity(repository_id, checked_namespace(namespace), chunking_version)


def check_versions(location: str, *, version: object, chunking_version: object) -> None:
    """Whether this program knows what a repository says of itself. Raises UnknownFormat."""
    if version != REPOSITORY_VERSION:
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    if chunking_version != CHUNKING_VERSION:
        raise UnknownFormat(f"the cutting of {location}", str(chunking_version), str(CHUNKING_VERSION))
