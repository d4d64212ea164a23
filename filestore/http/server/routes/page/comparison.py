"""Compare two stored things for a page: by the files with the same paths, or by all tensors with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

from filestore.errors import InvalidTensors
from filestore.http.server.context import RequestContext
from filestore.http.server.kept_work import KEPT_WORK
from filestore.http.server.routes.page.subjects import WORK_SIZE, Subject, opened_side
from filestore.http.server.routes.page.tensors import tensor_memory
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_files import FileComparison, FilePair, NewBytes
from filestore.transfer.diff_sides import Side
from filestore.transfer.diff_tensors import TensorDifference, compare_all_tensors, compare_tensors, has_tensors
from filestore.transfer.stored_ranges import ReadLimit

READ_LIMIT = 256 << 20
"""Bytes of chunks that a comparison reads, at most, where the lists of chunks do not tell whether content is the same."""
BY = ("file", "tensor")
"""What is compared: the files with the same paths, or all tensors by their names."""
_PAIR_SIZE = 500
"""Bytes of memory of a pair of files, apart from their paths."""


class Comparison(NamedTuple):
    """What is different between two things."""

    pairs: Sequence[FilePair]
    """All files, in the order of their paths; one for a file that is compared alone."""
    is_directory: bool
    tensors: Sequence[TensorDifference] | None
    """All tensors of a file that is compared alone. None for a directory, and for a file that is not compared by tensor."""
    problem: str
    """Why the tensors were not compared, if they should have been. Empty otherwise."""
    old_size: int
    new_size: int
    bytes_new: int
    """Bytes of the new one in chunks that the old one does not have."""
    size_in_memory: int


async def compare(
    context: RequestContext, repository: LocalRepository, old: Subject, new: Subject, *, by: str = "file"
) -> Comparison:
    """Compare two stored things, by file or by tensor. The result is kept for the next part of its page.

    Raises InvalidInput for a file and a directory that are compared by file; InvalidTensors where they are compared by tensor and
    one has none; LimitExceeded where too much content must be read, or a tree has too many
    entries; EntryNotFound, InvalidReference, InvalidArchive, NotFound, DamagedChunk, StorageError, Busy.
    """
    return await context.request.app[KEPT_WORK].get(
        repository.namespace,
        ("compare", by, old.record.digest, old.name, new.record.digest, new.name),
        partial(_compare if by == "file" else _compare_tensors, context, repository, old, new),
        measure=lambda comparison: comparison.size_in_memory,
        check_client=lambda: context.transport,
    )


async def _compare(context: RequestContext, repository: LocalRepository, old: Subject, new: Subject) -> Comparison:
    limit = ReadLimit(READ_LIMIT, what="the content to read for this comparison, in bytes,")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.reader_budget.take(WORK_SIZE))
        before, after = [await stack.enter_async_context(opened_side(context, repository, side, limit)) for side in (old, new)]
        comparison = await FileComparison.begin(before, after)
        pairs = [pair async for pair in comparison.pairs()]
        tensors, problem = None, ""
        if before.tree is None:
            [pair] = pairs
            if pair.mine is not None and pair.its is not None and has_tensors(before, pair.mine, after, pair.its):
                try:
                    tensors = await compare_tensors(before, pair.mine, after, pair.its)
                except InvalidTensors as error:
                    problem = str(error)
        bytes_new = sum(pair.bytes_new for pair in pairs) if after.is_part else comparison.bytes_new
        summed = partial(_summed, is_directory=before.tree is not None, problem=problem, bytes_new=bytes_new)
        return await in_cpu_thread(summed, pairs, tensors)


async def _compare_tensors(context: RequestContext, repository: LocalRepository, old: Subject, new: Subject) -> Comparison:
    """Compare all tensors of both by their names, whichever files they are in."""
    limit = ReadLimit(READ_LIMIT, what="the content to read for this comparison, in bytes,")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.reader_budget.take(WORK_SIZE))
        before, after = [await stack.enter_async_context(opened_side(context, repository, side, limit)) for side in (old, new)]
        tensors = await compare_all_tensors(before, after)
        fresh = await in_cpu_thread(NewBytes, before.manifest, after)
        return await in_cpu_thread(_summed_tensors, before, after, tensors, fresh)


def _summed_tensors(before: Side, after: Side, tensors: Sequence[TensorDifference], fresh: NewBytes) -> Comparison:
    bytes_new = fresh.total
    if after.is_part:
        bytes_new = sum(fresh.within(file.start, file.start + file.size) for file in after.files() if file.start is not None)
    old_size, new_size = (sum(file.size for file in side.files()) for side in (before, after))
    size = sum(_pair_memory(each) for each in tensors)
    return Comparison(
        (),
        is_directory=False,
        tensors=tensors,
        problem="",
        old_size=old_size,
        new_size=new_size,
        bytes_new=bytes_new,
        size_in_memory=size,
    )


def _pair_memory(each: TensorDifference) -> int:
    return 100 + sum(tensor_memory(tensor) for tensor in (each.old, each.new) if tensor is not None)


def _summed(
    pairs: Sequence[FilePair], tensors: Sequence[TensorDifference] | None, *, is_directory: bool, problem: str, bytes_new: int
) -> Comparison:
    size = sum(_PAIR_SIZE + 4 * len(pair.path) for pair in pairs)
    size += sum(_pair_memory(each) for each in tensors or ())
    old_size = sum(pair.mine.size for pair in pairs if pair.mine is not None)
    new_size = sum(pair.its.size for pair in pairs if pair.its is not None)
    return Comparison(pairs, is_directory, tensors, problem, old_size, new_size, bytes_new, size)
