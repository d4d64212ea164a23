"""Write the model of docs/tour.md: a folder with weights in a safetensors file of 50 MB, the same bytes each time.

Usage: `python tour_model.py FOLDER [--train LAYER]`. With `--train`, the weights of this layer, 0 to 11, are other ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

LAYERS = 12
ROWS, COLUMNS = 2048, 1024
EXPONENTS = bytes(60 - (bits & -bits).bit_length() if bits else 52 for bits in range(256))
"""The upper byte of a bf16 number by a random byte: small weights are common, as in a trained model."""


def weights(seed: str) -> bytes:
    """Return a tensor of random bf16 numbers, which depends on nothing but the seed."""
    numbers = bytearray(hashlib.shake_128(seed.encode()).digest(2 * ROWS * COLUMNS))
    numbers[1::2] = numbers[1::2].translate(EXPONENTS)
    return bytes(numbers)


def write(folder: Path, trained: int | None) -> None:
    """Write both files of the model into the folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 * ROWS * COLUMNS
    header = {
        f"layer.{number}.weight": {
            "dtype": "BF16",
            "shape": [ROWS, COLUMNS],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(LAYERS)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(LAYERS):
            file.write(weights(f"{number} trained" if number == trained else f"{number}"))
    (folder / "config.json").write_text(f'{{"layers": {LAYERS}}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, metavar="LAYER", choices=range(LAYERS))
    arguments = parser.parse_args()
    write(arguments.folder, arguments.train)
