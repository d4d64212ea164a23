r"""Manifests: the recipe of a file in one canonical byte form, whose digest is the file digest.

Layout, little-endian; normative text and golden vector: `docs/format.md`, `tests/golden/`:

    offset 0   8 bytes   magic b"FSMANIF\0"
           8   u16       manifest version, 1
          10   u16       cutting version
          12   u32       chunk count
          16   u64       file size
          24   count x (32 bytes digest, u32 size)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, Self

from filestore.digest import DIGEST_SIZE, Buffer, Digest, manifest_digest
from filestore.errors import InvalidManifest, LimitExceeded

MANIFEST_VERSION = 1
MANIFEST_LIMIT = 64 << 20
CHUNK_LIMIT = 4 << 20

_MAGIC = b"FSMANIF\0"
_HEADER = struct.Struct("<8sHHIQ")
_ENTRY = struct.Struct(f"<{DIGEST_SIZE}sI")


class Chunk(NamedTuple):
    """A chunk's digest and its decoded size."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The ordered chunks of a file. Make one with `build` or `parse`: both check, the constructor does not."""

    cutting: int
    chunks: tuple[Chunk, ...]
    size: int
    encoded: bytes = field(repr=False)
    digest: Digest

    @classmethod
    def build(cls, chunks: Iterable[Chunk], *, cutting: int) -> Self:
        """Raises LimitExceeded past 64 MiB of manifest, InvalidManifest for a chunk of an impossible size."""
        kept = tuple(chunks)
        length = _HEADER.size + len(kept) * _ENTRY.size
        if length > MANIFEST_LIMIT:
            raise LimitExceeded("the manifest's size in bytes", length, MANIFEST_LIMIT)
        size = sum(chunk.size for chunk in kept)
        header = _HEADER.pack(_MAGIC, MANIFEST_VERSION, cutting, len(kept), size)
        encoded = header + b"".join(_ENTRY.pack(*_checked(chunk)) for chunk in kept)
        return cls(cutting, kept, size, encoded, manifest_digest(encoded))

    @classmethod
    def parse(cls, encoded: Buffer) -> Self:
        """The manifest that `encoded` is the canonical form of. Raises InvalidManifest, LimitExceeded.

        Cost: about 1 microsecond a chunk.
        """
        raw = bytes(encoded)
        if len(raw) > MANIFEST_LIMIT:
            raise LimitExceeded("the manifest's size in bytes", len(raw), MANIFEST_LIMIT)
        if len(raw) < _HEADER.size:
            raise InvalidManifest("it is shorter than its header")
        magic, version, cutting, count, size = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise InvalidManifest("it does not begin with a manifest's magic bytes")
        if version != MANIFEST_VERSION:
            raise InvalidManifest(f"its version is {version}, this program knows {MANIFEST_VERSION}")
        if len(raw) != _HEADER.size + count * _ENTRY.size:
            raise InvalidManifest(f"it has {len(raw)} bytes, which is not the length that {count} chunks need")
        chunks = tuple(
            _checked(Chunk(Digest(digest), chunk_size)) for digest, chunk_size in _ENTRY.iter_unpack(raw[_HEADER.size :])
        )
        total = sum(chunk.size for chunk in chunks)
        if total != size:
            raise InvalidManifest(f"its chunks add up to {total} bytes, it says {size}")
        return cls(cutting, chunks, size, raw, manifest_digest(raw))

    def offsets(self) -> Iterator[int]:
        """The offset of each chunk in the file, in order."""
        yield from accumulate((chunk.size for chunk in self.chunks[:-1]), initial=0) if self.chunks else ()


def _checked(chunk: Chunk) -> Chunk:
    if not 0 < chunk.size <= CHUNK_LIMIT:
        raise InvalidManifest(f"chunk {chunk.digest} has {chunk.size} bytes, allowed are 1 to {CHUNK_LIMIT}")
    return chunk
