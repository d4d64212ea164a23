r"""Manifests. A manifest lists the chunks of a file in order.

A manifest has exactly one encoding, its canonical form. The digest of these bytes is the digest of the file.

The layout is little-endian. `docs/format.md` is normative, and `tests/golden/` has a vector:

    offset 0   8 bytes   magic b"FSMANIF\0"
           8   u16       manifest version, 1
          10   u16       cutting version
          12   u32       chunk count
          16   u64       file size
          24   count x (32 bytes digest, u32 size)
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, overload

from filestore.core.digest import DIGEST_AND_NUMBER, DIGEST_SIZE, Buffer, Digest, manifest_digest
from filestore.errors import InvalidManifest, LimitExceeded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST_VERSION = 1
MANIFEST_LIMIT = 64 << 20
CHUNK_LIMIT = 4 << 20

_MAGIC = b"FSMANIF\0"
_HEADER = struct.Struct("<8sHHIQ")
HEADER_SIZE = _HEADER.size
_ENTRY_SIZE = struct.Struct(f"<{DIGEST_SIZE}xI")
_VERSION_LIMIT = 1 << 16
MANY_CHUNKS = 8192
"""From this number of chunks on, arrays are used: these are 50 times faster. Below it, an import of numpy costs more."""


class Chunk(NamedTuple):
    """A chunk's digest and its decoded size."""

    digest: Digest
    size: int


class Chunks(Sequence[Chunk]):
    """The chunks of a manifest, as a sequence.

    A `Chunk` object is made only when it is read, because two million objects would take 400 MiB of memory (I6).
    """

    __slots__ = ("_entries",)
    __hash__ = None  # type: ignore[assignment]  # equal to any sequence of the same chunks, so hashed as none

    def __init__(self, encoded: bytes) -> None:
        """Read the chunks of `encoded`, which must be a complete manifest that was checked before."""
        self._entries = memoryview(encoded)[_HEADER.size :]

    def __len__(self) -> int:
        return len(self._entries) // DIGEST_AND_NUMBER.size

    def __iter__(self) -> Iterator[Chunk]:
        for digest, size in DIGEST_AND_NUMBER.iter_unpack(self._entries):
            yield Chunk(Digest(digest), size)

    @overload
    def __getitem__(self, place: int) -> Chunk: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Chunk, ...]: ...
    def __getitem__(self, place: int | slice) -> Chunk | tuple[Chunk, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(len(self))[place])
        digest, size = DIGEST_AND_NUMBER.unpack_from(self._entries, range(len(self))[place] * DIGEST_AND_NUMBER.size)
        return Chunk(Digest(digest), size)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Chunks):
            return self._entries == other._entries
        if isinstance(other, Sequence):
            return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))
        return NotImplemented

    def between(self, start: int, stop: int) -> Chunks:
        """Return the chunks with the numbers from `start` to `stop`. They share the table of these."""
        part = Chunks(b"")
        part._entries = self._entries[start * DIGEST_AND_NUMBER.size : stop * DIGEST_AND_NUMBER.size]
        return part

    def detached(self) -> Chunks:
        """Return the same chunks in a table of their own, so that a few of them do not keep a long table in memory."""
        copy = Chunks(b"")
        copy._entries = memoryview(bytes(self._entries))
        return copy

    @property
    def encoded(self) -> memoryview:
        """The encoded table of the chunks, with 36 bytes for each chunk.

        For millions of chunks, it is faster to read this table than to make the objects.
        """
        return self._entries

    def sizes(self) -> Iterator[int]:
        """Yield the sizes of the chunks. This is five times faster than to read the chunks."""
        return (size for (size,) in _ENTRY_SIZE.iter_unpack(self._entries))

    def size_at(self, place: int) -> int:
        """Return the size of one chunk. This is faster than to read the chunk."""
        (size,) = _ENTRY_SIZE.unpack_from(self._entries, place * DIGEST_AND_NUMBER.size)
        return int(size)

    def total_size(self) -> int:
        """Return the sum of the sizes. Raises InvalidManifest if the size of a chunk is not allowed."""
        if len(self) >= MANY_CHUNKS:
            sizes = self.size_array()
            if sizes.min() > 0 and sizes.max() <= CHUNK_LIMIT:
                return int(sizes.sum(dtype="u8"))
        total = 0
        for place, size in enumerate(self.sizes()):
            if not 0 < size <= CHUNK_LIMIT:
                _check_size(self[place].digest, size)
            total += size
        return total

    def size_array(self) -> NDArray[np.uint32]:
        """Return the sizes as an array, which is a view of the table."""
        import numpy as np  # noqa: PLC0415  # heavy

        return np.frombuffer(self._entries, [("digest", f"V{DIGEST_SIZE}"), ("size", "<u4")])["size"]

    def row_array(self) -> NDArray[np.uint8]:
        """Return the table as an array of bytes, which is a view of it. A row is a digest, and then the size in 4 bytes."""
        import numpy as np  # noqa: PLC0415  # heavy

        return np.frombuffer(self._entries, np.uint8).reshape(-1, DIGEST_AND_NUMBER.size)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The ordered chunks of a file. Make one with `build` or `parse`: they check it, and the constructor does not."""

    chunking_version: int
    chunks: Chunks = field(repr=False, compare=False)
    size: int
    encoded: bytes = field(repr=False)
    digest: Digest

    @classmethod
    def build(cls, chunks: Iterable[Chunk], *, chunking_version: int) -> Self:
        """Make the manifest of these chunks.

        Raises LimitExceeded if the manifest is larger than 64 MiB. Raises InvalidManifest if the size of a chunk or the
        cutting version is not allowed.
        """
        if not 0 <= chunking_version < _VERSION_LIMIT:
            raise InvalidManifest(f"its cutting version is {chunking_version}, allowed are 0 to {_VERSION_LIMIT - 1}")
        encoded = bytearray(_HEADER.size)
        size = 0
        for digest, chunk_size in chunks:
            _check_size(digest, chunk_size)
            encoded += DIGEST_AND_NUMBER.pack(digest, chunk_size)
            size += chunk_size
            _check_length(len(encoded))
        count = (len(encoded) - _HEADER.size) // DIGEST_AND_NUMBER.size
        _HEADER.pack_into(encoded, 0, _MAGIC, MANIFEST_VERSION, chunking_version, count, size)
        return cls._of(bytes(encoded), chunking_version=chunking_version, size=size)

    @classmethod
    def parse(cls, encoded: Buffer) -> Self:
        """Parse the canonical form of a manifest.

        Raises InvalidManifest for any other bytes, and LimitExceeded if there are more than 64 MiB. It takes about 0.2
        microseconds for each chunk, and the memory for one copy of `encoded`.
        """
        _check_length(len(encoded))
        raw = bytes(encoded)
        if len(raw) < _HEADER.size:
            raise InvalidManifest("it is shorter than its header")
        magic, version, chunking_version, count, size = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise InvalidManifest("it does not begin with a manifest's magic bytes")
        if version != MANIFEST_VERSION:
            raise InvalidManifest(f"its version is {version}, and this program knows version {MANIFEST_VERSION}")
        if len(raw) != _HEADER.size + count * DIGEST_AND_NUMBER.size:
            raise InvalidManifest(f"it has {len(raw)} bytes, which is not the length that {count} chunks need")
        manifest = cls._of(raw, chunking_version=chunking_version, size=size)
        total = manifest.chunks.total_size()
        if total != size:
            raise InvalidManifest(f"its chunks add up to {total} bytes, it says {size}")
        return manifest

    @classmethod
    def _of(cls, encoded: bytes, *, chunking_version: int, size: int) -> Self:
        return cls(chunking_version, Chunks(encoded), size, encoded, manifest_digest(encoded))

    def offsets(self) -> Iterator[int]:
        """Yield the offset of each chunk in the file, in order."""
        offset = 0
        for size in self.chunks.sizes():
            yield offset
            offset += size

    def offset_table(self) -> Sequence[int]:
        """Return the offset of each chunk in the file, in order. An offset has 8 bytes, and becomes an object when it is read."""
        if len(self.chunks) < MANY_CHUNKS:
            return array("q", self.offsets())
        import numpy as np  # noqa: PLC0415  # heavy

        sizes = self.chunks.size_array()
        offsets = np.zeros(len(self.chunks), np.int64)
        # In slices, since numpy would make a copy of all sizes with 8 bytes each.
        for start in range(0, len(offsets) - 1, MANY_CHUNKS):
            stop = min(start + MANY_CHUNKS, len(offsets) - 1)
            np.cumsum(sizes[start:stop], out=offsets[start + 1 : stop + 1])
            offsets[start + 1 : stop + 1] += offsets[start]
        return offsets.data


def stated_size(header: Buffer) -> int:
    """Return the file size that the header of a manifest gives. Nothing is checked except the length of `header`.

    Raises InvalidManifest if `header` is too short.
    """
    if len(header) < HEADER_SIZE:
        raise InvalidManifest("it is shorter than its header")
    return int(_HEADER.unpack_from(header)[-1])


def stated_count(header: Buffer) -> int:
    """Return the number of chunks that the header of a manifest gives, as `stated_size` does."""
    if len(header) < HEADER_SIZE:
        raise InvalidManifest("it is shorter than its header")
    return int(_HEADER.unpack_from(header)[-2])


def _check_size(digest: Digest, size: int) -> None:
    if not 0 < size <= CHUNK_LIMIT:
        raise InvalidManifest(f"chunk {digest} has {size} bytes, allowed are 1 to {CHUNK_LIMIT}")


def _check_length(length: int) -> None:
    if length > MANIFEST_LIMIT:
        raise LimitExceeded("the manifest's size in bytes", length, MANIFEST_LIMIT)
