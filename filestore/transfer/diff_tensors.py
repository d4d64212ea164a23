"""Compare the tensors of two files, by their types, shapes and data. Content is read only where the chunks cannot tell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.format.tensors import Tensor
from filestore.transfer.diff_sides import ComparedFile, Part, Side
from filestore.transfer.stored_tensors import TensorFile, read_tensors

TENSOR_SUFFIXES = (".safetensors", ".gguf")
"""The ends of the names of files whose tensors are compared."""
_TOGETHER = 1024
"""Small ranges that are read together."""
_STEP = 4 << 20
"""Bytes of both contents that are read and compared together."""


class Status(StrEnum):
    """What became of a file or a tensor."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    SAME = "same"


class TensorDifference(NamedTuple):
    """A tensor of two files that are compared. `diff` gives those that are not the same in both.

    name: its name in the file.
    status: added, removed, changed or same.
    old: what it was; None for an added one.
    new: what it is; None for a removed one.
    """

    name: str
    status: Status
    old: Tensor | None
    new: Tensor | None


def has_tensors(before: Side, mine: ComparedFile | None, after: Side, its: ComparedFile | None) -> bool:
    """Return whether the tensors of a pair of files are compared: both are there, not compressed, and named like such files."""
    if mine is None or its is None or mine.start is None or its.start is None:
        return False
    names = {its.path} if its.path else {before.name, after.name}
    return any(name.lower().endswith(TENSOR_SUFFIXES) for name in names)


async def compare_tensors(before: Side, mine: ComparedFile, after: Side, its: ComparedFile) -> list[TensorDifference]:
    """Return all tensors of two files: first those of the new one in the order of their data, then those that were removed.

    Those whose data had to be read follow the others of the new file.

    Raises InvalidTensors where one of them has a header that cannot be read; LimitExceeded where a side has a limit of reads;
    DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    assert mine.start is not None and its.start is not None  # noqa: S101, PT018  # `has_tensors` was asked
    old = await read_tensors(before.name, Part(before.content, mine.start, mine.size))
    new = await read_tensors(after.name, Part(after.content, its.start, its.size))
    return [each async for each in _tensor_differences((before, mine.start, old), (after, its.start, new))]


def has_same_chunks(before: Side, start: int, after: Side, other: int, size: int) -> bool | None:
    """Return whether two ranges are the same, or None if their chunks cannot tell."""
    mine, its = before.chunks_of(start, start + size), after.chunks_of(other, other + size)
    if mine is None or its is None:
        return True if before.chunks_around(start, start + size) == after.chunks_around(other, other + size) else None
    # Content that is cut by other rules has other chunks.
    return True if mine == its else False if before.manifest.chunking_version == after.manifest.chunking_version else None


class Unclear(NamedTuple):
    """Two ranges of the same size, of which the chunks do not tell whether they are the same."""

    start: int
    """Where it begins in the old side."""
    other: int
    """Where it begins in the new side."""
    size: int


async def have_same_bytes(before: Side, after: Side, ranges: Sequence[Unclear]) -> list[bool]:
    """Read ranges of two sides, small ones together, and return which are the same. Raises what a read of a side raises."""
    found: list[bool] = []
    for group in batched_by_size(ranges, lambda each: each.size, limit=_STEP, count_limit=_TOGETHER):
        if group[0].size > _STEP:
            found.append(await _has_same_bytes(before, group[0].start, after, group[0].other, group[0].size))
            continue
        mine, its = ([bytearray(each.size) for each in group] for _ in range(2))
        await before.content.read_into([(each.start, memoryview(data)) for each, data in zip(group, mine, strict=True)])
        await after.content.read_into([(each.other, memoryview(data)) for each, data in zip(group, its, strict=True)])
        found += [one == other for one, other in zip(mine, its, strict=True)]
    return found


async def _has_same_bytes(before: Side, start: int, after: Side, other: int, size: int) -> bool:
    for at in range(0, size, _STEP):
        step = min(_STEP, size - at)
        mine, its = bytearray(step), bytearray(step)
        await before.content.read_into([(start + at, memoryview(mine))])
        await after.content.read_into([(other + at, memoryview(its))])
        if mine != its:
            return False
    return True


_Opened = tuple[Side, int, TensorFile]


async def _tensor_differences(old: _Opened, new: _Opened) -> AsyncIterator[TensorDifference]:
    """Yield all tensors: first those of the new file in the order of their data, then those that were removed."""
    before, start, old_file = old
    after, other, new_file = new
    unclear: list[tuple[Tensor, Tensor]] = []
    for name, its in new_file.tensors.items():
        mine = old_file.tensors.get(name)
        if mine is None:
            yield TensorDifference(name, Status.ADDED, None, its)
        elif (mine.dtype, mine.shape, mine.size) != (its.dtype, its.shape, its.size):
            yield TensorDifference(name, Status.CHANGED, mine, its)
        else:
            same = has_same_chunks(before, start + mine.offset, after, other + its.offset, mine.size)
            if same is None:
                unclear.append((mine, its))
            else:
                yield TensorDifference(name, Status.SAME if same else Status.CHANGED, mine, its)
    ranges = [Unclear(start + mine.offset, other + its.offset, mine.size) for mine, its in unclear]
    for (mine, its), same in zip(unclear, await have_same_bytes(before, after, ranges), strict=True):
        yield TensorDifference(its.name, Status.SAME if same else Status.CHANGED, mine, its)
    for name, mine in old_file.tensors.items():
        if name not in new_file.tensors:
            yield TensorDifference(name, Status.REMOVED, mine, None)
