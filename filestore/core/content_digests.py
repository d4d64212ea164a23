"""SHA-256 and git's blob id of the content of a file: the digests that clients of other stores compare.

Source: FIPS 180-4, sections 6.1 and 6.2; git's documentation, "Git Objects" (the header of a blob).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Self

from filestore.core.digest import Buffer

SHA256_SIZE = 32
BLOB_ID_SIZE = 20
PACKED_SIZE = SHA256_SIZE + BLOB_ID_SIZE
BLOB_ID_LIMIT = 16 << 20
"""Only a content of at most so many bytes gets its blob id. Clients compare larger ones by SHA-256, and SHA-1 takes as long."""
NO_BLOB_ID = bytes(BLOB_ID_SIZE)
"""Stands for the blob id of a larger content."""


class FileDigests(NamedTuple):
    """The two digests of the content of a file."""

    sha256: bytes
    """32 bytes."""
    blob_id: bytes
    """The 20 bytes of SHA-1 of `blob SIZE`, a zero byte, and the content. NO_BLOB_ID above BLOB_ID_LIMIT."""

    @classmethod
    def unpack(cls, packed: Buffer, number: int) -> Self:
        """Return the digests with this number of those that `packed` holds, one behind the other."""
        raw = bytes(packed[number * PACKED_SIZE : (number + 1) * PACKED_SIZE])
        if len(raw) != PACKED_SIZE:
            raise IndexError(number)
        return cls(raw[:SHA256_SIZE], raw[SHA256_SIZE:])

    @property
    def packed(self) -> bytes:
        """Both digests, one behind the other."""
        return self.sha256 + self.blob_id


class ContentHasher:
    """Computes the digests of a content of known size that is given in pieces, in order."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        has_blob_id = size <= BLOB_ID_LIMIT
        self._blob_id = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if has_blob_id else None
        self._left = size

    def update(self, content: Buffer) -> None:
        """Take the next piece. From 2 KiB on, this gives up the interpreter lock."""
        self._sha256.update(content)
        if self._blob_id is not None:
            self._blob_id.update(content)
        self._left -= len(content)

    def digests(self) -> FileDigests:
        """Return the digests of the whole content. Raises ValueError if it has another size."""
        if self._left:
            raise ValueError(f"{self._left} bytes are missing")
        return FileDigests(self._sha256.digest(), NO_BLOB_ID if self._blob_id is None else self._blob_id.digest())


EMPTY = ContentHasher(0).digests()
"""The digests of a file without content."""
