"""Digests: 32 bytes of BLAKE3-256 that name content.

Source: BLAKE3 specification, https://github.com/BLAKE3-team/BLAKE3-specs (hash and derive-key modes).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Self, TypeAlias

from blake3 import blake3

from filestore.core.unlocked import unlocked
from filestore.errors import InvalidDigest

Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_SIZE = 32
DIGEST_AND_NUMBER = struct.Struct(f"<{DIGEST_SIZE}sI")
"""The layout of a digest (32 bytes) and a number (u32). Manifests, batches and packed rows of chunks use it."""
_HEX = re.compile(r"[0-9a-f]{64}\Z")

_MANIFEST_CONTEXT = "filestore 2026-11-24 manifest"
_TOKEN_CONTEXT = "filestore 2026-11-24 token"  # noqa: S105  # a public context string, no password


class Digest(bytes):
    """A BLAKE3-256 digest of 32 bytes. ``str()`` returns it as 64 lower-case hexadecimal digits."""

    __slots__ = ()

    def __new__(cls, raw: Buffer) -> Self:
        """Make a digest from 32 bytes. Raises InvalidDigest if `raw` has another length."""
        if len(raw) != DIGEST_SIZE:
            raise InvalidDigest(bytes(raw).hex())
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Convert 64 lower-case hexadecimal digits to a digest. Raises InvalidDigest for any other text."""
        if not _HEX.match(text):
            raise InvalidDigest(text)
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Digest({self.hex()!r})"


def chunk_digest(content: Buffer) -> Digest:
    """Return the digest of a chunk's decoded bytes."""
    return Digest(unlocked(blake3, content).digest())


def chunk_digests(contents: Sequence[Buffer]) -> list[Digest]:
    """Return the digest of each chunk. It takes less of the interpreter lock than `chunk_digest` for each.

    A MiB of data replaces what the processor had in its cache, so there is little to do between two hashes.
    """
    hashes = [unlocked(blake3, content) for content in contents]
    return [Digest(each.digest()) for each in hashes]


def manifest_digest(manifest: Buffer) -> Digest:
    """Return the digest of a manifest's canonical bytes: the file digest.

    It is computed in the derive-key mode of BLAKE3. So a chunk with the same bytes has another digest.
    """
    return Digest(blake3(manifest, derive_key_context=_MANIFEST_CONTEXT).digest())


class ManifestHasher:
    """Computes the digest of a manifest that is read in pieces, as `manifest_digest` does of a whole one."""

    def __init__(self) -> None:
        self._hasher = blake3(derive_key_context=_MANIFEST_CONTEXT)

    def update(self, piece: Buffer) -> None:
        """Add the next bytes of the manifest."""
        self._hasher.update(piece)

    def digest(self) -> Digest:
        """Return the digest of all bytes so far."""
        return Digest(self._hasher.digest())


def token_digest(token: str) -> Digest:
    """Return the digest of a token. The repository stores this digest, and never the token itself."""
    # A header may have any bytes. Bytes that are not UTF-8 arrive as lone surrogates: such a token is unknown, and not
    # a failure.
    return Digest(blake3(token.encode("utf-8", "surrogatepass"), derive_key_context=_TOKEN_CONTEXT).digest())


def parse_digests(raw: Buffer) -> list[Digest]:
    """Split `raw` into digests of 32 bytes, which follow each other without gaps.

    Raises InvalidDigest if the last digest has fewer than 32 bytes.
    """
    view = bytes(raw)
    return [Digest(view[start : start + DIGEST_SIZE]) for start in range(0, len(view), DIGEST_SIZE)]
