"""Chunks, frames and manifests to push and to check, from portable content."""

from __future__ import annotations

from collections.abc import Iterable

from filestore.core.digest import Buffer, Digest, chunk_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import HEADER_SIZE, Codec, Decoder, Encoder, Frame, frame_limit
from tests.support.generator import octets


def contents(count: int, *, size: int = 1000, seed: int = 0) -> list[bytes]:
    """`count` chunks of `size` bytes, all different; other seeds give others."""
    return [octets(1000 * seed + number, size) for number in range(count)]


def encoded(content: bytes, *, codec: Codec | None = None) -> Frame:
    """The frame of a chunk."""
    out = bytearray(frame_limit(len(content)))
    size = Encoder(codec=codec).encode(memoryview(content), memoryview(out))
    return Frame(chunk_digest(content), bytes(out[:size]))


def frames(count: int, *, size: int = 1000, seed: int = 0) -> list[Frame]:
    """The frames of `contents`."""
    return [encoded(content) for content in contents(count, size=size, seed=seed)]


def decoded(digest: Digest, data: Buffer) -> bytes:
    """The content of a frame, which is verified."""
    return bytes(Decoder().decode(Frame(digest, data), memoryview(bytearray(CHUNK_LIMIT))))


def manifest(chunks: Iterable[bytes], *, chunking_version: int = CHUNKING_VERSION) -> Manifest:
    """The manifest of a file that was cut into `chunks`."""
    return Manifest.build((Chunk(chunk_digest(content), len(content)) for content in chunks), chunking_version=chunking_version)


def buffer_for(count: int) -> memoryview:
    """A buffer for that many frames of any size."""
    return memoryview(bytearray(count * (CHUNK_LIMIT + HEADER_SIZE)))
