"""The files and folders of one commit, whatever its record is: a stored directory, or a single file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice

from filestore.core.commits import Commit
from filestore.core.content_digests import FileDigests
from filestore.core.names import split_full_name
from filestore.core.records import Kind
from filestore.errors import EntryNotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.digest_pass import DIGESTS
from filestore.http.server.model_card import NO_CARD, ModelCard
from filestore.http.server.routes.hub.dialect import note_commit
from filestore.http.server.routes.hub.documents import Entry
from filestore.http.server.routes.hub.names import HubRepository
from filestore.http.server.stored_trees import OpenedTree
from filestore.repository.local import LocalRepository
from filestore.transfer.stored_tree import EntryKind, StoredEntry


class Snapshot:
    """The files and folders of one commit. Links are shown as what they lead to."""

    def __init__(self, name: str, commit: Commit, opened: OpenedTree | None, digests: FileDigests | None) -> None:
        """`opened` is None for a single file, which has `digests`, unless these are not known."""
        self.commit = commit
        self.opened = opened
        self._name = name
        self._file_name = split_full_name(name)[1]
        self._digests = digests

    @property
    def used_storage(self) -> int:
        """Bytes of all files together."""
        return self.commit.size if self.opened is None else self.opened.used_storage

    @property
    def card(self) -> ModelCard:
        """What its README.md says."""
        return NO_CARD if self.opened is None else self.opened.card

    def find(self, path: str) -> Entry | None:
        """Return the file or folder at a path. Return None if there is none."""
        if self.opened is None:
            return self._single if path == self._file_name else None
        stored = self.opened.find(path)
        return None if stored is None else self._entry(path, stored)

    def file(self, path: str | None) -> Entry:
        """Return the file at a path. Raises EntryNotFound."""
        entry = self.find(path) if path else None
        if entry is None or entry.is_folder:
            raise EntryNotFound(self._name, path or "")
        return entry

    def has_folder(self, path: str) -> bool:
        """Return whether there is a folder at a path. The empty path is the repository itself."""
        found = self.find(path) if path else None
        return not path or (found is not None and found.is_folder)

    def stored(self, path: str) -> StoredEntry | None:
        """Return the entry of the stored directory that has the content of a file. None for a single file."""
        return None if self.opened is None else self.opened.find(path)

    def entries(self, folder: str, *, recursive: bool, after: str | None = None, limit: int) -> list[Entry]:
        """Return at most `limit` entries of a folder, those that follow the path `after`.

        A link to a folder is a folder without content, so that no list is endless. A link that leads nowhere is left out.
        """
        return list(islice(self._entries(folder, recursive=recursive, after=after), limit))

    def files(self) -> Iterator[Entry]:
        """Yield all files."""
        return (entry for entry in self._entries("", recursive=True, after=None) if not entry.is_folder)

    @property
    def _single(self) -> Entry:
        return Entry(self._file_name, self.commit.size, False, self.commit.digest, self._digests)  # noqa: FBT003  # a row

    def _entries(self, folder: str, *, recursive: bool, after: str | None) -> Iterator[Entry]:
        if self.opened is None:
            if not folder and after is None:
                yield self._single
            return
        real = self.opened.find(folder)
        if real is None:
            return
        # The folder may be a link, or be reached through one.
        inside, shown = (f"{path}/" if path else "" for path in (real.path, folder))
        after = None if after is None else inside + after.removeprefix(shown)
        for stored in self.opened.tree.entries(real.path, recursive=recursive, after=after):
            found = self.opened.find(stored.path) if stored.kind is EntryKind.LINK else stored
            if found is not None:
                yield self._entry(shown + stored.path.removeprefix(inside), found)

    def _entry(self, path: str, stored: StoredEntry) -> Entry:
        digests = None if self.opened is None else self.opened.digests_of(stored)
        return Entry(path, stored.size, stored.kind is EntryKind.FOLDER, self.commit.digest, digests)


async def commit_of(context: RequestContext, repository: LocalRepository, asked: HubRepository, revision: str | None) -> Commit:
    """Return the commit that a request is about, and note it. Raises NotFound, RevisionNotFound."""
    context.noted.facts["name"] = asked.name
    commit = await repository.find_commit(asked.name, revision)
    context.noted.facts |= {"record": commit.file_id, "digest": str(commit.digest), "commit": commit.id}
    note_commit(context.request, commit.id)
    return commit


@asynccontextmanager
async def snapshot_of(
    context: RequestContext, repository: LocalRepository, asked: HubRepository, commit: Commit
) -> AsyncIterator[Snapshot]:
    """Give the files of a commit during the block, from memory if its tree was opened before.

    Raises NotFound, StorageError, DamagedChunk, InvalidArchive, LimitExceeded, Busy.
    """
    if commit.kind is Kind.DIRECTORY:
        async with context.trees.reading(repository, commit.digest) as opened:
            if not opened.has_digests:
                context.request.app[DIGESTS].wanted(repository.namespace, commit.digest)
            yield Snapshot(asked.name, commit, opened, None)
        return
    known = (await repository.content_digests([commit.digest])).get(commit.digest)
    if known is None:
        context.request.app[DIGESTS].wanted(repository.namespace, commit.digest)
    digests = None if known is None else FileDigests(known.sha256, known.blob_id)
    yield Snapshot(asked.name, commit, None, digests)
