"""Make chunks, frames and manifests of portable content, to push and to check."""

from __future__ import annotations

from collections.abc import Iterable

from filestore.core.digest import Buffer, Digest, chunk_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import HEADER_SIZE, Codec, Decoder, Encoder, Frame, frame_limit
from tests.support.generator import octets


def contents(count: int, *, size: int = 1000, seed: int = 0) -> list[bytes]:
    """Return `count` different chunks of `size` bytes. Another seed gives other chunks."""
    return [octets(1000 * seed + number, size) for number in range(count)]


def encoded(content: bytes, *, codec: Codec | None = None) -> Frame:
    """Return the frame of a chunk."""
    out = bytearray(frame_limit(len(content)))
    size = Encoder(codec=codec).encode(memoryview(content), memoryview(out))
    return Frame(chunk_digest(content), bytes(out[:size]))


def frames(count: int, *, size: int = 1000, seed: int = 0) -> list[Frame]:
    """Return the frames of `contents`."""
    return [encoded(content) for content in contents(count, size=size, seed=seed)]


def decoded(digest: Digest, data: Buffer) -> bytes:
    """Return the content of a frame, after verification."""
    return bytes(Decoder().decode(Frame(digest, data), memoryview(bytearray(CHUNK_LIMIT))))


def manifest(chunks: Iterable[bytes], *, chunking_version: int = CHUNKING_VERSION) -> Manifest:
    """Return the manifest of a file that was cut into `chunks`."""
    return Manifest.build((Chunk(chunk_digest(content), len(content)) for content in chunks), chunking_version=chunking_version)


def buffer_for(count: int) -> memoryview:
    """Return a buffer for that many frames of any size."""
    return memoryview(bytearray(count * (CHUNK_LIMIT + HEADER_SIZE)))
