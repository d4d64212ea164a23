"""Find repositories at the upstream. What it said last is kept on disk, for all processes and for the time when it is away.

    revisions/REVISION      what a revision of a repository meant when the upstream was asked last
    listings/NAME-COMMIT    the files of a commit

REVISION and NAME stand for the texts that they are hashed from.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from filestore.core.digest import token_digest
from filestore.core.records import parse_json
from filestore.errors import NotFound, RevisionNotFound, StorageError, UpstreamFailed, UpstreamGated, UpstreamUnauthorized
from filestore.http.server.errors import FailureLog
from filestore.repository.local import LocalRepository
from filestore.system.files import storage_errors, write_atomic, write_durably
from filestore.system.owners import make_private
from filestore.system.small_files import read_json, read_small
from filestore.system.threads import SingleFlight, in_cpu_thread, in_disk_thread
from filestore.upstream.admissions import Admissions
from filestore.upstream.contents import Contents, WantedContent
from filestore.upstream.hub import Hub, Refused
from filestore.upstream.listing import DOCUMENT_LIMIT, Listing, kept_listing
from filestore.upstream.options import UpstreamOptions
from filestore.upstream.refs import UpstreamRef, kept_refs, refs_document

KINDS = ("models", "datasets", "spaces")
MAIN = "main"

PATIENCE_SECONDS = 5.0
"""How long a request waits for the answer about a revision that is known. After that, the last answer counts.

Clients wait for 10 seconds, and then take what they have in their own caches.
"""
FAILURE_SECONDS = 10.0
"""How long the upstream is not asked again for what it has just refused or failed to give."""
ANSWERS_LIMIT = 50_000
"""The most revisions, and commits, of which the answers are kept on disk. Beyond that, the oldest ones are removed."""
ANSWERS_SIZE = 4 << 30
"""The most bytes of these answers. Those about a repository of many files have megabytes for each commit."""
_CHECKED_EVERY, _CHECKED_SIZE = 256, 256 << 20
"""After this many answers of a process, or this many bytes of them, it looks whether there are too many."""
_FAILURES_KEPT = 4096
_VERDICTS_KEPT = 4096
_FILES_KEPT = 200_000
"""Files of all listings that a process keeps in memory. One takes about 500 bytes."""
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9._-]{1,96}(?:/[A-Za-z0-9._-]{1,96})?\Z")
_REVISION_LIMIT = 255
_SHOWN_TO_NOBODY = (
    "it is absent there or private; for a private one, send a token of the upstream in the header X-Upstream-Authorization,"
    " or after a tilde behind the token of this server"
)
_NOT_ACCEPTED = "it does not accept the token of the upstream that was sent"


class _Answer(NamedTuple):
    """What a revision meant when the upstream was asked last."""

    commit: str
    is_private: bool
    is_gated: bool
    asked_at: float
    """By the clock of this machine, in seconds since 1970."""


class _KeptRefs(NamedTuple):
    """What the upstream has listed last."""

    refs: list[UpstreamRef]
    asked_at: float


class UpstreamRevision(NamedTuple):
    """A revision of a repository at the upstream, which the caller may read."""

    kind: str
    name: str
    listing: Listing
    token: str | None
    """The caller's token at the upstream. None if everybody may read the repository."""

    def content(self, path: str) -> WantedContent | None:
        """Return the content of the file at a path. Return None if there is none."""
        file = self.listing.files.get(path)
        if file is None:
            return None
        return WantedContent(self.kind, self.name, self.listing.commit, path, file, is_open=self.token is None)


class Upstream:
    """The upstream of a server. Make one in each process; use it in one event loop, and close it."""

    def __init__(
        self,
        options: UpstreamOptions,
        folder: Path,
        repository: LocalRepository,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep what is known in `folder`, and contents in `repository`, whose namespace is theirs alone."""
        self._options = options
        self._folder = folder
        self._hub = Hub(options, folder / "answers")
        self._clock = clock
        self.contents = Contents(folder, repository, self._hub, size_limit=options.size_limit)
        self._listings: OrderedDict[tuple[str, str, str], Listing] = OrderedDict()
        self._failures: OrderedDict[tuple[str, ...], tuple[float, Refused | UpstreamFailed]] = OrderedDict()
        self._verdicts: OrderedDict[tuple[str, ...], float] = OrderedDict()
        """Until when a token may read a repository, in monotonic seconds."""
        self._admissions = Admissions(folder, clock=clock)
        self._refs_flights = SingleFlight()
        self._asking: dict[tuple[str, ...], asyncio.Task[Listing]] = {}
        self._kept_count = self._kept_size = 0
        self._log = FailureLog("the upstream does not answer, so what it said before is served")

    @property
    def is_offline(self) -> bool:
        """Whether the upstream is never asked."""
        return self._options.is_offline

    async def close(self) -> None:
        """Stop what is done for requests."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self.contents.close()

    async def find(self, kind: str, name: str, revision: str, *, token: str | None) -> UpstreamRevision:
        """Return what a revision of a repository has, if the caller may read it. `token` is the caller's token at the upstream.

        The upstream is asked if its last answer is too old. If it is away, that answer counts.

        Raises NotFound, RevisionNotFound, UpstreamGated, UpstreamUnauthorized, UpstreamFailed, StorageError.
        """
        if kind not in KINDS or not _NAME.match(name) or not 0 < len(revision) <= _REVISION_LIMIT or not revision.isprintable():
            raise NotFound(name)
        listing, away = await self._listing(kind, name, revision, token)
        if listing.is_open:
            return UpstreamRevision(kind, name, listing, None)
        if token is None:
            if not listing.is_private:
                raise UpstreamGated(name)
            # As for what is absent, so that nobody learns what is here.
            raise away if away is not None else self._hidden(name, token)
        await self._check(kind, name, token, away=away)
        return UpstreamRevision(kind, name, listing, token)

    async def _listing(self, kind: str, name: str, revision: str, token: str | None) -> tuple[Listing, UpstreamFailed | None]:
        """Return what a revision has, and the failure of the upstream if it is away, so that its last answer counts."""
        known = await in_disk_thread(self._known, kind, name, revision)
        age = None if known is None else self._clock() - known.asked_at
        listing = None
        if known is not None and (self.is_offline or (age is not None and 0 <= age < self._options.max_age_seconds)):
            listing = await self._kept(kind, name, known)
        if listing is not None:
            return listing, None
        if self.is_offline:
            raise NotFound(name)
        try:
            async with asyncio.timeout(None if known is None else PATIENCE_SECONDS):
                listing = await self._asked(kind, name, revision, token)
            self._log.succeeded()
        except (UpstreamFailed, TimeoutError) as error:
            away = UpstreamFailed(name, "it does not answer") if isinstance(error, TimeoutError) else error
            listing = None if known is None else await self._kept(kind, name, known)
            if listing is None:
                raise away from None
            self._log.failed(error)
            return listing, away
        except Refused as refused:
            told = await self._refusal(kind, name, revision, token, refused)
            if token is not None and not isinstance(told, RevisionNotFound):
                await in_disk_thread(self._admissions.forget, kind, name, token)
            raise told from None
        return listing, None

    async def refs(self, revision: UpstreamRevision) -> list[UpstreamRef]:
        """Return the branches and tags of a repository, of which the caller may read a revision. `main` is the one of `find`.

        The upstream is asked if its last answer is too old. If it is away, or lists nothing, that answer counts, or only `main`.
        """
        kind, name, listing, token = revision
        place = self._folder / "refs" / blake3(f"{kind}\0{name}".encode()).hexdigest()
        kept = await in_disk_thread(self._known_refs, place)
        if not self.is_offline and (kept is None or not 0 <= self._clock() - kept.asked_at < self._options.max_age_seconds):
            with suppress(UpstreamFailed, Refused, TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    kept = await self._refs_flights.run((kind, name, token), partial(self._ask_refs, revision, place))
        others = [] if kept is None else [each for each in kept.refs if (each.kind, each.name) != ("branches", MAIN)]
        return [UpstreamRef("branches", MAIN, listing.commit), *others]

    async def _ask_refs(self, revision: UpstreamRevision, place: Path) -> _KeptRefs:
        failure_key = ("refs", revision.kind, revision.name, "" if revision.token is None else str(token_digest(revision.token)))
        try:
            self._raise_failure(failure_key)
            refs = await self._hub.refs(revision.kind, revision.name, token=revision.token)
        except (Refused, UpstreamFailed) as error:
            self._note_failure(failure_key, error)
            raise
        kept = _KeptRefs(refs, self._clock())
        await in_disk_thread(write_durably, place, {"asked_at": kept.asked_at, **refs_document(refs)})
        return kept

    async def _refusal(self, kind: str, name: str, revision: str, token: str | None, refused: Refused) -> Exception:
        """Return the error for a refused revision."""
        if refused.status == 403:
            return UpstreamGated(name)
        if revision != MAIN and refused.status == 404:
            try:
                await self.find(kind, name, MAIN, token=token)
            except (NotFound, UpstreamFailed, UpstreamUnauthorized):
                return self._hidden(name, token)
            return RevisionNotFound(name, revision)
        return self._hidden(name, token, refused)

    def _hidden(self, name: str, token: str | None, refused: Refused | None = None) -> Exception:
        """Return the error for a repository that the upstream does not show, whether it exists or not."""
        if self.is_offline:
            return NotFound(name)
        if token is None:
            return UpstreamUnauthorized(name, _SHOWN_TO_NOBODY)
        return UpstreamUnauthorized(name, _NOT_ACCEPTED) if refused is not None and refused.status == 401 else NotFound(name)

    async def _asked(self, kind: str, name: str, revision: str, token: str | None) -> Listing:
        """Ask the upstream, once for all requests of this process that wait for the same answer."""
        key = (kind, name, revision, "" if token is None else str(token_digest(token)))
        self._raise_failure(key)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(kind, name, revision, token))
            task.add_done_callback(partial(self._answered, key))
        return await asyncio.shield(task)

    def _answered(self, key: tuple[str, ...], task: asyncio.Task[Listing]) -> None:
        del self._asking[key]
        self._failures.pop(key, None)
        if not task.cancelled() and isinstance(error := task.exception(), Refused | UpstreamFailed):
            self._note_failure(key, error)

    def _raise_failure(self, key: tuple[str, ...]) -> None:
        """Raise what the upstream has just answered to a question, if that was no answer."""
        failed = self._failures.get(key)
        if failed is not None and time.monotonic() < failed[0]:
            raise failed[1].with_traceback(None)

    def _note_failure(self, key: tuple[str, ...], error: Refused | UpstreamFailed) -> None:
        known = self._failures.pop(key, None)
        if known is not None and known[1] is error:
            # It was not asked again.
            self._failures[key] = known
            return
        self._failures[key] = time.monotonic() + min(FAILURE_SECONDS, self._options.max_age_seconds), error
        while len(self._failures) > _FAILURES_KEPT:
            self._failures.popitem(last=False)

    async def _ask(self, kind: str, name: str, revision: str, token: str | None) -> Listing:
        try:
            # What everybody may read must not depend on who asks first.
            listing = await self._hub.describe(kind, name, revision, token=None)
        except Refused:
            if token is None:
                raise
            listing = replace(await self._hub.describe(kind, name, revision, token=token), is_private=True)
        answer = _Answer(listing.commit, listing.is_private, listing.is_gated, self._clock())
        document = await in_cpu_thread(lambda: json.dumps(listing.as_json()).encode())
        await in_disk_thread(self._keep, kind, name, revision, answer, document)
        self._remember(kind, name, listing)
        return listing

    async def _check(self, kind: str, name: str, token: str, *, away: UpstreamFailed | None) -> None:
        """Raise NotFound, UpstreamGated or UpstreamUnauthorized unless the upstream lets a token read a repository.

        If it cannot be asked, as `away` says, what it said before counts. Raises UpstreamFailed if it has said nothing.
        """
        key = (kind, name, str(token_digest(token)))
        if time.monotonic() < self._verdicts.get(key, 0.0):
            return
        was_allowed = await in_disk_thread(self._admissions.is_allowed, kind, name, token)
        if self.is_offline and not was_allowed:
            raise self._hidden(name, token)
        if away is None and not self.is_offline:
            away = await self._ask_whether(key, token, is_patient=not was_allowed)
        if away is not None and not was_allowed:
            raise away

    async def _ask_whether(self, key: tuple[str, str, str], token: str, *, is_patient: bool) -> UpstreamFailed | None:
        """Ask the upstream whether it lets a token read a repository, and note the answer. Return its failure if it is away."""
        kind, name, _ = key
        failure_key = ("auth-check", *key)
        try:
            self._raise_failure(failure_key)
            async with asyncio.timeout(None if is_patient else PATIENCE_SECONDS):
                await self._hub.check(kind, name, token=token)
        except Refused as refused:
            self._note_failure(failure_key, refused)
            await in_disk_thread(self._admissions.forget, kind, name, token)
            raise UpstreamGated(name) if refused.status == 403 else self._hidden(name, token, refused) from None
        except (UpstreamFailed, TimeoutError) as error:
            away = UpstreamFailed(name, "it does not answer") if isinstance(error, TimeoutError) else error
            self._note_failure(failure_key, away)
            return away
        self._verdicts.pop(key, None)
        self._verdicts[key] = time.monotonic() + self._options.max_age_seconds
        while len(self._verdicts) > _VERDICTS_KEPT:
            self._verdicts.popitem(last=False)
        with suppress(StorageError):  # it is only asked again
            await in_disk_thread(self._admissions.allow, kind, name, token)
        return None

    async def _kept(self, kind: str, name: str, answer: _Answer) -> Listing | None:
        """Return the listing of an answer, or None if it is not here. Who may read it is what the answer says."""
        listing = self._listings.get((kind, name, answer.commit))
        if listing is None:
            listing = await in_disk_thread(self._read, kind, name, answer.commit)
            if listing is None:
                return None
            self._remember(kind, name, listing)
        if (listing.is_private, listing.is_gated) != (answer.is_private, answer.is_gated):
            listing = replace(listing, is_private=answer.is_private, is_gated=answer.is_gated)
        return listing

    def _remember(self, kind: str, name: str, listing: Listing) -> None:
        self._listings.pop((kind, name, listing.commit), None)
        self._listings[kind, name, listing.commit] = listing
        while sum(len(each.files) + 1 for each in self._listings.values()) > _FILES_KEPT and len(self._listings) > 1:
            self._listings.popitem(last=False)

    # Below: files. All functions block.

    def _known(self, kind: str, name: str, revision: str) -> _Answer | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _answer_from(read_json(self._revision_path(kind, name, revision)))
        return None

    def _known_refs(self, place: Path) -> _KeptRefs | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = read_json(place)
            return _KeptRefs(kept_refs(values), float(values["asked_at"]))
        return None

    def _read(self, kind: str, name: str, commit: str) -> Listing | None:
        with suppress(OSError, ValueError, KeyError, TypeError, StorageError):
            return kept_listing(parse_json(read_small(self._listing_path(kind, name, commit), limit=2 * DOCUMENT_LIMIT)))
        return None

    def _keep(self, kind: str, name: str, revision: str, answer: _Answer, document: bytes) -> None:
        path = self._listing_path(kind, name, answer.commit)
        with storage_errors(path):
            make_private(path.parent)
            write_atomic(path, document)
        # After the files: a revision never means a commit without them. The commit names itself too.
        for named in dict.fromkeys((revision, answer.commit)):
            write_durably(self._revision_path(kind, name, named), answer._asdict())

        self._kept_count += 1
        self._kept_size += len(document)
        if self._kept_count >= _CHECKED_EVERY or self._kept_size >= _CHECKED_SIZE:
            self._kept_count = self._kept_size = 0
            kept = (self._folder / name for name in ("listings", "revisions", "refs"))
            for folder in (*kept, self._admissions.folder):
                remove_oldest(folder, limit=ANSWERS_LIMIT, size_limit=ANSWERS_SIZE)

    def _revision_path(self, kind: str, name: str, revision: str) -> Path:
        return self._folder / "revisions" / blake3(f"{kind}\0{name}\0{revision}".encode()).hexdigest()

    def _listing_path(self, kind: str, name: str, commit: str) -> Path:
        key = blake3(f"{kind}\0{name}".encode()).hexdigest()
        return self._folder / "listings" / f"{key}-{commit}"


def remove_oldest(folder: Path, *, limit: int, size_limit: int) -> None:
    """Remove the oldest files of a folder, so that a tenth less than `limit`, and than `size_limit` bytes, stays.

    Does nothing if there are not more. Blocks.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        found = [(status.st_mtime, status.st_size, entry.path) for entry in entries if (status := _status(entry)) is not None]
        count, size = len(found), sum(each[1] for each in found)
        if count <= limit and size <= size_limit:
            return
        for _, own_size, path in sorted(found):
            if count <= limit * 9 // 10 and size <= size_limit * 9 // 10:
                return
            Path(path).unlink(missing_ok=True)
            count, size = count - 1, size - own_size


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    with suppress(FileNotFoundError):  # another process may remove it at the same time
        return entry.stat(follow_symlinks=False)
    return None


def _answer_from(values: Any) -> _Answer:
    answer = _Answer(values["commit"], values["is_private"], values["is_gated"], values["asked_at"])
    if not isinstance(answer.commit, str) or not isinstance(answer.asked_at, int | float):
        raise TypeError("it is not an answer")
    return answer
