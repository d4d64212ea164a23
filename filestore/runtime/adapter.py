"""Resolve the files in a run's inputs to local paths, and store the files that a pipeline returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from filestore.cache import Cache
from filestore.core.names import replace_separators
from filestore.core.progress import Report
from filestore.core.records import Kind, Record
from filestore.errors import InvalidSetting, SourceError, SourceRefused
from filestore.repository.protocol import Repository
from filestore.runtime.handles import content_name, handle_name, readable_path
from filestore.runtime.inputs import InputFile, Inputs, Make
from filestore.runtime.outputs import OutputFile, Outputs, file_answer
from filestore.runtime.own_urls import OwnUrls, stored_here
from filestore.runtime.prepare import PrepareResult, folders_checked, map_bounded, prepare
from filestore.runtime.values import Local, stored_value
from filestore.system.threads import in_disk_thread
from filestore.transfer.push import default_name, push


def _as_path(_: Kind, path: Path) -> object:
    return path


class Adapter:
    """Prepares the files of pipelines and of their runs.

    Any number of runs may share one adapter, in one event loop.
    """

    def __init__(self, cache: Cache, repository: Repository, *, url: str | None = None, spool_folder: Path | None = None) -> None:
        """`cache` is a cache of `repository`. `url` is the public base URL for output files.

        If `repository` is a server, `url` is by default the URL of that server. If it is a folder, `url` must be given
        before a pipeline returns a file. `spool_folder` is for content that a pipeline returns in memory; by default it
        is the system's temporary folder.
        """
        is_server = repository.location.startswith(("http://", "https://"))
        self._url = (url or (repository.location if is_server else "")).rstrip("/")
        self._own_urls = OwnUrls({self._url, repository.location.rstrip("/") if is_server else ""} - {""})
        self._cache = cache
        self._repository = repository
        self._spool_folder = spool_folder
        self._copying = asyncio.Lock()

    async def prepare(self, files: Sequence[object], *, report: Report | None = None) -> PrepareResult:
        """Resolve the static files of a pipeline in parallel, the largest first.

        A file that is in the cache needs no network. The files stay in the cache until it is closed. `files` are values
        of filestore or of the Pipeline SDK.

        Raises InvalidReference, and what `Cache.resolve` raises, for the first file that fails. Parts of the other
        files that have arrived are not fetched again.
        """
        wanted = [await stored_here(self._cache, self._repository, self._own_urls.stored(stored_value(file))) for file in files]
        return await prepare(self._cache, self._repository, wanted, report=report)

    @asynccontextmanager
    async def inputs(
        self, input_data: object, declared: Sequence[object] | None = None, *, make: Make = _as_path
    ) -> AsyncIterator[list[object]]:
        """Yield the arguments of a run, with each file in them resolved.

        `input_data` is the `input_data` of a version 3 request, or the `inputs` of a version 4 request. It is not
        changed. The files stay in the cache until the block ends.

        `declared` is the type of each parameter, or None if it is not known. For files it is `File`, `Directory` or
        `FileURL`, of filestore or of the Pipeline SDK, also inside `list[...]`, `dict[str, ...]`, `Optional[...]` and
        the annotations of a class. A file for a `Directory` is unpacked, any other file is not. In the arguments, the
        result of `make(kind, path)` replaces a file; by default this is the path.

        Raises InvalidRun for an invalid request, before anything is fetched, and what `Cache.resolve` raises.
        """
        read = Inputs(input_data, declared, own_urls=self._own_urls)

        async with AsyncExitStack() as stack:

            async def resolve(files: Iterator[InputFile]) -> None:
                for file in files:
                    wanted = await stored_here(self._cache, self._repository, file.wanted)
                    async with folders_checked(self._repository, wanted):
                        path = await stack.enter_async_context(self._cache.lease(wanted))
                    file.container[file.key] = make(file.kind, path)

            await map_bounded(resolve, read.places)
            yield read.arguments

    async def outputs(self, returned: Sequence[object]) -> list[dict[str, object]]:
        """Store the files that a pipeline returned. Return the `outputs` of the run's answer, one for each value.

        A file is a `File` or a `Directory`, of filestore or of the Pipeline SDK, a `pathlib.Path`, or an open handle,
        such as a `BytesIO`. The whole content of a handle is stored, and its position does not change. Content that is
        stored already is not stored again. Every other value must be JSON.

        Raises InvalidRun before anything is stored. Raises SourceUnreadable, SourceChanged, SourceRefused, InvalidName,
        NotFound, StorageError, TransferError; some of the files may be stored then, each as a whole.
        """
        read = Outputs(returned)
        if read.places and not self._url:
            raise InvalidSetting("the adapter's url", "it is missing, and a reader of a file needs one; give the URL of a server")

        async def store(files: Iterator[OutputFile]) -> None:
            for file in files:
                record = await self._store(file)
                file.container[file.key] = file_answer(record, await self._output_url(record))

        await map_bounded(store, read.places)
        return read.answers

    async def _output_url(self, record: Record) -> str:
        """Return the URL by which an output can be read."""
        return f"{self._url}/{await self._repository.sign(record.id)}"

    async def _store(self, place: OutputFile) -> Record:
        """Store a returned file, and return its record."""
        file = place.file
        if not isinstance(file, Local):
            return await self._repository.record(file.reference)
        if isinstance(file.content, Path):
            if file.kind is Kind.DIRECTORY and not await in_disk_thread(file.content.is_dir):
                raise SourceRefused(str(file.content), "a Directory is returned, but its path is not a folder")
            # The user who started the run cannot rename the file, and must not lose what the run has computed.
            name = replace_separators(await in_disk_thread(default_name, file.content))
            return (await push(self._repository, file.content, name=name)).record
        given_name = handle_name(file.content)
        with ExitStack() as stack:
            opening = readable_path(file.content, self._spool_folder, where=place.where)
            # One at a time: copying moves the position of a handle, and a pipeline may return one handle twice.
            async with self._copying:
                path = await in_disk_thread(stack.enter_context, opening)
            stored_name = given_name or await in_disk_thread(content_name, path)
            try:
                return (await push(self._repository, path, name=stored_name)).record
            except SourceError as error:
                # The path is internal, and means nothing to the author of the pipeline.
                raise type(error)(f"the handle {stored_name!r}", *error.args[1:]) from None
