"""A repository that records its calls, and lets a test act before each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from filestore.core.commits import MAIN, PLAIN_COMMIT, Commit, Label, LabelKind, NewCommit
from filestore.core.digest import Digest
from filestore.core.links import Link
from filestore.core.records import Kind, Record
from filestore.format.codec import Frame
from filestore.repository.protocol import (
    FreedContent,
    Identity,
    Moved,
    Opening,
    Repository,
    TransferLimits,
    Usage,
    VersionPage,
    Wanted,
)


async def _nothing(_: str) -> None:
    return None


class WatchedRepository:
    """Pass every verb on to `inner`. `calls` has their names. `before` runs before each and may raise."""

    def __init__(self, inner: Repository, *, before: Callable[[str], Awaitable[None]] = _nothing) -> None:
        self.inner = inner
        self.before = before
        self.calls: list[str] = []
        self.chunks_got = 0
        self.chunks_put = 0

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def waited_seconds(self) -> float | None:
        return self.inner.waited_seconds

    @property
    def waited_because(self) -> str:
        return self.inner.waited_because

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        return self.inner.asked_pause

    @property
    def transfer_limits(self) -> TransferLimits:
        return self.inner.transfer_limits

    def opening(self) -> Opening | None:
        return None  # another process would not call this object

    def lending(self, processes: int) -> AbstractAsyncContextManager[int]:
        return self.inner.lending(processes)

    async def identity(self) -> Identity:
        await self._note("identity")
        return await self.inner.identity()

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        await self._note("missing")
        return await self.inner.missing(digests)

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        await self._note("put")
        await self.inner.put(frames, moved=moved)
        self.chunks_put += len(frames)

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        await self._note("get")
        frames = await self.inner.get(digests, buffer, moved=moved)
        self.chunks_got += len(frames)
        return frames

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        await self._note("verify_chunks")
        return await self.inner.verify_chunks(digests)

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        await self._note("commit")
        return await self.inner.commit(manifest, name=name, kind=kind, commit=commit)

    async def check_new_name(self, name: str, *, branch: str = MAIN) -> None:
        await self._note("check_new_name")
        await self.inner.check_new_name(name, branch=branch)

    async def find_commit(self, name: str, revision: str | None = None) -> Commit:
        await self._note("find_commit")
        return await self.inner.find_commit(name, revision)

    async def history(
        self, name: str, *, revision: str | None = None, limit: int = 1000, before: int | None = None
    ) -> list[Commit]:
        await self._note("history")
        return await self.inner.history(name, revision=revision, limit=limit, before=before)

    async def labels(self, name: str) -> list[Label]:
        await self._note("labels")
        return await self.inner.labels(name)

    async def set_label(
        self, name: str, label: str, *, kind: LabelKind = LabelKind.TAG, revision: str | None = None, force: bool = False
    ) -> Label:
        await self._note("set_label")
        return await self.inner.set_label(name, label, kind=kind, revision=revision, force=force)

    async def remove_label(self, name: str, label: str) -> Label:
        await self._note("remove_label")
        return await self.inner.remove_label(name, label)

    async def manifest(self, digest: Digest) -> bytes:
        await self._note("manifest")
        return await self.inner.manifest(digest)

    async def record(self, wanted: Wanted) -> Record:
        await self._note("record")
        return await self.inner.record(wanted)

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        await self._note("records")
        return await self.inner.records(limit=limit, before=before)

    async def iter_records(self) -> AsyncGenerator[Record, None]:
        await self._note("iter_records")
        async for record in self.inner.iter_records():
            yield record

    async def sign(self, file_id: str) -> str:
        await self._note("sign")
        return await self.inner.sign(file_id)

    async def make_link(self, file_id: str, *, seconds: float) -> Link:
        await self._note("make_link")
        return await self.inner.make_link(file_id, seconds=seconds)

    async def links(self) -> list[Link]:
        await self._note("links")
        return await self.inner.links()

    async def revoke_link(self, link_id: str) -> Link:
        await self._note("revoke_link")
        return await self.inner.revoke_link(link_id)

    async def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        await self._note("versions")
        return await self.inner.versions(
            wanted, limit=limit, before=before, keep_last=keep_last, older_than_seconds=older_than_seconds
        )

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        await self._note("freed_by")
        return await self.inner.freed_by(file_ids)

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        await self._note("usage")
        return await self.inner.usage(grace_seconds=grace_seconds, name_limit=name_limit)

    async def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        await self._note("remove")
        return await self.inner.remove(
            file_id, with_chunks=with_chunks, force=force, updated_at=updated_at, unless_newest=unless_newest
        )

    async def close(self) -> None:
        await self.inner.close()

    async def _note(self, verb: str) -> None:
        self.calls.append(verb)
        await self.before(verb)
