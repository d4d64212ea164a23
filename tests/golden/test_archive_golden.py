"""The zip of a tree is pinned to the byte: a test that fails here means a change of format."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO

import pytest

from tests.support.archives import GOLDEN, golden_trees, golden_vector, zip_of
from tests.support.chunking import manifest_of

VECTORS = json.loads(GOLDEN.read_text())
TREES = golden_trees()


@pytest.mark.parametrize("name", VECTORS)
def test_zip_of_a_tree_is_its_vector(name: str) -> None:
    """Bytes, chunks and file digest; chunks are those of the tree cutter."""
    assert VECTORS[name] == golden_vector(*TREES[name])


@pytest.mark.parametrize("name", VECTORS)
def test_vector_is_the_zip_as_one_file(name: str) -> None:
    """A pusher that has the zip as a file gives it the same digest."""
    assert VECTORS[name]["file"] == str(manifest_of(zip_of(*TREES[name])).digest)


def test_committed_bytes_are_a_zip_file() -> None:
    """What stands in the vectors is read by the standard library."""
    with zipfile.ZipFile(BytesIO(bytes.fromhex(VECTORS["small"]["bytes"]))) as archive:
        assert archive.testzip() is None
        assert ["a.txt", "a/link", "a/run.sh", "b.txt", "empty/", "größe/naïve.txt"] == archive.namelist()


def test_vectors_are_of_all_trees() -> None:
    """Nothing was added without a vector."""
    assert set(TREES) == set(VECTORS)
