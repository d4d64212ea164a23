"""Find zip files that have lost the folders of a tree, so that several of their files have one name.

`upload_pipeline` of the Pipeline SDK makes such zip files of a static `Directory`. A server stores them as they are,
because a file and a directory are uploaded in the same way. But nobody can unpack them without losing files.
"""

from __future__ import annotations

from collections.abc import Sequence

from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.errors import InvalidArchive, LimitExceeded
from filestore.format.zip.read import TAIL_SIZE, find_end, repeated_names
from filestore.repository.protocol import Repository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.receiver import KEPT_LIMIT, Receiver

_SHOWN = 5


async def find_repeated_names(repository: Repository, record: Record) -> list[str]:
    """Return the names that more than one file in a stored zip file has. The list is empty for any other record.

    Only a record whose name ends in `.zip` is read, and only its end. A central directory of more than 16 MiB is not
    searched. Raises NotFound, DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    if record.kind is Kind.DIRECTORY or not record.name.lower().endswith(".zip"):
        return []
    manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
    receiver = Receiver(repository, manifest, None)
    start = max(record.size - TAIL_SIZE, 0)
    tail = await receiver.content(range(start, record.size))
    try:
        end = find_end(tail, record.size)
    except (InvalidArchive, LimitExceeded):
        return []
    if end.size > KEPT_LIMIT:
        return []
    directory = tail[end.start - start :] if end.start >= start else await receiver.content(range(end.start, record.size))
    return await in_cpu_thread(repeated_names, directory, end)


def listed_names(names: Sequence[str]) -> str:
    """Return the names for a message: the first ones, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


WAY_ROUND = (
    "store the folder itself, by a push or by filestore's `pipeline create file` for directories, and use its id in the "
    "pipeline: "
    "Directory.from_remote(id=...), or Directory(remote_id=...) in later versions of the SDK"
)
"""What to do in place of an upload of the folder by `upload_pipeline`."""


def repeated_names_warning(names: Sequence[str]) -> str | None:
    """Return the warning for a zip file in which these names are repeated, or None if no name is."""
    if not names:
        return None
    return (
        f"several files in it have the same name: {listed_names(names)}. The program that made this zip file left out the "
        f"folders, so it cannot be unpacked, and a pipeline that has it as a Directory cannot start; {WAY_ROUND}"
    )
