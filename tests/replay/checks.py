"""Check what a power cut has left, with the product's own code, against what was promised before."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect, open_backend
from filestore.core.manifest import CHUNK_LIMIT, Manifest
from filestore.core.records import Record
from filestore.errors import FilestoreError, IndexDamaged, NotARepository
from filestore.format.codec import Decoder, Frame, frame_limit
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.backup import back_up
from filestore.repository.maintenance.check import ReadPlan, check
from filestore.repository.maintenance.findings import Finding
from filestore.repository.maintenance.restore import restore
from filestore.repository.protocol import Repository
from tests.replay.promises import Promises, digest_of, digest_of_path
from tests.replay.scenarios import FETCHES, cached_contents, fetch_to, repair_index, resolve_all
from tests.support.frames import contents, encoded, manifest

_CHUNKS = contents(2, size=2000, seed=9)
_FRAMES = [encoded(chunk) for chunk in _CHUNKS]
_PUSHED = manifest(_CHUNKS).encoded
_decoder = Decoder()
_memory = memoryview(bytearray(CHUNK_LIMIT))

Check = Callable[["Left"], Awaitable[None]]
"""Raises ViolationError."""


class Left(NamedTuple):
    """What a power cut has left."""

    root: Path
    """The folder with the state of the disk."""
    beside: Path
    """What was not recorded, and survives."""
    promises: Promises
    is_used: bool
    """Whether to look also if work can go on: a push, a fetch, a backup."""


class ViolationError(Exception):
    """A promise is broken."""


async def check_repository(left: Left) -> None:
    """Open a repository: acknowledged records are whole, nothing is damaged, and a push succeeds."""
    promises = left.promises
    with violations("the repository cannot be opened"):
        store, index = await open_backend(left.root, create=not promises.is_made, min_free=0)
    repository = LocalRepository(store, index, location=str(left.root))
    try:
        await _check_records(repository, promises)
        if promises.is_clean:
            async for found in check(store, index, read=ReadPlan(readers=1), writes=False):
                if not isinstance(found, Finding) or found.is_damage:
                    raise ViolationError(f"a check finds {found}")
        if left.is_used:
            await _check_push(repository)
    finally:
        await repository.close()


async def check_fetched(left: Left) -> None:
    """Whatever is at the path of a fetch is whole, and a fetch again succeeds."""
    _check_paths(left)
    if left.is_used:
        async with connect(left.beside / "repository", read_only=True) as repository:
            for path in FETCHES:
                with violations(f"{path} cannot be fetched again"):
                    await fetch_to(repository, left.root, path)


async def check_cached(left: Left) -> None:
    """What is left of an entry of the cache is whole, or gone, and a resolve gives the right bytes."""
    _check_paths(left)
    async with connect(left.beside / "repository", read_only=True) as repository:
        with violations("nothing can be resolved"):
            paths = await resolve_all(repository, left.root)
    if [digest_of_path(path) for path in paths] != cached_contents(left.beside):
        raise ViolationError("the cache gives other bytes")


async def check_backup(left: Left) -> None:
    """The newest backup can be restored, and another backup can be made."""
    target = left.root / "backups"
    if left.promises.is_backed_up:
        await _check_restored(target, left)
    if left.is_used:
        with violations("no other backup can be made"):
            await back_up(left.beside, target, full=True)
        await _check_restored(target, left)


async def check_restore(left: Left) -> None:
    """The folder holds a whole repository, or is refused until the restore is done again."""
    try:
        await check_repository(left)
    except ViolationError as error:
        if not isinstance(error.__cause__, NotARepository) or left.promises.removed:
            raise
        with violations("the restore cannot be done again"):
            await restore(left.beside, left.root)
        await check_repository(left)


async def check_lost_index(left: Left) -> None:
    """The repository is opened once its repair has ended. Before that, it may be refused, and another repair succeeds."""
    if not left.promises.is_made:
        try:
            store, index = await open_backend(left.root, min_free=0)
        except (IndexDamaged, NotARepository):
            if not left.is_used:
                return
            with violations("the index cannot be repaired again"):
                await repair_index(left.root)
        else:
            await index.close()
            await store.close()
    await check_repository(left)


CHECKS: dict[str, Check] = {
    "backup": check_backup,
    "cache": check_cached,
    "fetch": check_fetched,
    "lost-index": check_lost_index,
    "restore": check_restore,
}
"""The checks of scenarios. The others work on a repository."""


@contextmanager
def violations(what: str) -> Iterator[None]:
    """Raise each error of the product as a ViolationError."""
    try:
        yield
    except FilestoreError as error:
        raise ViolationError(f"{what}: {error}") from error


def _check_paths(left: Left) -> None:
    for path, allowed in left.promises.paths.items():
        if digest_of_path(left.root / path) not in allowed:
            raise ViolationError(f"{path} is not whole")


async def _check_records(repository: Repository, promises: Promises) -> None:
    with violations("the records cannot be listed"):
        listed = {record.id: record for record in await repository.records()}
    for file_id, (name, digest, content) in promises.stored.items():
        record = listed.get(file_id)
        if record is None:
            raise ViolationError(f"the record {name} is lost")
        if (record.name, str(record.digest)) != (name, digest):
            raise ViolationError(f"the record {name} has changed")
        with violations(f"the file {name} cannot be read"):
            if digest_of(await _content(repository, record)) != content:
                raise ViolationError(f"the file {name} has other bytes")
    for file_id in promises.removed & listed.keys():
        raise ViolationError(f"the record {listed[file_id].name} is there again")
    if promises.is_clean:
        for file_id in listed.keys() - promises.stored.keys():
            with violations(f"the file {listed[file_id].name}, which was not acknowledged, cannot be read"):
                await _content(repository, listed[file_id])


async def _content(repository: Repository, record: Record) -> bytes:
    """Return the bytes of a file, each chunk verified."""
    parsed = Manifest.parse(await repository.manifest(record.digest))
    buffer = memoryview(bytearray(sum(frame_limit(chunk.size) for chunk in parsed.chunks)))
    frames = await repository.get([chunk.digest for chunk in parsed.chunks], buffer)
    parts = []
    for chunk, frame in zip(parsed.chunks, frames, strict=True):
        if frame is None:
            raise ViolationError(f"the file {record.name} has lost a chunk")
        parts.append(bytes(_decoder.decode(Frame(chunk.digest, frame), _memory)))
    return b"".join(parts)


async def _check_push(repository: Repository) -> None:
    with violations("a push fails"):
        await repository.put(_FRAMES)
        record = await repository.commit(_PUSHED, name="pushed after the power cut")
        if await _content(repository, await repository.record(record.id)) != b"".join(_CHUNKS):
            raise ViolationError("a push has stored other bytes")


async def _check_restored(target: Path, left: Left) -> None:
    root = left.root / "restored"
    try:
        with violations("the newest backup cannot be restored"):
            await restore(target, root)
        await check_repository(left._replace(root=root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
