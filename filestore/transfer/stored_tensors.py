"""The tensors of a stored or local safetensors or GGUF file, one at a time, without the rest of the file.

    weights = await open_tensors(repository, "my_model.zip:model.safetensors")
    for tensor in weights.tensors.values(): ...
    data = await weights.read("lm_head.weight")

Only the chunks of the header are received first, and then those that have a part of the tensors that are read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from weakref import finalize

from filestore.core.batches import batched_by_size
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, InvalidInput, InvalidReference, InvalidTensors
from filestore.format.tensors import HeaderReader, Tensor, TensorTable
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.format.zip.tree import for_display
from filestore.repository.protocol import Repository, Wanted
from filestore.system.files import given_path, source_error, storage_errors
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.fetch_entry import FoundEntry, checked_kind, find_entry, find_wanted
from filestore.transfer.stored_ranges import Piece, StoredRanges, entry_ranges
from filestore.transfer.stored_tree import EntryKind

GROUP_SIZE = 32 << 20
"""Bytes of tensors that `read_all` receives together. A larger tensor is received alone."""
GROUP_COUNT = 4096
"""Tensors that it receives together, if they are tiny."""
_STEP = 16 << 20
"""Bytes of a local file that are read in one call in a thread, so that a cancellation does not wait for long."""
_HEADER_STEP = 1 << 20


class Content(Protocol):
    """The content of a file, by ranges."""

    size: int

    def stop_of_chunk(self, offset: int) -> int:
        """Return where the part of the file ends that is best read together with the byte at `offset`."""

    async def read_into(self, pieces: Sequence[Piece]) -> None:
        """Fill memory with content."""


class TensorFile:
    """The tensors of a safetensors or GGUF file. `open_tensors` gives it.

    It needs no closing, and can be used as long as the repository is open that it was opened from. Any number of tasks may read
    from it.
    """

    def __init__(self, name: str, content: Content, table: TensorTable) -> None:
        """Use `open_tensors`."""
        self.name = name
        """What errors call it: a reference, or a path of this machine."""
        self.format = table.format
        """`safetensors` or `gguf`."""
        self.size = content.size
        """Bytes of the file."""
        self.data_offset = table.data_offset
        """Bytes of the file before the data of the tensors."""
        self.tensors: Mapping[str, Tensor] = MappingProxyType({tensor.name: tensor for tensor in table.tensors})
        """Each `Tensor` by its name, in the order of their data in the file."""
        self.metadata: Mapping[str, str] = MappingProxyType(dict(table.metadata))
        """What the header says besides, as text. Of a list and a long text it has the size."""
        self._content = content

    async def read(self, name: str) -> bytearray:
        """Return the data of one tensor, verified: its bytes in the file, little-endian, in memory of its own.

        >>> numpy.frombuffer(await weights.read("scale"), numpy.float32)
        >>> torch.frombuffer(await weights.read("lm_head.weight"), dtype=torch.bfloat16).reshape(tensor.shape)

        Only the chunks that have a part of it are received, several at a time.

        Raises EntryNotFound for a name that the file does not have; DamagedChunk, ChunksMissing, StorageError, TransferError;
        SourceUnreadable or InvalidTensors where a local file cannot be read any more.
        """
        [(_, data)] = await self._read([self._tensor(name)])
        return data

    async def read_all(self, names: Iterable[str] | None = None) -> AsyncGenerator[tuple[Tensor, bytearray], None]:
        """Yield each tensor with its data, or each of `names`, in the order of the file. Each chunk is received once.

        Up to 32 MiB of tensors are read together, and a larger one alone. What was yielded belongs to the caller.

        Raises what `read` raises.
        """
        tensors = self.tensors.values() if names is None else sorted(map(self._tensor, set(names)), key=lambda each: each.offset)
        for group in batched_by_size(tensors, lambda each: each.size, limit=GROUP_SIZE, count_limit=GROUP_COUNT):
            found = await self._read(group)
            found.reverse()
            while found:
                # Not kept here while the caller uses it.
                yield found.pop()

    async def _read(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, bytearray]]:
        found = [(tensor, bytearray(tensor.size)) for tensor in tensors]
        await self._content.read_into([(tensor.offset, memoryview(data)) for tensor, data in found])
        return found

    def _tensor(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise EntryNotFound(self.name, for_display(name)) from None


async def open_tensors(
    source: Repository | str | Path, wanted: Wanted | None = None, *, limits: ZipLimits = DEFAULT_LIMITS
) -> TensorFile:
    """Read which tensors a safetensors or GGUF file has. Their data is read when it is asked for.

    >>> weights = await open_tensors(repository, "my_model.zip:model.safetensors")
    >>> weights = await open_tensors(await cache.resolve("my_model.zip:model.safetensors"))

    source: what `connect` gives, or the path of a file of this machine, such as one that a cache gave.
    wanted: what names the stored file: a name, an id or a digest, a `Record`, a `File`; or a text with `:` and the path of a file
        in a stored directory. It is left out for a path of this machine.
    limits: for zip files that you do not trust.

    Cost: the chunks of the header are received, and of a stored directory also its list of entries.

    Raises InvalidTensors where the file is not safetensors or GGUF, or its header breaks a rule; InvalidReference, InvalidInput,
    NotFound, EntryNotFound, InvalidArchive, LimitExceeded, DamagedChunk, ChunksMissing, StorageError, TransferError;
    SourceUnreadable for a path that cannot be read.
    """
    if isinstance(source, str | Path):
        if wanted is not None:
            raise InvalidInput("a path of this machine is given alone, without a reference")
        path = given_path(source)
        return await read_tensors(str(path), await in_disk_thread(_LocalFile, path))
    if wanted is None:
        raise InvalidInput("give what names the stored file, such as 'my_model.zip:model.safetensors'")
    record, reference = await find_wanted(source, wanted)
    return await open_stored(source, record, reference, limits=limits)


async def open_stored(
    repository: Repository, record: Record, reference: Reference, *, limits: ZipLimits = DEFAULT_LIMITS
) -> TensorFile:
    """Do what `open_tensors` does for a record, or for the entry of it that `reference` names. Raises what it raises."""
    name = str(reference)
    if reference.entry_path:
        return await open_entry(repository, await find_entry(repository, record, reference, limits=limits))
    if record.kind is Kind.DIRECTORY or reference.entry_path is not None:
        raise InvalidReference(name, "it is a directory; give the path of one of its files after a ':'")
    manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
    return await read_tensors(name, StoredRanges(repository, manifest))


async def open_entry(repository: Repository, found: FoundEntry) -> TensorFile:
    """Do what `open_tensors` does for a file of a stored tree. Raises what it raises."""
    await checked_kind(repository, found, EntryKind.FILE)
    tree, entry = found.tree, found.entry
    name = f"{found.reference}:{entry.path}"
    if entry.is_deflated:
        raise InvalidTensors(name, "it is compressed in its zip file; fetch it, and open the file on this machine")
    return await read_tensors(name, await entry_ranges(repository, tree, entry))


async def read_tensors(name: str, content: Content) -> TensorFile:
    """Read the header of any content, which `name` is for errors. Raises InvalidTensors, and what the content raises."""
    return TensorFile(name, content, await read_table(name, content))


async def read_table(name: str, content: Content) -> TensorTable:
    """Read what the header of any content says. Raises what `read_tensors` raises."""
    reader, at = HeaderReader(content.size, name=name), 0
    while reader.table is None:
        stop = content.stop_of_chunk(reader.needed - 1) if reader.needed else 0
        data = bytearray(stop - at)
        await content.read_into([(at, memoryview(data))])
        await in_cpu_thread(reader.feed, data)
        at = stop
    return reader.table


class _LocalFile:
    """A file of this machine. It is closed when nobody has it any more. Its methods block, except for `read_into`."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises SourceUnreadable."""
        with storage_errors(path, translate=source_error):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        self._path = path

    def stop_of_chunk(self, offset: int) -> int:
        return min(offset + _HEADER_STEP, self.size)

    async def read_into(self, pieces: Sequence[Piece]) -> None:
        for offset, memory in _steps(pieces):
            await in_disk_thread(self._fill, offset, memory)

    def _fill(self, offset: int, memory: memoryview) -> None:
        while memory:
            with storage_errors(self._path, translate=source_error):
                count = os.preadv(self._descriptor, [memory], offset)
            if not count:
                raise InvalidTensors(str(self._path), "the file has become shorter")
            offset, memory = offset + count, memory[count:]


def _steps(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for offset, memory in pieces:
        for start in range(0, len(memory), _STEP):
            yield offset + start, memory[start : start + _STEP]
