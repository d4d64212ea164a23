"""A simulated client: it pushes, fetches and removes files of its own, and looks at what it gets."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from pathlib import Path

from filestore.core.records import Record
from filestore.errors import Busy, ChunksMissing, FilestoreError, StorageFull, TransferError
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch_record
from filestore.transfer.push import push
from filestore.transfer.seeds import FileSeed
from filestore.transfer.sources.push_cache import PushCache
from tests.simulation.kernel.process import Process
from tests.simulation.kernel.world import World
from tests.simulation.world.asked import AskedRepository
from tests.simulation.world.contents import BLOCK_COUNT, OPTIONS, content_of, file_digest, manifest_of_content
from tests.simulation.world.mixes import Mix
from tests.simulation.world.model import Fate, Model, Version
from tests.simulation.world.servers import reached

_NAME_COUNT = 3
"""How many names a client has, and how many targets. So its files get several versions."""
_PAUSE_SECONDS = 0.02
_CANCEL_SECONDS = 0.05
"""A fetch is cancelled within this time."""
_SLOW_SECONDS = 0.2
"""How long a slow push does nothing. A collection ends in less."""
_PASSING = (TransferError, StorageFull, Busy)
"""Errors that a kill, a cut connection, a full disk or another writer may cause."""


class DiskFullError(Exception):
    """This client cannot write a file of its own."""


class Client:
    """Does one thing after another until the simulation is over."""

    def __init__(self, world: World, model: Model, *, mix: Mix, name: str, location: str | Path) -> None:
        self._world = world
        self._model = model
        self._name = name
        self._location = location
        self._mix = mix
        self._pushed = 0
        self._interrupted: tuple[Version, Path] | None = None
        """The fetch that was under way when this client was killed."""

    async def main(self, process: Process) -> None:
        """Run in a process. It may be killed and started again at any time."""
        self._model.interrupt(self._name)
        # Another folder after each start: a power cut may have torn the files that a push reads.
        folder = process.machine.folder / f"{self._name}-{process.starts}"
        folder.mkdir(exist_ok=True)
        with PushCache(folder / "push-cache.sqlite") as push_cache:
            async with reached(self._location) as inner:
                repository = AskedRepository(inner, self._model, lambda: self._world.now, self._pause_push)
                while self._model.goes_on():
                    try:
                        await self._step(process, repository, push_cache, folder)
                    except (DiskFullError, *_PASSING) as error:
                        self._model.counts[type(error).__name__] += 1
                    except FilestoreError as error:
                        self._model.fail(f"{self._name}: {type(error).__name__}: {error}")
                    if process.is_running:
                        self._model.interrupt(self._name)
                    await asyncio.sleep(self._world.random.uniform(0, _PAUSE_SECONDS))

    async def _step(self, process: Process, repository: Repository, push_cache: PushCache, folder: Path) -> None:
        if self._interrupted is not None:
            version, target = self._interrupted
            if version.fate is Fate.KEPT and version.record is not None:
                await self._fetch(repository, version, version.record, target, folder)
            self._interrupted = None
        kept = self._model.of(self._name, Fate.KEPT)
        if kept and self._mix.repeats and self._world.chance(self._mix.repeats):
            await self._repeat(process, repository, kept, push_cache, folder)
            return
        if kept and self._mix.fetches and self._world.chance(self._mix.fetches):
            await self._fetch_one(process, repository, self._world.pick(kept), folder)
            return
        choice = self._world.choose(10)
        if not kept or choice < 4:
            await self._push(repository, self._new_version(), push_cache, folder)
        elif choice == 4:
            await self._push(repository, self._world.pick(kept + self._model.of(self._name, Fate.GONE)), push_cache, folder)
        elif choice < 8:
            await self._fetch_one(process, repository, self._world.pick(kept), folder)
        if kept and (choice >= 8 or len(kept) > self._mix.kept_limit):
            await self._remove(repository, self._world.pick(kept), with_chunks=self._world.chance(0.3))

    async def _repeat(
        self, process: Process, repository: Repository, kept: list[Version], push_cache: PushCache, folder: Path
    ) -> None:
        """Push a version again that was removed, whose chunks a collection may take at this moment, or remove one."""
        gone = self._model.of(self._name, Fate.GONE)
        if gone and len(kept) <= self._mix.kept_limit // 2:
            await self._push(repository, self._world.pick(gone), push_cache, folder)
        else:
            version = self._world.pick(kept)
            if self._mix.moves:
                await self._fetch_one(process, repository, version, folder)
            await self._remove(repository, version, with_chunks=False)

    # Push.

    def _new_version(self) -> Version:
        """Return a version whose blocks are mostly those of an earlier one."""
        count = 1 + self._world.choose(8)
        blocks = [self._world.choose(BLOCK_COUNT) for _ in range(count)]
        self._pushed += 1
        content = content_of(blocks, tag=f"{self._name} {self._pushed}")
        name = f"{self._name}-{self._world.choose(_NAME_COUNT)}"
        return Version(self._name, name, content, file_digest(content))

    async def _push(self, repository: Repository, version: Version, push_cache: PushCache, folder: Path) -> None:
        source = folder / version.name
        _write(source, version.content)
        self._model.begin_push(version)
        try:
            pushed = await push(repository, source, name=version.name, push_cache=push_cache)
        except ChunksMissing as error:
            self._model.counts[type(error).__name__] += 1
            return
        self._model.end_push(version, pushed.record)
        found = await repository.versions(version.name)
        self._check_versions(version, found.records)

    def _check_versions(self, version: Version, records: list[Record]) -> None:
        same = [record.id for record in records if record.digest == version.digest]
        if same != [version.record.id if version.record is not None else None]:
            self._model.fail(f"a push of {version.name} was acknowledged as {version.record}, and its versions are {same}")

    async def _pause_push(self) -> None:
        if self._mix.slow_pushes and self._world.chance(self._mix.slow_pushes):
            await asyncio.sleep(self._world.random.uniform(0, _SLOW_SECONDS))

    # Fetch.

    async def _fetch_one(self, process: Process, repository: Repository, version: Version, folder: Path) -> None:
        if version.record is not None:
            target = process.machine.folder / f"{self._name}-target-{self._world.choose(_NAME_COUNT)}"
            await self._fetch(repository, version, version.record, target, folder)

    async def _fetch(self, repository: Repository, version: Version, record: Record, target: Path, folder: Path) -> None:
        allowed = self._model.targets.setdefault(target, {None})
        allowed.add(version.content)
        self._interrupted = version, target
        if self._mix.cancels and self._world.chance(self._mix.cancels):
            await self._cancelled_fetch(repository, record, target, allowed)
        seeds = [self._changed_seed(version, folder)] if self._world.chance(0.3) else []
        await fetch_record(repository, record, target=target, force=True, seeds=seeds, options=OPTIONS)
        self._interrupted = None
        if target.read_bytes() != version.content:
            self._model.fail(f"{self._name} fetched {version.name} ({record.id}), and the file has other bytes than were pushed")
        self._model.targets[target] = {version.content}
        self._model.counts["fetches"] += 1

    async def _cancelled_fetch(self, repository: Repository, record: Record, target: Path, allowed: set[bytes | None]) -> None:
        """Cancel a fetch to a new target at any moment. What it has received stays in its staging file for the next fetch."""
        allowed.add(None)
        target.unlink(missing_ok=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._world.random.uniform(0, _CANCEL_SECONDS)):
                await fetch_record(repository, record, target=target, force=True, options=OPTIONS)
                return
        self._model.counts["cancelled fetches"] += 1

    def _changed_seed(self, version: Version, folder: Path) -> FileSeed:
        """Return a seed whose file was changed after its manifest was made."""
        path = folder / "seed"
        changed = bytearray(version.content)
        start = self._world.choose(len(changed))
        changed[start : start + 1500] = bytes(len(changed[start : start + 1500]))
        _write(path, changed)
        return FileSeed(path, manifest_of_content(version.content))

    # Removal.

    async def _remove(self, repository: Repository, version: Version, *, with_chunks: bool) -> None:
        """Remove one version, or all versions of its name."""
        named = [each for each in self._model.of(self._name, Fate.KEPT) if each.name == version.name]
        for each in named if self._world.chance(0.2) else [version]:
            if each.record is None:
                continue
            file_id = each.record.id
            self._model.begin_removal(each, with_chunks=with_chunks)
            await repository.remove(file_id, with_chunks=with_chunks)
            self._model.end_removal(each, now=self._world.now)


def _write(path: Path, content: bytes | bytearray) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFullError from error
