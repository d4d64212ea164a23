"""Compare two stored files or directories, or a local path and a stored one: by file, and by tensor.

    found = await diff(repository, "my_model.zip@~1", new=Path("my_model"))

The manifests and lists of entries are compared; content is read only where they cannot tell. What is on this machine is cut and
hashed as by a push.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filestore.core.manifest import Manifest
from filestore.core.progress import Report
from filestore.errors import InvalidInput, InvalidTensors, ScopeMissing
from filestore.format.tensors import Tensor
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.repository.protocol import Repository, Wanted
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_sides import ComparedFile, Part, PushOptions, Side, local_side, stored_side
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_tensors import TensorFile, read_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TENSOR_SUFFIXES = (".safetensors", ".gguf")
"""The ends of the names of files whose tensors are compared."""
_STEP = 4 << 20
"""Bytes of both contents that are read and compared together."""


class Status(StrEnum):
    """What became of a file or a tensor."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    SAME = "same"


class TensorDifference(NamedTuple):
    """A tensor that is not the same in both.

    name: its name in the file.
    status: added, removed or changed.
    old: what it was; None for an added one.
    new: what it is; None for a removed one.
    """

    name: str
    status: Status
    old: Tensor | None
    new: Tensor | None


class FileDifference(NamedTuple):
    """A file or a link that is not the same in both.

    path: relative to what is compared; empty for a file that is compared alone.
    status: added, removed or changed.
    old_size: bytes of its old content; None for an added one.
    new_size: bytes of its new content; None for a removed one.
    bytes_new: bytes of the new content in chunks that the old side does not have.
    tensors: the tensors that are not the same; None for a file whose tensors were not compared.
    same_tensors: how many tensors are the same.
    """

    path: str
    status: Status
    old_size: int | None
    new_size: int | None
    bytes_new: int
    tensors: tuple[TensorDifference, ...] | None = None
    same_tensors: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """What `diff` found.

    old: how the old side is called: a reference, or a path.
    new: how the new side is called.
    old_size: bytes of content, without what a zip file has besides.
    new_size: the same of the new side.
    files: the files that are not the same, in the order of their paths.
    same_count: how many files are the same.
    same_size: bytes of their content.
    bytes_new: bytes of the new side in chunks that the old side does not have.
    bytes_to_send: bytes that a push of the local path would send, before compression. None if both are stored, or if the token
        may not push, because a server tells no others which chunks it has.
    """

    old: str
    new: str
    old_size: int
    new_size: int
    files: tuple[FileDifference, ...]
    same_count: int
    same_size: int
    bytes_new: int
    bytes_to_send: int | None


async def diff(
    repository: Repository,
    old: Wanted | Path,
    *,
    new: Wanted | Path,
    push_cache: PushCache | None = None,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: ZipLimits = DEFAULT_LIMITS,
) -> Difference:
    """Compare two stored files or directories, or one of them with a path of this machine.

    >>> found = await diff(repository, "my_model.zip@~1", new=Path("my_model"))
    >>> for file in found.files:
    ...     print(file.status, file.path, file.bytes_new)

    repository: what `connect` gives.
    old, new: what names a stored file, also with `:` and a path in a directory; or a `Path` of this machine. At least one is
        stored. A directory is compared with a directory, and a file with a file.
    push_cache: what remembers earlier pushes, so that an unchanged local path is not read.
    report: called with a `Progress` while the local path is read.
    symlinks: what becomes of symbolic links in the local path, as for `push`.
    include, exclude: which of its files are taken, as for `push`.
    limits: for zip files that you do not trust.

    Two files are the same if they have the same content; of files that are compressed in a zip file, size and CRC-32 count.
    Whether a file is executable counts as well. Folders are not compared. Tensors of files that end in `.safetensors` or `.gguf`
    are compared by their type, shape and data.

    Cost: the manifests and lists of entries are read; small files with the same CRC-32 whose chunks have something else that
    differs; of files with changed tensors their headers, and those small tensors that share chunks with others.

    Raises InvalidInput, InvalidReference, NotFound, EntryNotFound, InvalidArchive, LimitExceeded, DamagedChunk, ChunksMissing,
    StorageError, TransferError; and what `push` raises because of a local path.
    """
    if isinstance(old, Path) and isinstance(new, Path):
        raise InvalidInput("both are paths of this machine; one of them must name a stored file")
    options = PushOptions(push_cache, report, symlinks, include, exclude)
    async with AsyncExitStack() as stack:
        sides: list[Side] = []
        for wanted in (old, new):
            if isinstance(wanted, Path):
                sides.append(await stack.enter_async_context(local_side(repository, wanted, options, limits=limits)))
            else:
                sides.append(await stored_side(repository, wanted, limits=limits))
        return await _compare(repository, *sides)


async def _compare(repository: Repository, before: Side, after: Side) -> Difference:
    if (before.tree is None) is not (after.tree is None):
        folder, file = (before, after) if after.tree is None else (after, before)
        way_out = "compare with the path of a file in the directory, after a ':'"
        raise InvalidInput(f"{folder.name} is a directory and {file.name} is a file; {way_out}")
    local = before if before.is_local else after
    to_send = await _bytes_to_send(repository, local) if local.is_local else None
    fresh = await in_cpu_thread(_NewBytes, before.manifest, after)
    files: list[FileDifference] = []
    same_count = same_size = old_size = new_size = 0
    for mine, its in _pairs(before.files(), after.files()):
        old_size += 0 if mine is None else mine.size
        new_size += 0 if its is None else its.size
        if mine is not None and its is not None and await _is_same(before, mine, after, its):
            same_count += 1
            same_size += its.size
        else:
            files.append(await _file_difference(before, mine, after, its, fresh=fresh))
    # Of a part of a directory, the rest does not count.
    bytes_new = sum(file.bytes_new for file in files) if after.is_part else fresh.total
    return Difference(before.name, after.name, old_size, new_size, tuple(files), same_count, same_size, bytes_new, to_send)


def _pairs(
    before: Iterator[ComparedFile], after: Iterator[ComparedFile]
) -> Iterator[tuple[ComparedFile | None, ComparedFile | None]]:
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


async def _is_same(before: Side, mine: ComparedFile, after: Side, its: ComparedFile) -> bool:
    # A file that is compared alone has no permissions.
    is_other_mode = before.tree is not None and mine.is_executable is not its.is_executable
    has_checksums = mine.crc is not None and its.crc is not None
    if (mine.kind, mine.size) != (its.kind, its.size) or is_other_mode or (has_checksums and mine.crc != its.crc):
        return False
    if mine.start is None or its.start is None:
        if not has_checksums:
            raise InvalidInput(f"{before.name} or {after.name} is compressed in its zip file; fetch it, and compare the file")
        return True
    same = _has_same_chunks(before, mine.start, after, its.start, mine.size)
    if same is None or (has_checksums and not same):
        # Neither chunks nor checksums can tell: whoever publishes a file can give it the checksum of another one.
        return await _has_same_bytes(before, mine.start, after, its.start, mine.size)
    return same


def _has_same_chunks(before: Side, start: int, after: Side, other: int, size: int) -> bool | None:
    """Return whether two ranges are the same, or None if their chunks cannot tell."""
    mine, its = before.chunks_of(start, start + size), after.chunks_of(other, other + size)
    if mine is None or its is None:
        return True if before.chunks_around(start, start + size) == after.chunks_around(other, other + size) else None
    # Content that is cut by other rules has other chunks.
    return True if mine == its else False if before.manifest.chunking_version == after.manifest.chunking_version else None


async def _has_same_bytes(before: Side, start: int, after: Side, other: int, size: int) -> bool:
    for at in range(0, size, _STEP):
        step = min(_STEP, size - at)
        mine, its = bytearray(step), bytearray(step)
        await before.content.read_into([(start + at, memoryview(mine))])
        await after.content.read_into([(other + at, memoryview(its))])
        if mine != its:
            return False
    return True


async def _file_difference(
    before: Side, mine: ComparedFile | None, after: Side, its: ComparedFile | None, fresh: _NewBytes
) -> FileDifference:
    status = Status.ADDED if mine is None else Status.REMOVED if its is None else Status.CHANGED
    path = its.path if its is not None else mine.path if mine is not None else ""
    bytes_new = 0 if its is None else its.size if its.start is None else fresh.within(its.start, its.start + its.size)
    found = FileDifference(path, status, None if mine is None else mine.size, None if its is None else its.size, bytes_new)
    if mine is None or its is None or mine.start is None or its.start is None:
        return found
    names = {path} if path else {before.name, after.name}
    if not any(name.lower().endswith(TENSOR_SUFFIXES) for name in names):
        return found
    try:
        old = await read_tensors(before.name, Part(before.content, mine.start, mine.size))
        new = await read_tensors(after.name, Part(after.content, its.start, its.size))
    except InvalidTensors:
        return found
    tensors = [each async for each in _tensor_differences((before, mine.start, old), (after, its.start, new))]
    differing = tuple(each for each in tensors if each.status is not Status.SAME)
    return found._replace(tensors=differing, same_tensors=len(tensors) - len(differing))


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
            same = _has_same_chunks(before, start + mine.offset, after, other + its.offset, mine.size)
            if same is None:
                unclear.append((mine, its))
            else:
                yield TensorDifference(name, Status.SAME if same else Status.CHANGED, mine, its)
    for mine, its in unclear:
        same = await _has_same_bytes(before, start + mine.offset, after, other + its.offset, mine.size)
        yield TensorDifference(its.name, Status.SAME if same else Status.CHANGED, mine, its)
    for name, mine in old_file.tensors.items():
        if name not in new_file.tensors:
            yield TensorDifference(name, Status.REMOVED, mine, None)


async def _bytes_to_send(repository: Repository, local: Side) -> int | None:
    sizes = {chunk.digest: chunk.size for chunk in local.manifest.chunks}
    try:
        return sum(sizes[digest] for digest in await repository.missing(list(sizes)))
    except ScopeMissing:
        return None  # a token that reads can compare all the same


class _NewBytes:
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
