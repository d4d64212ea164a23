"""Find chunks that a fetch can copy from entries of the cache. All functions block: call them in a thread."""

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
from filestore.system.small_files import read_small
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
    """Bytes of the wanted file that the candidate's chunks can fill."""


class FoundSeed(NamedTuple):
    """A seed, the kind and digest of its entry, and the path of its content."""

    wanted: WantedEntry
    path: Path
    seed: Seed


def find_seeds(root: Path, wanted: Manifest, *, limits: ZipLimits) -> list[FoundSeed]:
    """Return seeds for `wanted` among the entries below `root`: at most 8, those that share the most bytes first.

    Each seed has a chunk that the seeds before it do not have. The newest entries are searched first. At most 64 MiB of
    manifests are read, which describe 1,800 GB of files, and never more bytes of manifests than `wanted` has of
    content. The caller closes the seeds.
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
        # Read it again: two thousand manifests are not kept in memory, and neither are tails of unknown size.
        manifest, tail = read_manifest(candidate.folder), _read_tail(candidate, limit=left)
        path = next(iter(contents(candidate.folder)), None)
        if manifest is None or tail is None or path is None or not recipe.cover(recipe.places_in(manifest)):
            continue
        left -= len(tail)
        seeds.append(_found(candidate.kind, path, manifest, tail, limits=limits))
    return seeds


def find_same(root: Path, wanted: Manifest, *, limits: ZipLimits) -> FoundSeed | None:
    """Return the entry below `root` whose content has the digest of `wanted`, as a seed, or None."""
    for kind in Kind:
        folder = root / WantedEntry(kind, wanted.digest).path
        manifest = read_manifest(folder)
        if manifest is None or manifest.digest != wanted.digest:
            continue
        tail = _read_tail(_Candidate(kind, folder, manifest.size), limit=MANIFEST_LIMIT)
        path = next(iter(contents(folder)), None)
        if tail is not None and path is not None:
            return _found(kind, path, manifest, tail, limits=limits)
    return None


def _found(kind: Kind, path: Path, manifest: Manifest, tail: bytes, *, limits: ZipLimits) -> FoundSeed:
    is_tree = kind is Kind.DIRECTORY
    seed = TreeSeed(path, manifest, tail, limits=limits) if is_tree else FileSeed(path, manifest)
    return FoundSeed(WantedEntry(kind, manifest.digest), path, seed)


class _Recipe:
    """The wanted chunks as arrays. They are fast to compare: a cache may have manifests of millions of chunks."""

    def __init__(self, wanted: Manifest) -> None:
        import numpy as np  # noqa: PLC0415  # on first use

        chunks = _table(wanted)
        self._keys, places = np.unique(chunks["key"], return_inverse=True)
        self._sizes = np.bincount(places, weights=chunks["size"], minlength=len(self._keys))
        self._covered = np.zeros(len(self._keys), dtype=bool)

    @property
    def is_covered(self) -> bool:
        """Whether the seeds so far have all of the chunks together."""
        return bool(self._covered.all())

    def places_in(self, manifest: Manifest) -> npt.NDArray[np.bool_]:
        """Return which of the wanted chunks are in another manifest."""
        import numpy as np  # noqa: PLC0415  # on first use

        return np.isin(self._keys, _table(manifest)["key"])

    def size_of(self, places: npt.NDArray[np.bool_]) -> int:
        """Return the bytes of the wanted file that these chunks fill."""
        return int(self._sizes[places].sum())

    def cover(self, places: npt.NDArray[np.bool_]) -> bool:
        """Record that a seed has these chunks. Return whether earlier seeds did not have one of them."""
        is_new = bool((places & ~self._covered).any())
        self._covered |= places
        return is_new


def _table(manifest: Manifest) -> npt.NDArray[np.void]:
    """Return the chunks of a manifest as an array, keyed by the first 8 bytes of their digests.

    Equal keys of different chunks do no harm, because what a seed gives is verified.
    """
    import numpy as np  # noqa: PLC0415  # on first use

    row = np.dtype([("key", "<u8"), ("rest", f"V{DIGEST_SIZE - 8}"), ("size", "<u4")])
    return np.frombuffer(manifest.chunks.encoded, dtype=row)


def _newest_first(root: Path) -> Iterator[tuple[Kind, Path]]:
    found = []
    for kind, name in FOLDERS.items():
        for folder in root.glob(f"{name}/??/??/*"):
            with suppress(OSError):  # it may be removed meanwhile
                found.append((folder.stat().st_mtime_ns, kind, folder))
    for _, kind, folder in sorted(found, reverse=True):
        yield kind, folder


def _read_tail(candidate: _Candidate, *, limit: int) -> bytes | None:
    """Return the tail of the zip, which the seed of a tree needs. For a file, return no bytes.

    Return None if the tail cannot be read, or has more than `limit` bytes.
    """
    if candidate.kind is Kind.FILE:
        return b""
    try:
        return read_small(candidate.folder / "tail", limit=limit)
    except OSError:
        return None
