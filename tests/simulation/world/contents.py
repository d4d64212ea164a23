"""The content of the files of a simulation: small files of a few blocks, which many files share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest.mock import patch

from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION, chunker
from filestore.repository import removal
from filestore.repository.maintenance import collect
from filestore.system import retries
from filestore.transfer.schedule import TransferOptions

BLOCK_COUNT = 12
"""How many blocks there are. Files share them, so that a removal and a push often need the same chunk."""
_BLOCK_SIZE = 3 << 10

OPTIONS = TransferOptions(batches_in_flight=2, batch_size=9 << 10, extent_min=6 << 10, copy_size=4 << 10, sync_size=8 << 10)
"""Sizes of fetches that make several batches of a small file."""

_SIZES = (
    (chunker, "_CHUNK_MIN", 1 << 10),
    (chunker, "_CHUNK_AVERAGE", 2 << 10),
    (chunker, "CHUNK_LIMIT", 8 << 10),
    (collect, "_ROWS_AT_ONCE", 64),
    (collect, "_REMOVED_AT_ONCE", 1),
    (collect, "_RECORDS_AT_ONCE", 4),
    (removal, "_SLICE", 3),
    (removal, "_REMOVED_AT_ONCE", 3),
    (removal, "_RECORDS_AT_ONCE", 4),
    (retries, "LONGEST_PAUSE_SECONDS", 0.05),
)
"""Sizes and pauses of the product that are made small, so that a few KiB and milliseconds take the ways of GiB and hours."""


@contextmanager
def small_sizes() -> Iterator[None]:
    """Make chunks of about 2 KiB, and pages of a few rows."""
    with ExitStack() as stack:
        for module, name, size in _SIZES:
            stack.enter_context(patch.object(module, name, size))
        yield


@cache
def _block(number: int) -> bytes:
    chosen = random.Random(number)
    # Every third block can be compressed, so that frames of both kinds are stored.
    return chosen.randbytes(_BLOCK_SIZE) if number % 3 else chosen.randbytes(16) * (_BLOCK_SIZE // 16)


def content_of(blocks: Sequence[int], *, tag: str) -> bytes:
    """Return the content of a file: some of the blocks, and at its end a text that no other file has."""
    return b"".join(map(_block, blocks)) + tag.encode().ljust(64, b".")


def file_digest(content: bytes) -> Digest:
    """Return the digest that a push of `content` must record. Call it while the sizes are small."""
    return manifest_of_content(content).digest


def manifest_of_content(content: bytes) -> Manifest:
    """Return the manifest of a file with this content."""
    chunks = []
    start = 0
    for size in chunker.Chunker().cut(memoryview(content), final=True):
        chunks.append(Chunk(chunk_digest(content[start : start + size]), size))
        start += size
    return Manifest.build(chunks, chunking_version=CHUNKING_VERSION)
