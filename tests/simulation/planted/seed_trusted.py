"""Fault: a chunk of a seed is written to the file that is fetched without a look at its digest.

What prevents it: `_copied` in `filestore/transfer/receiver.py` computes the digest of each chunk that it reads from a
seed (I4), and receives the chunk if it is another one.

What finds it: the check that a fetched file has the bytes that were pushed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.transfer import receiver
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Trust what a seed has at the offset of a chunk."""
    return rewritten_function(receiver, "_copied", old="if chunk_digest(content) == place.chunk.digest:", new="if content:")
