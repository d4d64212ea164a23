"""Remember the LFS objects that arrived, until a commit names them or they expire.

    objects-NAMESPACE/SHA256    one object: a line of JSON, and then its manifest

These are in the folder of the uploads, so that all processes of a server, and of the next one, share them. The chunks are in the
store, where they stay for the grace period of the collection, as those of any push that is not recorded yet. So an object that
is remembered may be gone, and whoever uses one looks at its chunks. All functions block.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from filestore.core.content_digests import BLOB_ID_SIZE, ContentHasher
from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import Manifest
from filestore.errors import InvalidDigest, InvalidManifest, LimitExceeded, ObjectMismatch
from filestore.format.zip.checksum import crc32
from filestore.http.server.context import spooling
from filestore.system.files import write_atomic
from filestore.system.owners import make_own

_FOLDER = "objects-"
HEAD_LIMIT = 1024
"""Bytes of the line that describes an object, at most."""
_NAME = re.compile(r"[0-9a-f]{64}\Z")


class LfsObject(NamedTuple):
    """Content that arrived as an LFS object, and was checked on the way."""

    sha256: bytes
    digest: Digest
    """Its file digest, which is the digest of its manifest."""
    size: int
    blob_id: bytes
    """The id that git gives the content."""
    crc: int
    """Its CRC-32, which the zip file of a tree needs."""

    def encode(self) -> bytes:
        """Return this as JSON, without the SHA-256."""
        values = {"digest": str(self.digest), "size": self.size, "blob_id": self.blob_id.hex(), "crc": self.crc}
        return json.dumps(values).encode()

    @classmethod
    def parse(cls, sha256: bytes, text: bytes) -> Self:
        """Return what `encode` encoded. Raises ValueError, KeyError, TypeError, InvalidDigest."""
        values = json.loads(text)
        size, crc, blob_id = values["size"], values["crc"], bytes.fromhex(values["blob_id"])
        if type(size) is not int or type(crc) is not int or size < 0 or not 0 <= crc < 1 << 32 or len(blob_id) != BLOB_ID_SIZE:
            raise ValueError("its values are not valid")
        return cls(sha256, Digest.parse(values["digest"]), size, blob_id, crc)


class ContentSums:
    """Computes all that is kept of an LFS object while its bytes arrive. The bytes come in order."""

    def __init__(self, sha256: bytes, size: int) -> None:
        """`sha256` and `size` are what the client says of the object."""
        self._sha256 = sha256
        self._size = size
        self._added = 0
        self._hasher = ContentHasher(size)
        self._crc = 0

    def add(self, piece: Buffer) -> None:
        """Take the next bytes. Raises ObjectMismatch if there are more than the client said."""
        self._added += len(piece)
        if self._added > self._size:
            raise self._mismatch(f"more than {self._size} bytes")
        self._hasher.update(piece)
        self._crc = crc32(piece, self._crc)

    def check(self) -> None:
        """Raise ObjectMismatch unless the bytes are those of the object."""
        if self._added != self._size:
            raise self._mismatch(f"{self._added} bytes, and not {self._size}")
        found = self._hasher.digests().sha256
        if found != self._sha256:
            raise self._mismatch(f"those of {found.hex()}")

    def checked_object(self, digest: Digest) -> LfsObject:
        """Return the object, whose file digest is `digest`. Raises ObjectMismatch."""
        self.check()
        return LfsObject(self._sha256, digest, self._size, self._hasher.digests().blob_id, self._crc)

    def _mismatch(self, found: str) -> ObjectMismatch:
        return ObjectMismatch(self._sha256.hex(), found)


class LfsObjects:
    """The LFS objects of one namespace. Its methods raise StorageError, StorageFull."""

    def __init__(self, folders: Path, namespace: str) -> None:
        """`folders` is the folder of all uploads of the repository."""
        self._folder = folders / f"{_FOLDER}{namespace}"

    def keep(self, lfs_object: LfsObject, manifest: bytes) -> None:
        """Remember an object and its encoded manifest, durably."""
        with spooling():
            # Somebody may have removed the spool folder since the server started.
            self._folder.parent.parent.mkdir(mode=0o700, exist_ok=True)
            make_own(self._folder.parent)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomic(self._path(lfs_object.sha256), lfs_object.encode() + b"\n" + manifest)

    def find(self, sha256: bytes) -> LfsObject | None:
        """Return an object that is remembered, or None. One that cannot be read is not remembered."""
        with spooling(), suppress(FileNotFoundError), self._path(sha256).open("rb") as file:
            return parsed_object(sha256, file.readline(HEAD_LIMIT))
        return None

    def find_with_manifest(self, sha256: bytes) -> tuple[LfsObject, Manifest] | None:
        """Return an object that is remembered, and its manifest, or None."""
        with spooling(), suppress(FileNotFoundError):
            return parsed_whole(sha256, self._path(sha256).read_bytes())
        return None

    def _path(self, sha256: bytes) -> Path:
        return self._folder / sha256.hex()


def parsed_whole(sha256: bytes, content: bytes) -> tuple[LfsObject, Manifest] | None:
    """Return an object and its manifest as they are kept, or None if they cannot be read."""
    head, _, encoded = content.partition(b"\n")
    found = parsed_object(sha256, head)
    with suppress(InvalidManifest, LimitExceeded):
        manifest = Manifest.parse(encoded)
        if found is not None and (manifest.digest, manifest.size) == (found.digest, found.size):
            return found, manifest
    return None


def parsed_object(sha256: bytes, text: bytes) -> LfsObject | None:
    """Return an object as it is kept, or None if it cannot be read."""
    with suppress(ValueError, KeyError, TypeError, InvalidDigest):
        return LfsObject.parse(sha256, text)
    return None


def expire_objects(folders: Path, *, idle_seconds: float) -> None:
    """Forget the objects that arrived more than `idle_seconds` ago. Raises OSError."""
    oldest = time.time() - idle_seconds
    for folder in list(folders.glob(f"{_FOLDER}*")):
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process may remove it at the same time
                    if _NAME.match(entry.name) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                        Path(entry.path).unlink()
