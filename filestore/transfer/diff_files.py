"""Compare the files of two sides: the manifests and lists of entries tell most, and content is read where they cannot."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from filestore.core.manifest import Manifest
from filestore.errors import InvalidInput
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_sides import ComparedFile, Side
from filestore.transfer.diff_tensors import Status, Unclear, has_same_chunks, have_same_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOGETHER = 512
"""Pairs of files that are compared in one call in a thread."""


class FilePair(NamedTuple):
    """A file or a link that one side or both have, and what became of it."""

    status: Status
    mine: ComparedFile | None
    """That of the old side. None for an added one."""
    its: ComparedFile | None
    """That of the new side. None for a removed one."""
    bytes_new: int
    """Bytes of the new content in chunks that the old side does not have."""

    @property
    def path(self) -> str:
        """Relative to what is compared; empty for a file that is compared alone."""
        return self.its.path if self.its is not None else self.mine.path if self.mine is not None else ""


class FileComparison:
    """The files of two sides, pair by pair."""

    def __init__(self, before: Side, after: Side, fresh: NewBytes) -> None:
        """Use `begin`."""
        self._before = before
        self._after = after
        self._fresh = fresh
        self.bytes_new = fresh.total
        """Bytes of all of the new stored file in chunks that the old one does not have, each chunk counted once."""

    @classmethod
    async def begin(cls, before: Side, after: Side) -> FileComparison:
        """Compare the chunks. Raises InvalidInput for a file and a directory."""
        if (before.tree is None) is not (after.tree is None):
            folder, file = (before, after) if after.tree is None else (after, before)
            way_out = "compare with the path of a file in the directory, after a ':'"
            raise InvalidInput(f"{folder.name} is a directory and {file.name} is a file; {way_out}")
        return cls(before, after, await in_cpu_thread(NewBytes, before.manifest, after))

    async def pairs(self) -> AsyncIterator[FilePair]:
        """Yield all files in the order of their paths, part by part, the same ones too.

        Raises InvalidInput for a file that is compressed in its zip file and has no checksum; LimitExceeded where a side has a
        limit of reads; DamagedChunk, ChunksMissing, StorageError, TransferError.
        """
        pairs = _pairs(self._before.files(), self._after.files())
        while batch := await in_cpu_thread(self._judged, pairs):
            # Neither chunks nor checksums can tell: whoever publishes a file can give it the checksum of another one.
            unclear = [each.same for each in batch if isinstance(each.same, Unclear)]
            read = iter(await have_same_bytes(self._before, self._after, unclear))
            for mine, its, same in batch:
                yield self._pair(mine, its, is_same=next(read) if isinstance(same, Unclear) else same)

    def _judged(self, pairs: _Pairs) -> list[_Judged]:
        return [
            _Judged(mine, its, mine is not None and its is not None and _is_same(self._before, mine, self._after, its))
            for mine, its in islice(pairs, _TOGETHER)
        ]

    def _pair(self, mine: ComparedFile | None, its: ComparedFile | None, *, is_same: bool) -> FilePair:
        if its is None:
            return FilePair(Status.REMOVED, mine, None, 0)
        if is_same:
            return FilePair(Status.SAME, mine, its, 0)
        bytes_new = its.size if its.start is None else self._fresh.within(its.start, its.start + its.size)
        return FilePair(Status.ADDED if mine is None else Status.CHANGED, mine, its, bytes_new)


_Pairs = Iterator[tuple[ComparedFile | None, ComparedFile | None]]


class _Judged(NamedTuple):
    mine: ComparedFile | None
    its: ComparedFile | None
    same: bool | Unclear


def _pairs(before: Iterator[ComparedFile], after: Iterator[ComparedFile]) -> _Pairs:
    """Yield the files of two sides that have one path together, in the order of the paths."""
    mine, its = next(before, None), next(after, None)
    while mine is not None or its is not None:
        first = None if mine is None else mine.path.replace("/", "\0")
        second = None if its is None else its.path.replace("/", "\0")
        if second is None or (first is not None and first < second):
            yield mine, None
            mine = next(before, None)
        elif first is None or second < first:
            yield None, its
            its = next(after, None)
        else:
            yield mine, its
            mine, its = next(before, None), next(after, None)


def _is_same(before: Side, mine: ComparedFile, after: Side, its: ComparedFile) -> bool | Unclear:
    """Return whether two files are the same, or where their content is if only that can tell."""
    # A file that is compared alone has no permissions.
    is_other_mode = before.tree is not None and mine.is_executable is not its.is_executable
    has_checksums = mine.crc is not None and its.crc is not None
    if (mine.kind, mine.size) != (its.kind, its.size) or is_other_mode or (has_checksums and mine.crc != its.crc):
        return False
    if mine.start is None or its.start is None:
        if not has_checksums:
            raise InvalidInput(f"{before.name} or {after.name} is compressed in its zip file; fetch it, and compare the file")
        return True
    same = has_same_chunks(before, mine.start, after, its.start, mine.size)
    return Unclear(mine.start, its.start, mine.size) if same is None or (has_checksums and not same) else same


class NewBytes:
    """Which bytes of a file are in chunks that another file does not have."""

    def __init__(self, old: Manifest, new: Side) -> None:
        import numpy as np  # noqa: PLC0415  # heavy

        self._offsets = new.offsets
        keys = _keys(new.manifest)
        self._is_new = ~np.isin(keys, _keys(old))
        sizes = new.manifest.chunks.size_array().astype(np.int64) if len(keys) else np.zeros(0, np.int64)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes * self._is_new)])
        _, first = np.unique(keys, return_index=True)
        self.total = int((sizes * self._is_new)[first].sum())
        """Bytes of all new chunks, each counted once."""

    def within(self, start: int, stop: int) -> int:
        """Return how many of these bytes are new."""
        return self._until(stop) - self._until(start)

    def _until(self, offset: int) -> int:
        number = bisect_right(self._offsets, offset) - 1
        if number < 0:
            return 0
        return int(self._before[number]) + (offset - self._offsets[number]) * bool(self._is_new[number])


def _keys(manifest: Manifest) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each digest, which tell the chunks of two files apart."""
    import numpy as np  # noqa: PLC0415  # heavy

    if not len(manifest.chunks):
        return np.zeros(0, np.uint64)
    return np.ascontiguousarray(manifest.chunks.row_array()[:, :8]).view(np.uint64).reshape(-1)
