"""Make the golden vectors of `tests/golden/`.

`python -m tests.support.golden` writes them again, which is a change of the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from filestore.core.digest import chunk_digest, manifest_digest, token_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.paths import chunk_key, file_path, hashed, manifest_key
from filestore.format.chunking import CHUNKING_VERSION
from tests.support.chunking import boundaries, chunk_sizes, manifest_of
from tests.support.generator import octets, prose
from tests.support.models import (
    GgufValue,
    Tensor,
    ZipEntry,
    gguf_file,
    safetensors_file,
    safetensors_from_header,
    tensor,
    torch_file,
    zip_file,
)

FOLDER = Path(__file__).parent.parent / "golden"

Vector = dict[str, object]


def weights() -> list[Tensor]:
    """Return tensors whose sizes are at, above and below the least size of a segment.

    They have 300,000, 28, 262,144, 262,143 and 8,000 bytes.
    """
    return [
        tensor("blocks.0.weight", 300, 500, seed=10),
        tensor("blocks.0.bias", 7, seed=11, dtype="F32"),
        tensor("blocks.1.weight", 512, 256, seed=12, dtype="BF16"),
        tensor("blocks.2.weight", 3, 87381, seed=13, dtype="I8"),
        tensor("head.weight", 50, 40, seed=14, dtype="F32"),
    ]


def _safetensors() -> bytes:
    large = tensor("embedding.weight", 3000, 600, seed=15)
    return safetensors_file([large, *weights()], metadata={"format": "pt", "note": 'a "quoted" ä'})


def _gguf() -> bytes:
    blocks = Tensor("output.weight", "Q8_0", (280, 1024), octets(16, 280 * 1024 // 32 * 34))
    words = [f"token{number}" for number in range(300)]
    metadata: dict[str, GgufValue] = {
        "general.architecture": "llama",
        "tokens": words,
        "kinds": [1, 2, 3],
        "rate": 0.5,
        "flag": True,
    }
    return gguf_file([blocks, *weights()], metadata=metadata, alignment=64)


def _zip() -> bytes:
    return zip_file(
        [
            ZipEntry("small.txt", prose(20, 4000)),
            ZipEntry("large.txt", prose(21, 300_000)),
            ZipEntry("wide.bin", octets(22, 270_000), wide=True),
            ZipEntry("opaque.bin", safetensors_file(weights()), encrypted=True),
            ZipEntry("last.txt", prose(23, 500)),
        ]
    )


def _nested() -> bytes:
    model = safetensors_file(weights()[:2])
    inner = zip_file([ZipEntry("model.safetensors", model), ZipEntry("readme", prose(24, 100))])
    return zip_file(
        [
            ZipEntry("model.safetensors", model),
            ZipEntry("inner.zip", inner),
            ZipEntry("behind.zip", inner, sizes_behind=True, wide=True),
        ]
    )


def _broken() -> bytes:
    header = b'{"a":{"dtype":"I8","shape":[300000],"data_offsets":[0,300000]},'
    header += b'"b":{"dtype":"I8","shape":[300000],"data_offsets":[299999,599999]}}'
    return safetensors_from_header(header, octets(25, 600_000))


CHUNKING_INPUTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "random": lambda: octets(1, 6 << 20),
    "text": lambda: prose(2, 6 << 20),
    "zeros": lambda: bytes(9 << 20),
    "safetensors": _safetensors,
    "gguf": _gguf,
    "zip": _zip,
    "torch": lambda: torch_file(weights()),
    "nested": _nested,
    "broken": _broken,
}


def chunking_vector(content: bytes) -> Vector:
    """Return one entry of `tests/golden/cutting.json`."""
    return {
        "size": len(content),
        "content": str(chunk_digest(content)),
        "boundaries": boundaries(content, [len(content)]),
        "chunks": chunk_sizes(content, [len(content)]),
        "file": str(manifest_of(content).digest),
    }


def digest_vectors() -> Vector:
    """Return the content of `tests/golden/digests.json`: each kind of digest of the same bytes."""
    texts = ["", "filestore", "x" * 1025]
    return {
        text: {
            "chunk": str(chunk_digest(text.encode())),
            "manifest": str(manifest_digest(text.encode())),
            "token": str(token_digest(text)),
        }
        for text in texts
    }


def manifest_vector() -> Vector:
    """Return the content of `tests/golden/manifest.json`: two chunks, and their manifest."""
    chunks = [Chunk(chunk_digest(content), len(content)) for content in (octets(30, 300_000), octets(31, 5))]
    manifest = Manifest.build(chunks, chunking_version=CHUNKING_VERSION)
    return {
        "cutting": CHUNKING_VERSION,
        "chunks": [[str(digest), size] for digest, size in chunks],
        "size": manifest.size,
        "encoded": manifest.encoded.hex(),
        "digest": str(manifest.digest),
    }


def layout_vector() -> Vector:
    """Return the content of `tests/golden/layout.json`: every key of one digest."""
    digest = chunk_digest(b"filestore")
    return {
        "digest": str(digest),
        "hashed": hashed(digest),
        "chunk_key": chunk_key("default", digest),
        "manifest_key": manifest_key("default", digest),
        "file_path": file_path(digest, "my model.bin"),
    }


def read(name: str) -> Vector:
    """Return the content of a committed vector file."""
    vector: Vector = json.loads((FOLDER / name).read_text())
    return vector


def _write(name: str, vector: Vector) -> None:
    (FOLDER / name).write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    _write("cutting.json", {name: chunking_vector(make()) for name, make in CHUNKING_INPUTS.items()})
    _write("digests.json", digest_vectors())
    _write("manifest.json", manifest_vector())
    _write("layout.json", layout_vector())
