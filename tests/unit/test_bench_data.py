"""Generated files have the same bytes on every machine, however many threads make them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from bench.data import bf16, write_safetensors

COUNT = 40
SIZE = 1 << 16


@pytest.mark.parametrize(
    ("changed", "fresh", "digest"),
    [
        (0.0, 0, "f4c73d1a37ef3e32acb3c5b52605d7127fe45d9f24806e00129e15009dde8a3a"),
        (0.25, COUNT // 4, "e82a89eb8825c6698617fe006fa3652216879f2286da7b83105c2273b56b2655"),
    ],
)
def test_tensors_are_the_same_in_threads(tmp_path: Path, changed: float, fresh: int, digest: str) -> None:
    """In their order, more of them than threads."""
    path = tmp_path / "weights.safetensors"
    options = {"changed": changed, "header_padding": 480} if changed else {}
    assert fresh * SIZE == write_safetensors(path, size=COUNT * SIZE, tensor_size=SIZE, **options)  # type: ignore[arg-type]
    assert digest == sha256(path.read_bytes()).hexdigest()


def test_a_tensor_is_the_same_in_pieces() -> None:
    """The last piece is shorter."""
    assert "0791e80655e497377813d6723d06fbfea6bbf8a23b65d1bd4d85302eab5727e6" == sha256(bf16(7, 3_000_002)).hexdigest()
