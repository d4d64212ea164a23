"""Compare two stored files or directories, or a local path and a stored one: by file, and by tensor.

    found = await diff(repository, "my_model.zip@~1", new=Path("my_model"))

The manifests and lists of entries are compared; content is read only where they cannot tell. What is on this machine is cut and
hashed as by a push.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filestore.core.progress import Report
from filestore.errors import InvalidInput, InvalidTensors, ScopeMissing
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.repository.protocol import Repository, Wanted
from filestore.transfer.diff_files import FileComparison, FilePair
from filestore.transfer.diff_sides import PushOptions, Side, local_side, stored_side
from filestore.transfer.diff_tensors import Status, TensorDifference, compare_tensors, has_tensors
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.walk import Symlinks


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
    comparison = await FileComparison.begin(before, after)
    local = before if before.is_local else after
    to_send = await _bytes_to_send(repository, local) if local.is_local else None
    files: list[FileDifference] = []
    same_count = same_size = old_size = new_size = 0
    async for pair in comparison.pairs():
        old_size += 0 if pair.mine is None else pair.mine.size
        new_size += 0 if pair.its is None else pair.its.size
        if pair.status is Status.SAME:
            same_count += 1
            same_size += 0 if pair.its is None else pair.its.size
        else:
            files.append(await _file_difference(before, after, pair))
    # Of a part of a directory, the rest does not count.
    bytes_new = sum(file.bytes_new for file in files) if after.is_part else comparison.bytes_new
    return Difference(before.name, after.name, old_size, new_size, tuple(files), same_count, same_size, bytes_new, to_send)


async def _file_difference(before: Side, after: Side, pair: FilePair) -> FileDifference:
    mine, its = pair.mine, pair.its
    old_size, new_size = (None if side is None else side.size for side in (mine, its))
    found = FileDifference(pair.path, pair.status, old_size, new_size, pair.bytes_new)
    if mine is None or its is None or not has_tensors(before, mine, after, its):
        return found
    try:
        tensors = await compare_tensors(before, mine, after, its)
    except InvalidTensors:
        return found
    differing = tuple(each for each in tensors if each.status is not Status.SAME)
    return found._replace(tensors=differing, same_tensors=len(tensors) - len(differing))


async def _bytes_to_send(repository: Repository, local: Side) -> int | None:
    sizes = {chunk.digest: chunk.size for chunk in local.manifest.chunks}
    try:
        return sum(sizes[digest] for digest in await repository.missing(list(sizes)))
    except ScopeMissing:
        return None  # a token that reads can compare all the same
