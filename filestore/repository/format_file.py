"""The format file of a repository holds its id and the versions with which it was made."""

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
    """Return the id and the cutting version of the repository in `store`; make the repository if there is none yet.

    A new repository gets the id `new_id` (32 hex digits), or a random one without it. Raises UnknownFormat.
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
    """Return a repository's description of itself, checked, because caches make paths of it (I4).

    Raises ValueError or InvalidName.
    """
    if not isinstance(repository_id, str) or not REPOSITORY_ID_PATTERN.match(repository_id):
        raise ValueError("its id is not 32 hexadecimal digits")
    if not isinstance(namespace, str) or type(chunking_version) is not int:
        raise ValueError("its namespace is not a text, or its cutting version is not a number")
    return Identity(repository_id, checked_namespace(namespace), chunking_version)


def check_versions(location: str, *, version: object, chunking_version: object) -> None:
    """Check that this program knows the versions of a repository. Raises UnknownFormat."""
    if version != REPOSITORY_VERSION:
        raise UnknownFormat(location, str(version), str(REPOSITORY_VERSION))
    if chunking_version != CHUNKING_VERSION:
        raise UnknownFormat(f"the cutting of {location}", str(chunking_version), str(CHUNKING_VERSION))
