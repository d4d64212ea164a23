"""Cutting decides where a file is cut into chunks, from its bytes alone, in one pass forward, without I/O.

It has two steps. Segments follow the file's own structure (`containers`), so that equal tensors and equal entries are
cut alike at any position. Inside a segment the content decides (`chunker`). Normative text: `docs/format.md`.
"""

from filestore.format.chunking.chunker import CHUNKING_VERSION, CUT_MARGIN, LOOKAHEAD, Chunker

__all__ = ["CHUNKING_VERSION", "CUT_MARGIN", "LOOKAHEAD", "Chunker"]
