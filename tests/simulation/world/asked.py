"""A repository that remembers which chunks it was asked about, and sees when a collection takes them away too early."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from filestore.core.commits import PLAIN_COMMIT, NewCommit
from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.errors import ChunksMissing
from filestore.format.codec import Frame
from filestore.repository.protocol import Moved, Repository
from tests.simulation.world.model import Model
from tests.support.watched import WatchedRepository


class AskedRepository(WatchedRepository):
    """Fails the simulation if a chunk that `missing` reported as present is gone within the grace period (I9)."""

    def __init__(self, inner: Repository, model: Model, now: Callable[[], float], pause: Callable[[], Awaitable[None]]) -> None:
        """`pause` is awaited after each answer of `missing`: the caller may be slow."""
        super().__init__(inner)
        self._model = model
        self._now = now
        self._pause = pause
        self._asked_at: dict[str, float] = {}

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        asked_at = self._now()
        found = await super().missing(digests)
        self._remember(set(digests).difference(found), asked_at)
        await self._pause()
        return found

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        put_at = self._now()
        await super().put(frames, moved=moved)
        self._remember({frame.digest for frame in frames}, put_at)

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        try:
            return await super().commit(manifest, name=name, kind=kind, commit=commit)
        except ChunksMissing as error:
            self._model.counts["chunks sent again"] += 1
            for digest in error.digests:
                asked_at = self._asked_at.get(digest)
                if asked_at is not None and self._must_be_there(asked_at):
                    self._model.fail(
                        f"the chunk {digest} was present for a push, and a collection removed it in its grace period"
                    )
            raise

    def _remember(self, digests: set[Digest], moment: float) -> None:
        self._asked_at |= dict.fromkeys(map(str, digests), moment)

    def _must_be_there(self, asked_at: float) -> bool:
        is_recent = self._now() - asked_at < self._model.grace_seconds
        return is_recent and not self._model.removing_chunks and self._model.chunks_removed_at < asked_at
