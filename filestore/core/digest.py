"""Digests: 32 bytes of BLAKE3-256 that name content.

Source: BLAKE3 specification, https://github.com/BLAKE3-team/BLAKE3-specs (hash and derive-key modes).
"""

from __future__ import annotations

import re
import struct
from typing import Self, TypeAlias

from blake3 import blake3

from filestore.errors import InvalidDigest

Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_SIZE = 32
DIGEST_AND_NUMBER = struct.Struct(f"<{DIGEST_SIZE}sI")
"""32 bytes and a u32: a chunk and its size, in manifests, in batches and in what is kept of many chunks."""
_HEX = re.compile(r"[0-9a-f]{64}\Z")

_MANIFEST_CONTEXT = "filestore 2026-11-24 manifest"
_TOKEN_CONTEXT = "filestore 2026-11-24 token"  # noqa: S105  # a public context string, no password


class Digest(bytes):
    """32 bytes of BLAKE3-256; ``str()`` gives 64 lower-case hexadecimal digits."""

    __slots__ = ()

    def __new__(cls, raw: Buffer) -> Self:
        """Raises InvalidDigest unless `raw` is 32 bytes long."""
        if len(raw) != DIGEST_SIZE:
            raise InvalidDigest(bytes(raw).hex())
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest that `text`, 64 lower-case hexadecimal digits, stands for. Raises InvalidDigest."""
        if not _HEX.match(text):
            raise InvalidDigest(text)
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Digest({self.hex()!r})"


def chunk_digest(content: Buffer) -> Digest:
    """The digest of a chunk's decoded bytes."""
    return Digest(blake3(content).digest())


def manifest_digest(manifest: Buffer) -> Digest:
    """The digest of a manifest's canonical bytes: the file digest.

    Derive-key mode with a context of its own, so that no chunk can pass for a manifest.
    """
    return Digest(blake3(manifest, derive_key_context=_MANIFEST_CONTEXT).digest())


def token_digest(token: str) -> Digest:
    """The form in which a token is kept; the token itself never is."""
    # A header may hold any bytes: those that are no UTF-8 arrive as lone surrogates, and make an unknown token, not a failure.
    return Digest(blake3(token.encode("utf-8", "surrogatepass"), derive_key_context=_TOKEN_CONTEXT).digest())


def parse_digests(raw: Buffer) -> list[Digest]:
    """The digests that stand back to back in `raw`. Raises InvalidDigest for a torn last one."""
    view = bytes(raw)
    return [Digest(view[start : start + DIGEST_SIZE]) for start in range(0, len(view), DIGEST_SIZE)]
