"""Cutting: where a file is cut into chunks, from its bytes alone, going forward, without I/O.

Two steps. Segments follow the file's own structure (`containers`), so that equal tensors and equal entries are cut alike
wherever they stand; inside a segment the content decides (`chunker`). Normative text: `docs/format.md`.
"""

from filestore.format.chunking.chunker import CHUNKING_VERSION, LOOKAHEAD, Chunker

__all__ = ["CHUNKING_VERSION", "LOOKAHEAD", "Chunker"]
