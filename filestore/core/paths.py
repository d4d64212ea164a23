"""Make and parse the paths of stored content: those in a store, and those in URLs. The functions do no I/O."""

from __future__ import annotations

import re

from filestore.core.digest import Digest
from filestore.errors import InvalidDigest, InvalidReference

FILES_PREFIX = "pipeline_files"
RUN_FILES_PREFIX = "run_files"

_FILE_PATH_REASON = f"a path looks like {FILES_PREFIX}/ab/cd/<digest>/<name>, where the digest begins with abcd"

_UUID_GROUPS = (8, 4, 4, 4, 12)
_UUID = re.compile("-".join(f"[0-9a-f]{{{size}}}" for size in _UUID_GROUPS))


def hashed(digest: Digest) -> str:
    """Return the path `ab/cd/<64 hex>` for a digest. The two folders keep the number of names in each folder small."""
    text = str(digest)
    return f"{text[:2]}/{text[2:4]}/{text}"


def unhashed(path: str) -> Digest:
    """Return the digest in a path `ab/cd/<64 hex>`, which `hashed` makes. Raises InvalidReference for any other text."""
    try:
        digest = Digest.parse(path.rpartition("/")[2])
    except InvalidDigest:
        raise InvalidReference(path, "its last part is not a digest") from None
    if hashed(digest) != path:
        raise InvalidReference(path, "its folders do not match its digest")
    return digest


def chunk_key(namespace: str, digest: Digest) -> str:
    """Return the key under which a store keeps the frame of a chunk."""
    return f"chunks/{namespace}/{hashed(digest)}"


def manifest_key(namespace: str, digest: Digest) -> str:
    """Return the key under which a store keeps a manifest."""
    return f"manifests/{namespace}/{hashed(digest)}"


def file_path(digest: Digest, name: str) -> str:
    """Return the stored path `pipeline_files/ab/cd/<64 hex>/<name>` of a file.

    Any HTTP client can read the content of the file from a server at this path.
    """
    return f"{FILES_PREFIX}/{hashed(digest)}/{name}"


def parse_file_path(path: str) -> tuple[Digest, str]:
    """Return the digest and the name in a path that `file_path` made. Raises InvalidReference for any other text.

    A leading slash is allowed, because the Pipeline SDK writes one.
    """
    folder, _, name = path.removeprefix("/").rpartition("/")
    prefix, _, inner = folder.partition("/")
    if prefix != FILES_PREFIX or not name:
        raise InvalidReference(path, _FILE_PATH_REASON)
    try:
        return unhashed(inner), name
    except InvalidReference:
        raise InvalidReference(path, _FILE_PATH_REASON) from None


def run_path(file_id: str, name: str) -> str:
    """Return the stored path of a record, such as `run_files/31/7e/317e304d-e816-4036-86b2-7ad82b208b70/<name>`.

    The UUID in the path has the same digits as `file_id`.
    """
    digits = file_id.removeprefix("file_")
    groups, start = [], 0
    for size in _UUID_GROUPS:
        groups.append(digits[start : start + size])
        start += size
    return f"{RUN_FILES_PREFIX}/{digits[:2]}/{digits[2:4]}/{'-'.join(groups)}/{name}"


def parse_run_path(path: str) -> tuple[str, str]:
    """Return the id and the name in a path that `run_path` made. Raises InvalidReference for any other text.

    A leading slash is allowed.
    """
    folder, _, name = path.removeprefix("/").rpartition("/")
    uuid = folder.rpartition("/")[2]
    file_id = "file_" + uuid.replace("-", "")
    if not name or not _UUID.fullmatch(uuid) or run_path(file_id, name) != f"{folder}/{name}":
        raise InvalidReference(
            path, f"a run's path looks like {RUN_FILES_PREFIX}/ab/cd/<uuid>/<name>, where the uuid begins with abcd"
        )
    return file_id, name
