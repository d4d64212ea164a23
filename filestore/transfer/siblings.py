"""Find files and folders beside the target of a fetch that may be other versions of it, by name, size and a few chunks."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Manifest
from filestore.errors import LimitExceeded, SourceError
from filestore.system.files import read_at
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.local_seeds import LocalSeed, scan_path
from filestore.transfer.receiver import Receiver

LIMIT = 2
"""How many siblings are hashed at most."""
LEAST_SIZE = 1 << 20
"""Bytes of content below which it takes longer to look for siblings than to receive it."""
_NAMES_LIMIT = 10_000
_PROBES = 16
_VERSION = re.compile(r"(?:[-_. ]+(?:v?\d+|rc\d*|old|new|latest|final|copy|backup|bak|orig|original|prev|previous|\(\d+\))|~)$")
"""The end of a name that tells one version from another."""


class SiblingFinder:
    """Finds the siblings of the target of a fetch."""

    def __init__(self, *, is_tree: bool) -> None:
        """`is_tree` says that a tree is fetched: then its siblings are folders, and otherwise files."""
        self._is_tree = is_tree

    async def find(self, receiving: Receiver, manifest: Manifest, target: Path) -> list[LocalSeed]:
        """Return at most `LIMIT` siblings as seeds. One that cannot be read, or that changes meanwhile, is left out."""
        if manifest.size < LEAST_SIZE:
            return []
        if not self._is_tree and await in_disk_thread(target.exists):
            return []  # the older version is there, and is a seed
        sizes = range(manifest.size // 2, manifest.size * 2)
        found: list[LocalSeed] = []
        for path in await in_disk_thread(find_siblings, target, sizes, is_tree=self._is_tree):
            if not self._is_tree and not await in_cpu_thread(_has_some, path, manifest):
                continue
            with suppress(SourceError, LimitExceeded):
                scanned = await scan_path(receiving, path, chunking_version=manifest.chunking_version, sizes=sizes)
                found.append(LocalSeed(path, scanned.seed(path)))
            if len(found) == LIMIT:
                break
        return found


def find_siblings(target: Path, sizes: range, *, is_tree: bool) -> list[Path]:
    """Return what is beside the target, of its kind, and differs from its name only in a version: `model-v1` for `model-v2`.

    Files have a size in `sizes`. The newest ones come first, at most four times `LIMIT`. Links are left out. Blocks.
    """
    name = version_free(target.name)
    if not name.strip("-_. "):
        return []
    found = []
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in islice(entries, _NAMES_LIMIT):
            if entry.name == target.name or entry.name.startswith(".") or version_free(entry.name) != name:
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                is_right = stat.S_ISDIR(status.st_mode) if is_tree else stat.S_ISREG(status.st_mode) and status.st_size in sizes
                if is_right:
                    found.append((-status.st_mtime_ns, target.parent / entry.name))
    return [path for _, path in sorted(found)[: 4 * LIMIT]]


def version_free(name: str) -> str:
    """Return a name without what tells versions apart: at its end, and before its suffix."""
    whole = _without_version(name.lower())
    stem, suffix = os.path.splitext(whole)  # noqa: PTH122  # a text
    return _without_version(stem) + suffix


def _without_version(name: str) -> str:
    while (shorter := _VERSION.sub("", name)) not in {name, ""}:
        name = shorter
    return name


def _has_some(path: Path, manifest: Manifest) -> bool:
    """Return whether a file has one of a few chunks at the same distance from its start or its end. Blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        moved = os.fstat(descriptor).st_size - manifest.size
        for offset, digest, size in _probes(manifest):
            memory = memoryview(bytearray(size))
            for start in {offset, offset + moved}:
                if start >= 0 and read_at(descriptor, memory, start) == size and chunk_digest(memory) == digest:
                    return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _probes(manifest: Manifest) -> Iterator[tuple[int, bytes, int]]:
    """Yield the offset, the digest and the size of chunks that are spread over a file, with its first and last ones."""
    step = max(len(manifest.chunks) // _PROBES, 1)
    last = len(manifest.chunks) - 1
    for number, (chunk, offset) in enumerate(zip(manifest.chunks, manifest.offsets(), strict=True)):
        if number % step == 0 or number == last:
            yield offset, chunk.digest, chunk.size
