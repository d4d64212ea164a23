"""What a fetch may take from the entries that are here already. All blocks: call it in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filestore.cache.entry_store import FOLDERS, WantedEntry, contents, read_manifest
from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import MANIFEST_LIMIT, Manifest
from filestore.core.records import Kind
from filestore.format.zip.read import ZipLimits
from filestore.transfer.seeds import FileSeed, Seed
from filestore.transfer.tree_seed import TreeSeed

if TYPE_CHECKING:  # numpy takes 0.15 s to import: a hit does not pay for it
    import numpy as np
    import numpy.typing as npt

SEED_LIMIT = 8


class _Candidate(NamedTuple):
    kind: Kind
    folder: Path
    shared: int
    """Bytes of what is wanted that its chunks fill."""


class FoundSeed(NamedTuple):
    """A seed, and the entry that it is."""

    wanted: WantedEntry
    seed: Seed


def find_seeds(root: Path, wanted: Manifest, *, limits: ZipLimits) -> list[FoundSeed]:
    """Seeds for `wanted` among the entries below `root`, at most 8, those with the most bytes of it first.

    Each has a chunk that those before it have not. The newest entries are looked at first, and at most 64 MiB of manifests,
    which stand for 1,800 GB of files, and never more bytes of them than are wanted. Whoever is given the seeds closes them.
    """
    if not wanted.size:
        return []
    recipe = _Recipe(wanted)
    candidates = []
    left = min(MANIFEST_LIMIT, wanted.size)
    for kind, folder in _newest_first(root):
        manifest = read_manifest(folder, limit=left)
        if manifest is None or not manifest.size:
            continue
        left -= len(manifest.encoded)
        shared = recipe.size_of(recipe.places_in(manifest))
        if shared:
            candidates.append(_Candidate(kind, folder, shared))
    candidates.sort(key=lambda candidate: candidate.shared, reverse=True)
    seeds: list[FoundSeed] = []
    left = MANIFEST_LIMIT
    for candidate in candidates:
        if len(seeds) == SEED_LIMIT or recipe.is_covered:
            break
        # Read again: two thousand manifests are not kept. Nor are tails of any size.
        manifest, tail = read_manifest(candidate.folder), _read_tail(candidate, limit=left)
        path = next(iter(contents(candidate.folder)), None)
        if manifest is None or tail is None or path is None or not recipe.cover(recipe.places_in(manifest)):
            continue
        left -= len(tail)
        is_tree = candidate.kind is Kind.DIRECTORY
        seed = TreeSeed(path, manifest, tail, limits=limits) if is_tree else FileSeed(path, manifest)
        seeds.append(FoundSeed(WantedEntry(candidate.kind, manifest.digest), seed))
    return seeds


class _Recipe:
    """The chunks that are wanted, as arrays: a cache may hold manifests of millions of chunks."""

    def __init__(self, wanted: Manifest) -> None:
        import numpy as np  # noqa: PLC0415  # on first use

        chunks = _table(wanted)
        self._keys, places = np.unique(chunks["key"], return_inverse=True)
        self._sizes = np.bincount(places, weights=chunks["size"], minlength=len(self._keys))
        self._covered = np.zeros(len(self._keys), dtype=bool)

    @property
    def is_covered(self) -> bool:
        """Whether each chunk was covered."""
        return bool(self._covered.all())

    def places_in(self, manifest: Manifest) -> npt.NDArray[np.bool_]:
        """Which of the wanted chunks another manifest names."""
        import numpy as np  # noqa: PLC0415  # on first use

        return np.isin(self._keys, _table(manifest)["key"])

    def size_of(self, places: npt.NDArray[np.bool_]) -> int:
        """Bytes that these fill of what is wanted."""
        return int(self._sizes[places].sum())

    def cover(self, places: npt.NDArray[np.bool_]) -> bool:
        """Note that a seed has these; whether any of them is new."""
        is_new = bool((places & ~self._covered).any())
        self._covered |= places
        return is_new


def _table(manifest: Manifest) -> npt.NDArray[np.void]:
    """The chunks as an array. Of each digest the first 8 bytes are a key: what seems to be shared is verified in any case."""
    import numpy as np  # noqa: PLC0415  # on first use

    row = np.dtype([("key", "<u8"), ("rest", f"V{DIGEST_SIZE - 8}"), ("size", "<u4")])
    return np.frombuffer(manifest.chunks.encoded, dtype=row)


def _newest_first(root: Path) -> Iterator[tuple[Kind, Path]]:
    found = []
    for kind, name in FOLDERS.items():
        for folder in root.glob(f"{name}/??/??/*"):
            with suppress(OSError):  # it may vanish meanwhile
                found.append((folder.stat().st_mtime_ns, kind, folder))
    for _, kind, folder in sorted(found, reverse=True):
        yield kind, folder


def _read_tail(candidate: _Candidate, *, limit: int) -> bytes | None:
    """What a seed of a tree needs, of a file nothing; None where that cannot be had, or is more than `limit` bytes."""
    if candidate.kind is Kind.FILE:
        return b""
    path = candidate.folder / "tail"
    try:
        return path.read_bytes() if path.stat().st_size <= limit else None
    except OSError:
        return None
