from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from filestore.core.digest import Digest, chunk_digest
from filestore.format.chunking import Chunker
from filestore_cli.bench.content import make

KINDS = ["bf16", "fp32", "random", "text"]


def chunks(content: bytes) -> set[Digest]:
    """The digests of its chunks."""
    found: set[Digest] = set()
    start = 0
    for size in Chunker().cut(memoryview(content), final=True):
        found.add(chunk_digest(content[start : start + size]))
        start += size
    assert len(content) == start
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64 << 10, 1_000_003])
def test_content_has_the_size_that_was_asked_for(tmp_path: Path, kind: str, size: int) -> None:
    """The size is exact, and the same number of bytes is reported."""
    told: list[int] = []
    make(kind, tmp_path / "content", size=size, seed=1, done=told.append)
    assert [size, size] == [(tmp_path / "content").stat().st_size, sum(told)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_shares_no_chunk(tmp_path: Path, kind: str) -> None:
    """Contents of two seeds have no common chunk except a header, so that measured content is always moved."""
    for seed in (1, 2):
        make(kind, tmp_path / str(seed), size=4 << 20, seed=seed)
    first, second = (chunks((tmp_path / str(seed)).read_bytes()) for seed in (1, 2))
    # The header of a safetensors file is a segment of its own, and says the same.
    assert len(first & second) <= (kind in {"bf16", "fp32"})
    assert len(first) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_weights_are_safetensors(tmp_path: Path, kind: str) -> None:
    """Another program reads them; one tensor more begins every 32 MiB."""
    make(kind, tmp_path / "content", size=(32 << 20) + 100_000, seed=1)
    with safe_open(tmp_path / "content", framework="numpy") as file:
        assert ["layers.0.weight", "layers.1.weight"] == sorted(file.keys())


@pytest.mark.slow
def test_a_tree_has_small_files_and_big_ones(tmp_path: Path) -> None:
    """Of as many bytes as were asked for."""
    make("tree", tmp_path / "tree", size=2_000_001, seed=1)
    sizes = [path.stat().st_size for path in (tmp_path / "tree").rglob("*.bin")]
    assert 2_000_001 == sum(sizes)
    assert [250_000] * 4 == [size for size in sizes if size > 64 << 10]
    assert len(sizes) > 20
