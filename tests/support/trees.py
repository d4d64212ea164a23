"""Make trees on disk from a mapping, from a seed, or as Hugging Face's cache has them; read them back to compare.

root = plant(tmp_path / "model", {"run.sh": Script(b"#!/bin/sh"), "logs": Folder(), "now": Link("run.sh")})
assert standing(root) == {...the same mapping}
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filestore.format.zip.write import Entry
from tests.support.generator import octets, prose
from tests.support.golden import weights
from tests.support.models import safetensors_file

AWKWARD_NAMES = (
    "a b.txt",
    "new\nline",
    "tab\tand\x7f",
    "back\\slash",
    "-dash",
    "*",
    "[x]?",
    "größe.txt",
    "gro\u0308ße.txt",
    "\N{PILE OF POO}.bin",
    "README",
    "readme",
    "x" * 255,
    ".hidden",
    "con",
    "trailing.",
)
"""Names that Linux keeps apart and an archive can hold: spaces, control characters, letter case, Unicode forms."""


@dataclass(frozen=True, slots=True)
class Script:
    """A file that its owner may execute."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Folder:
    """An empty folder."""


Planted = bytes | Script | Link | Folder
"""The thing at a path. Bytes are a file that is not executable."""


def plant(root: Path, things: Mapping[str, Planted]) -> Path:
    """Make a tree with all folders that its paths imply, the root included; return the root. Existing things stay."""
    root.mkdir(parents=True, exist_ok=True)
    for name, thing in things.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match thing:
            case Folder():
                path.mkdir(exist_ok=True)
            case Link(target):
                path.symlink_to(target)
            case Script(content):
                path.write_bytes(content)
                path.chmod(0o755)
            case content:
                path.write_bytes(content)
                path.chmod(0o644)
    return root


def standing(root: Path) -> dict[str, Planted]:
    """Return the things of a tree by path, the inverse of `plant`. Links are not followed."""
    return dict(_standing(root, ""))


def _standing(folder: Path, prefix: str) -> Iterator[tuple[str, Planted]]:
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        if path.is_symlink():
            yield name, Link(str(path.readlink()))
        elif path.is_dir():
            below = dict(_standing(path, f"{name}/"))
            yield from below.items() if below else [(name, Folder())]
        else:
            content = path.read_bytes()
            yield name, Script(content) if path.stat().st_mode & 0o100 else content


def entries_of(things: Mapping[str, Planted]) -> list[Entry]:
    """Return the entries for `things`, links kept, in the order of the archive."""
    entries = []
    for name, thing in things.items():
        match thing:
            case Folder():
                entries.append(Entry(name, is_folder=True))
            case Link(target):
                entries.append(Entry(name, len(target.encode()), target=target))
            case Script(content):
                entries.append(Entry(name, len(content), is_executable=True))
            case content:
                entries.append(Entry(name, len(content)))
    return sorted(entries, key=lambda entry: entry.stored_name)


def random_things(seed: int, *, count: int = 40, large_count: int = 2) -> dict[str, Planted]:
    """Return a tree of `count` files, folders and scripts for `plant`, the same for the same seed.

    Folders are up to 4 deep, some of them empty. Some names are awkward. Small files have 0 to 70,000 bytes, and some
    of them are equal. Another `large_count` files have 256 KiB to 3 MiB; one of them is a safetensors file. There are
    no links.
    """
    rng = random.Random(seed)
    folders = [""]
    things: dict[str, Planted] = {}
    for number in range(count):
        parent = rng.choice(folders)
        name = f"{parent}{rng.choice(AWKWARD_NAMES) if rng.random() < 0.3 else f'{number:03}.txt'}"
        if name in things or f"{name}/" in folders:
            continue
        if rng.random() < 0.2 and parent.count("/") < 4:
            folders.append(f"{name}/")
            continue
        size = rng.choice([0, 1, 100, rng.randrange(2000), rng.randrange(70_000)])
        content = prose(rng.randrange(6), size)
        things[name] = Script(content) if rng.random() < 0.2 else content
    for number in range(large_count):
        content = octets(rng.randrange(1 << 30), rng.randrange(256 << 10, 3 << 20)) if number else safetensors_file(weights())
        things[f"{rng.choice(folders)}large-{number}.safetensors"] = content
    for folder in folders[1:]:
        if not any(name.startswith(folder) for name in [*things, *folders] if name != folder):
            things[folder[:-1]] = Folder()
    return things


def random_tree(root: Path, seed: int, *, count: int = 40, large_count: int = 2) -> Path:
    """Plant `random_things` at `root`; return the root."""
    return plant(root, random_things(seed, count=count, large_count=large_count))


class Snapshot(NamedTuple):
    """A model in Hugging Face's cache."""

    path: Path
    """The folder of the revision. Every file in it is a relative link into `blobs`, a folder next to `snapshots`."""
    contents: dict[str, bytes]
    """The contents of the linked files, by name."""


def snapshot(cache: Path) -> Snapshot:
    """Make a model as `huggingface_hub` keeps it under `cache`: blobs, refs, and one snapshot, with a folder in it."""
    contents = {
        "config.json": prose(1, 700),
        "model.safetensors": safetensors_file(weights()),
        "tokenizer.json": prose(2, 300_000),
        "onnx/model.onnx": octets(3, 400_000),
        "1_Pooling/config.json": prose(4, 200),
    }
    home = cache / "models--sentence-transformers--all-MiniLM-L6-v2"
    revision = octets(5, 20).hex()
    path = home / "snapshots" / revision
    plant(home, {"refs/main": revision.encode()})
    for number, (name, content) in enumerate(contents.items()):
        etag = octets(100 + number, 32).hex()
        plant(home, {f"blobs/{etag}": content})
        plant(path, {name: Link(f"{'../' * (2 + name.count('/'))}blobs/{etag}")})
    return Snapshot(path, contents)


def looped_tree(root: Path) -> Path:
    """Make a tree with circles of links; return the root.

    A circle begins at `self`, `a`, `here`, `folder/up` and `x/to_y`.
    """
    return plant(
        root,
        {
            "file.txt": b"a file",
            "self": Link("self"),
            "a": Link("b"),
            "b": Link("a"),
            "here": Link("."),
            "folder/file.txt": b"another",
            "folder/up": Link(".."),
            "x/to_y": Link("../y"),
            "y/to_x": Link("../x"),
        },
    )


def many_files(root: Path, count: int, *, size: int = 10, folder_size: int = 1000) -> Path:
    """Make `count` different files of `size` bytes, at least 8, with `folder_size` in a folder; return the root."""
    root.mkdir(parents=True)
    for start in range(0, count, folder_size):
        folder = root / f"{start // folder_size:05}"
        folder.mkdir()
        for number in range(start, min(start + folder_size, count)):
            descriptor = os.open(folder / f"{number:07}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, number.to_bytes(8, "little").ljust(size, b"."))
            os.close(descriptor)
    return root
