"""Compare the tensors of two files, by their types, shapes and data. Content is read only where the chunks cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.errors import InvalidTensors, LimitExceeded
from filestore.format.tensors import Tensor
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_sides import ComparedFile, Part, Side
from filestore.transfer.stored_tensors import read_table
from filestore.transfer.stored_tree import EntryKind

TENSOR_SUFFIXES = (".safetensors", ".gguf")
"""The ends of the names of files whose tensors are compared."""
FILES_LIMIT = 256
"""The most files of a side whose tensors are compared together."""
TENSORS_LIMIT = 1 << 17
"""The most tensors of a side that are compared together."""
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


def is_tensor_name(name: str) -> bool:
    """Return whether a file with this name should have tensors. Its content decides whether it has any."""
    return name.lower().endswith(TENSOR_SUFFIXES)


def has_tensors(before: Side, mine: ComparedFile | None, after: Side, its: ComparedFile | None) -> bool:
    """Return whether the tensors of a pair of files are compared: both are there, not compressed, and named like such files."""
    if mine is None or its is None or mine.start is None or its.start is None:
        return False
    names = {its.path} if its.path else {before.file_name, after.file_name}
    return any(is_tensor_name(name) for name in names)


async def compare_tensors(before: Side, mine: ComparedFile, after: Side, its: ComparedFile) -> list[TensorDifference]:
    """Return all tensors of two files: first those of the new one in the order of their data, then those that were removed.

    Those whose data had to be read follow the others of the new file.

    Raises InvalidTensors where one of them has a header that cannot be read; LimitExceeded where a side has a limit of reads;
    DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    assert mine.start is not None and its.start is not None  # noqa: S101, PT018  # `has_tensors` was asked
    old = await _placed(before, mine.start, mine.size)
    new = await _placed(after, its.start, its.size)
    return await _differences(before, old, after, new)


async def compare_all_tensors(before: Side, after: Side) -> list[TensorDifference]:
    """Compare the tensors of two sides by their names, whichever files they are in, as `compare_tensors` does for one file.

    So a model in several files can be compared with one in other files, or in one. Of a name that several files have, the later
    ones follow the path of their file.

    Raises LimitExceeded for more than `FILES_LIMIT` files or `TENSORS_LIMIT` tensors; InvalidTensors where no file of a side has
    tensors, or one has a header that cannot be read; and what `compare_tensors` raises.
    """
    return await _differences(before, await _all_placed(before), after, await _all_placed(after))


class _PlacedTensor(NamedTuple):
    """A tensor, and where its file begins in the content of its side."""

    start: int
    tensor: Tensor


_Tensors = Mapping[str, _PlacedTensor]


async def _placed(side: Side, start: int, size: int, *, name: str = "") -> _Tensors:
    table = await read_table(name or side.name, Part(side.content, start, size))
    return {tensor.name: _PlacedTensor(start, tensor) for tensor in table.tensors}


async def _all_placed(side: Side) -> _Tensors:
    files = await in_cpu_thread(_tensor_files, side)
    if not files:
        raise InvalidTensors(side.name, f"no file in it ends in {' or '.join(TENSOR_SUFFIXES)} and is stored uncompressed")
    if len(files) > FILES_LIMIT:
        raise LimitExceeded(f"the number of files with tensors in {side.name}", len(files), FILES_LIMIT)
    found: dict[str, _PlacedTensor] = {}
    for file in files:
        assert file.start is not None  # noqa: S101  # only those were taken
        placed = await _placed(side, file.start, file.size, name=f"{side.name}:{file.path}" if file.path else side.name)
        for name, tensor in placed.items():
            found[f"{file.path}:{name}" if name in found else name] = tensor
        if len(found) > TENSORS_LIMIT:
            raise LimitExceeded(f"the number of tensors in {side.name}", len(found), TENSORS_LIMIT)
    return found


def _tensor_files(side: Side) -> list[ComparedFile]:
    return [
        file
        for file in side.files()
        if file.start is not None and file.kind is EntryKind.FILE and is_tensor_name(file.path or side.file_name)
    ]


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


async def _differences(before: Side, old: _Tensors, after: Side, new: _Tensors) -> list[TensorDifference]:
    found, unclear = await in_cpu_thread(_judged, before, old, after, new)
    ranges = [_range(old[name], new[name]) for name in unclear]
    for name, is_same in zip(unclear, await have_same_bytes(before, after, ranges), strict=True):
        found.append(_pair(name, old[name].tensor, new[name].tensor, is_same=is_same))
    return found + [TensorDifference(name, Status.REMOVED, mine.tensor, None) for name, mine in old.items() if name not in new]


def _range(mine: _PlacedTensor, its: _PlacedTensor) -> Unclear:
    return Unclear(mine.start + mine.tensor.offset, its.start + its.tensor.offset, its.tensor.size)


def _judged(before: Side, old: _Tensors, after: Side, new: _Tensors) -> tuple[list[TensorDifference], list[str]]:
    """Return the tensors of the new side of which types, shapes or chunks tell enough, and the names of the others."""
    found: list[TensorDifference] = []
    unclear: list[str] = []
    for name, (other, its) in new.items():
        if name not in old:
            found.append(TensorDifference(name, Status.ADDED, None, its))
            continue
        start, mine = old[name]
        if (mine.dtype, mine.shape, mine.size) != (its.dtype, its.shape, its.size):
            found.append(TensorDifference(name, Status.CHANGED, mine, its))
            continue
        same = has_same_chunks(before, start + mine.offset, after, other + its.offset, mine.size)
        if same is None:
            unclear.append(name)
        else:
            found.append(_pair(name, mine, its, is_same=same))
    return found, unclear


def _pair(name: str, mine: Tensor, its: Tensor, *, is_same: bool) -> TensorDifference:
    return TensorDifference(name, Status.SAME if is_same else Status.CHANGED, mine, its)
