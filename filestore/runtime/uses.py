"""Record in the index which stored files each pipeline needs, so that they are not removed without being told.

The uses of a pipeline are written before the pipeline, and removed after it. A kill in between leaves uses of a
pipeline that does not exist; the next start of the runtime removes them, with the graph. Pipelines of earlier versions
have no uses; the next start adds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from filestore.cache import Cache
from filestore.core.digest import Digest
from filestore.core.references import Directory, File, Reference
from filestore.errors import FilestoreError, NotFound
from filestore.http.server.errors import logger
from filestore.repository.index.protocol import Use
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.runtime.pipelines import Pipeline
from filestore.system.files import storage_errors
from filestore.system.threads import in_disk_thread

CANDIDATES_LIMIT = 10_000
"""The largest number of ids and of digests that are looked for in a graph."""

_PIECE = 1 << 20
_OVERLAP = 128
"""More than the largest number of bytes of what is looked for."""
_ID = re.compile(rb"file_([0-9a-f]{32})")
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The id of a record in its path: `run_files/31/7e/<UUID>/<name>`."""
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def scan_graph(path: Path) -> list[Reference]:
    """Return references of what may be stored files that a pickled graph names. Blocks. Raises StorageError.

    Nothing is unpickled: a pickle can run any code. The bytes of its texts stand in it unchanged, so ids, digests and
    the UUIDs of stored paths are looked for in all of its bytes. Most of what is found may be no stored file.
    """
    ids: dict[str, None] = {}
    digests: dict[str, None] = {}
    with storage_errors(path), path.open("rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            rest += piece
            for pattern, found in ((_ID, ids), (_UUID, ids), (_DIGEST, digests)):
                for text in pattern.findall(rest):
                    if len(found) < CANDIDATES_LIMIT:
                        found[text.decode().replace("-", "")] = None
            rest = rest[-_OVERLAP:]
    return [*(Reference(id=f"file_{each}") for each in ids), *(Reference(digest=Digest.parse(each)) for each in digests)]


class Uses:
    """The uses of stored files by the pipelines of a runtime."""

    def __init__(self, repository: Repository) -> None:
        """The repository must be a `LocalRepository`."""
        if not isinstance(repository, LocalRepository):
            raise TypeError("a runtime needs a repository in a folder of its machine")
        self._repository = repository

    async def add(self, pipeline: Pipeline, references: Iterable[Reference]) -> None:
        """Record that a pipeline uses its graph, and the stored files among `references`.

        References of anything else are skipped. Raises StorageError, StorageFull, Busy.
        """
        found = [*await self._ids(references)]
        await self._repository.add_uses(
            [
                *(Use(file_id, pipeline.id, pipeline.pointer) for file_id in found if file_id != pipeline.graph_id),
                Use(pipeline.graph_id, pipeline.id, pipeline.pointer, is_graph=True),
            ]
        )

    async def add_loaded(self, pipeline: Pipeline, files: Sequence[File | Directory]) -> None:
        """Record the static files of a pipeline that was loaded, if the scan of its graph has not found them.

        Nothing that the scan found is removed: code of the pipeline may name a file that is not static.
        """
        known = {use.file_id for use in await self._repository.uses() if use.pipeline_id == pipeline.id}
        found = await self._ids(file.reference for file in files if file.url is None)
        if not known.issuperset(found):
            await self.add(pipeline, [Reference(id=file_id) for file_id in found])

    async def remove(self, pipeline: Pipeline) -> None:
        """Remove the graph of a pipeline and its uses, after the pipeline was removed."""
        await self._repository.remove_uses(pipeline.id, graph_ids=[pipeline.graph_id])

    async def repair(self, pipelines: Sequence[Pipeline], cache: Cache) -> None:
        """Make the uses those of `pipelines`, which are all of the runtime. See the beginning of this module."""
        kept = {pipeline.id: pipeline for pipeline in pipelines}
        graphs: dict[str, list[str]] = {}
        for use in await self._repository.uses():
            graphs.setdefault(use.pipeline_id, []).extend([use.file_id] if use.is_graph else [])
        for pipeline_id in graphs.keys() - kept.keys():
            await self._repository.remove_uses(pipeline_id, graph_ids=graphs[pipeline_id])
        for pipeline in (kept[pipeline_id] for pipeline_id in kept if not graphs.get(pipeline_id)):
            try:
                async with cache.lease(File(id=pipeline.graph_id)) as path:
                    found = await in_disk_thread(scan_graph, path)
                await self.add(pipeline, found)
            except FilestoreError as error:
                logger.warning(
                    "the files that %s needs are not protected, because its graph cannot be read: %s", pipeline.id, error
                )

    async def _ids(self, references: Iterable[Reference]) -> dict[str, None]:
        """Return the ids of the records that exist. An id is returned without a look: the index skips unknown ones."""
        ids: dict[str, None] = {}
        for reference in references:
            if reference.id is not None:
                ids[reference.id] = None
                continue
            if reference.digest is not None and reference.name is None:
                # The name that belongs to the digest is not known, so each record with this content may be meant.
                ids.update(dict.fromkeys(await self._repository.ids_of_content(reference.digest)))
                continue
            try:
                ids[(await self._repository.record(reference)).id] = None
            except NotFound:
                continue
        return ids
