"""Where content lies, on disk, in an object store, in a cache and in a URL: pure functions and their inverses.

`ab/cd/<64 hex>`: two levels of 256 folders from the first two bytes; the last part is the whole digest, so that a file
found on its own still says what it is. Normative text: `docs/format.md`.
"""

from __future__ import annotations

from filestore.digest import Digest
from filestore.errors import InvalidDigest, InvalidReference

FILES_PREFIX = "pipeline_files"


def hashed(digest: Digest) -> str:
    """`ab/cd/<64 hex>`."""
    text = str(digest)
    return f"{text[:2]}/{text[2:4]}/{text}"


def unhashed(path: str) -> Digest:
    """The inverse of `hashed`. Raises InvalidReference for any other text."""
    try:
        digest = Digest.parse(path.rpartition("/")[2])
    except InvalidDigest:
        raise InvalidReference(path, "its last part is no digest") from None
    if hashed(digest) != path:
        raise InvalidReference(path, "its folders do not match its digest")
    return digest


def chunk_key(namespace: str, digest: Digest) -> str:
    """The key of a frame in a store."""
    return f"chunks/{namespace}/{hashed(digest)}"


def manifest_key(namespace: str, digest: Digest) -> str:
    """The key of a manifest in a store."""
    return f"manifests/{namespace}/{hashed(digest)}"


def file_path(digest: Digest, name: str) -> str:
    """`pipeline_files/ab/cd/<64 hex>/<name>`: where a file's decoded bytes are read by anyone's HTTP client."""
    return f"{FILES_PREFIX}/{hashed(digest)}/{name}"


def parse_file_path(path: str) -> tuple[Digest, str]:
    """The inverse of `file_path`; a leading slash, as the SDK writes one, is allowed. Raises InvalidReference."""
    folder, _, name = path.removeprefix("/").rpartition("/")
    prefix, _, inner = folder.partition("/")
    if prefix != FILES_PREFIX or not name:
        raise InvalidReference(path, f"a path looks like {FILES_PREFIX}/ab/cd/<digest>/<name>")
    return unhashed(inner), name
