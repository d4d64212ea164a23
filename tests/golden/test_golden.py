from __future__ import annotations

from typing import Any

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.paths import parse_file_path, unhashed
from tests.support.chunking import boundaries, chunk_sizes, pieces
from tests.support.golden import CHUNKING_INPUTS, chunking_vector, digest_vectors, layout_vector, manifest_vector, read

CHUNKING: dict[str, Any] = read("cutting.json")
PIECES = (1, 37, 255)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHUNKING_INPUTS)
def test_chunking(name: str) -> None:
    """Given whole: the input, its boundaries, chunks and file digest are those of the committed vector."""
    assert CHUNKING[name] == chunking_vector(CHUNKING_INPUTS[name]())


def test_every_vector_has_an_input() -> None:
    """No committed vector is left out of the tests."""
    assert list(CHUNKING) == list(CHUNKING_INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("name", CHUNKING_INPUTS)
def test_chunks_of_pieces(name: str, size: int) -> None:
    """Given in pieces: the same chunks."""
    content = CHUNKING_INPUTS[name]()
    assert CHUNKING[name]["chunks"] == chunk_sizes(content, pieces(size, whole=len(content)))


@pytest.mark.slow
@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("name", CHUNKING_INPUTS)
def test_boundaries_of_pieces(name: str, size: int) -> None:
    """Given in pieces: the same boundaries."""
    content = CHUNKING_INPUTS[name]()
    assert CHUNKING[name]["boundaries"] == boundaries(content, pieces(size, whole=len(content)))


def test_digests() -> None:
    """Each kind of digest has a value of its own for the same bytes, the same on every machine."""
    vectors: dict[str, Any] = read("digests.json")
    assert vectors == digest_vectors()
    assert all(len(set(kinds.values())) == 3 for kinds in vectors.values())


def test_manifest() -> None:
    """The canonical bytes are those committed, both ways."""
    vector: dict[str, Any] = read("manifest.json")
    assert vector == manifest_vector()
    parsed = Manifest.parse(bytes.fromhex(vector["encoded"]))
    assert tuple(Chunk(Digest.parse(digest), size) for digest, size in vector["chunks"]) == parsed.chunks
    assert (vector["cutting"], vector["size"], vector["digest"]) == (parsed.chunking_version, parsed.size, str(parsed.digest))


def test_layout() -> None:
    """Every key is the one committed, and leads back to its digest."""
    vector: dict[str, Any] = read("layout.json")
    assert vector == layout_vector()
    digest = Digest.parse(vector["digest"])
    assert digest == unhashed(vector["hashed"])
    assert (digest, "my model.bin") == parse_file_path(vector["file_path"])
