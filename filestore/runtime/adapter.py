"""The run adapter: a run's inputs become local paths, what a pipeline returns becomes stored files."""

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
from filestore.runtime.handles import handle_name, readable_path
from filestore.runtime.inputs import InputFile, Inputs, Make
from filestore.runtime.outputs import OutputFile, Outputs, file_answer
from filestore.runtime.prepare import PrepareResult, map_bounded, prepare
from filestore.runtime.values import Local, stored_value
from filestore.system.threads import in_disk_thread
from filestore.transfer.push import default_name, push


def _as_path(_: Kind, path: Path) -> object:
    return path


class Adapter:
    """What a runtime calls at its start and at each run. Any number of runs may use one at the same time, in one event loop."""

    def __init__(self, cache: Cache, repository: Repository, *, url: str | None = None, spool_folder: Path | None = None) -> None:
        """`cache` is one of `repository`. `url`: that of a server of this repository, as those see it who read what runs return.

        Where `repository` is a server, that is its URL, unless another is given; where it is a folder, one must be given before a
        pipeline returns a file. `spool_folder` is for what a pipeline returns in memory; the system's temporary one by default.
        """
        is_server = repository.location.startswith(("http://", "https://"))
        self._url = (url or (repository.location if is_server else "")).rstrip("/")
        self._cache = cache
        self._repository = repository
        self._spool_folder = spool_folder
        self._copying = asyncio.Lock()

    async def prepare(self, files: Sequence[object], *, report: Report | None = None) -> PrepareResult:
        """Resolve the static files of a pipeline, all at once, the large ones first; what is in the cache asks no network.

        They stay in the cache until it is closed, whatever else is fetched meanwhile.

        `files`: values of ours or of the Pipeline SDK. Raises InvalidReference, and what `Cache.resolve` raises, for the first
        that fails; what had come of the others is not fetched again.
        """
        return await prepare(self._cache, self._repository, [stored_value(file) for file in files], report=report)

    @asynccontextmanager
    async def inputs(
        self, input_data: object, declared: Sequence[object] | None = None, *, make: Make = _as_path
    ) -> AsyncIterator[list[object]]:
        """The arguments of a run: `input_data` (v3) or `inputs` (v4) of its request, each file in them resolved.

        The files stay in the cache until the block ends, whatever else is fetched meanwhile.

        `declared`: the type of each parameter, for a file or a list of them `File`, `Directory` or `FileURL`, of ours or of the
        Pipeline SDK, also in `list[...]`, `dict[str, ...]`, `Optional[...]` and the annotations of a class; None where
        nobody knows. A file in a `Directory`'s place is unpacked, any other is the file that it is. `make(kind, path)` is what
        stands for a file in the arguments, else the path does. `input_data` itself stays as it is.

        Raises InvalidRun for a request that cannot be right, before anything is fetched, and what `Cache.resolve` raises.
        """
        read = Inputs(input_data, declared, url=self._url or None)

        async with AsyncExitStack() as stack:

            async def resolve(files: Iterator[InputFile]) -> None:
                for file in files:
                    path = await stack.enter_async_context(self._cache.lease(file.wanted))
                    file.container[file.key] = make(file.kind, path)

            await map_bounded(resolve, read.places)
            yield read.arguments

    async def outputs(self, returned: Sequence[object]) -> list[dict[str, object]]:
        """The `outputs` of a run's answer: one for each value that the pipeline returned, each file in them stored.

        A file is a `File` or a `Directory`, of ours or of the Pipeline SDK, a `pathlib.Path`, or an open handle, such as a
        `BytesIO`, whose whole content is stored wherever it stands; it stands there afterwards. What is stored already is
        not stored again. Everything else is JSON.

        Raises InvalidRun before anything is stored; SourceUnreadable, SourceChanged, SourceRefused, InvalidName, NotFound,
        StorageError, TransferError, after which some of the files may be stored, each as a whole.
        """
        read = Outputs(returned)
        if read.places and not self._url:
            raise InvalidSetting("the adapter's url", "it is not given, and a file needs one to be read by; give a server's")

        async def store(files: Iterator[OutputFile]) -> None:
            for file in files:
                record = await self._store(file)
                url = f"{self._url}/{await self._repository.sign(record.id)}"
                file.container[file.key] = file_answer(record, url)

        await map_bounded(store, read.places)
        return read.answers

    async def _store(self, place: OutputFile) -> Record:
        """The record of a returned file."""
        file = place.file
        if not isinstance(file, Local):
            return await self._repository.record(file.reference)
        if isinstance(file.content, Path):
            if file.kind is Kind.DIRECTORY and not await in_disk_thread(file.content.is_dir):
                raise SourceRefused(str(file.content), "a Directory is returned, and no folder is there")
            # Whoever started the run cannot rename the file, and must not lose what the run has computed.
            name = replace_separators(await in_disk_thread(default_name, file.content))
            return (await push(self._repository, file.content, name=name)).record
        name = handle_name(file.content, place.name)
        with ExitStack() as stack:
            opening = readable_path(file.content, self._spool_folder, where=place.where)
            # One at a time: a handle that is returned twice is moved by whoever copies it.
            async with self._copying:
                path = await in_disk_thread(stack.enter_context, opening)
            try:
                return (await push(self._repository, path, name=name)).record
            except SourceError as error:
                # The path is one of ours, and says nothing to whoever wrote the pipeline.
                raise type(error)(f"the handle {name!r}", *error.args[1:]) from None
