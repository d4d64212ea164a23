"""What the pages of tensors and of comparisons are about: a stored file or directory, or what is at a path of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from filestore.core.records import Kind, Record, checked_file_id
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, InvalidReference, NotAnArchive
from filestore.format.zip.tree import for_display
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.urls import file_url, tensors_url
from filestore.http.server.stored_trees import lost_as_damaged
from filestore.repository.local import LocalRepository
from filestore.transfer.diff_sides import ComparedFile, Side, side_of_tree
from filestore.transfer.stored_ranges import ReadLimit, StoredRanges, entry_ranges
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree

WORK_SIZE = 32 << 20
"""Bytes of the budget of readers that one piece of work takes: a header of 16 MiB and what is made of it, or two contents that
are compared.
"""
_NAME_SHOWN = 300
"""The most characters that a page shows of a name in a file. One may have 16 MiB."""


class Subject(NamedTuple):
    """What a page is about: a stored file or directory, or what is at a path of it."""

    record: Record
    path: str
    """Empty for the whole."""

    @property
    def name(self) -> str:
        """What a reader calls it, and what errors call it."""
        return f"{self.record.full_name}:{self.path}" if self.path else self.record.full_name

    @property
    def url(self) -> str:
        """The page about it."""
        return file_url(self.record.id, path=self.path)

    @property
    def tensors_url(self) -> str:
        """The page with its tensors."""
        return tensors_url(self.record.id, self.path)

    def at(self, path: str) -> Subject:
        """Return what is at a path in it."""
        return Subject(self.record, f"{self.path}/{path}" if self.path else path)


async def subject_of_id(repository: LocalRepository, file_id: str, path: str) -> Subject:
    """Return what an id and a path name. It is not checked that the path exists. Raises InvalidReference, NotFound."""
    return Subject(await repository.record(Reference(id=checked_file_id(file_id))), path)


async def subject_of_reference(repository: LocalRepository, text: str) -> Subject:
    """Return what a reader names by a reference: NAME@REVISION, an id or a digest, also with `:` and a path.

    Raises InvalidReference, NotFound.
    """
    reference = Reference.parse(text.strip())
    return Subject(await repository.record(reference.without_entry), reference.entry_path or "")


@asynccontextmanager
async def opened_side(
    context: RequestContext, repository: LocalRepository, subject: Subject, limit: ReadLimit
) -> AsyncIterator[Side]:
    """Give the side of a comparison during the block, of manifests and trees that all requests share. `limit` bounds its reads.

    Raises EntryNotFound, InvalidReference, InvalidArchive, LimitExceeded, DamagedChunk, NotFound, StorageError, Busy.
    """
    record, path = subject.record, subject.path
    async with lost_as_damaged(repository, record.digest):
        if record.kind is not Kind.DIRECTORY and not path:
            async with context.manifests.reading(repository, record.digest) as layout:
                file = ComparedFile("", layout.manifest.size, 0)
                yield Side(subject.name, layout.manifest, StoredRanges(repository, layout.manifest, limit=limit), file=file)
            return
        async with _opened_tree(context, repository, subject) as (tree, entry):
            yield side_of_tree(subject.name, StoredRanges(repository, tree.manifest, limit=limit), tree, entry)


@asynccontextmanager
async def opened_content(
    context: RequestContext, repository: LocalRepository, subject: Subject, limit: ReadLimit
) -> AsyncIterator[StoredRanges]:
    """Give the content of a file during the block. Raises what `opened_side` raises; InvalidReference for a folder or a link."""
    record = subject.record
    async with lost_as_damaged(repository, record.digest):
        if record.kind is not Kind.DIRECTORY and not subject.path:
            async with context.manifests.reading(repository, record.digest) as layout:
                yield StoredRanges(repository, layout.manifest, limit=limit)
            return
        async with _opened_tree(context, repository, subject) as (tree, entry):
            if entry.kind is not EntryKind.FILE:
                raise InvalidReference(subject.name, f"it is a {entry.kind} and not a file")
            if entry.is_deflated:
                raise InvalidReference(subject.name, "it is compressed in its zip file; fetch it to look inside")
            yield await entry_ranges(repository, tree, entry, limit=limit)


@asynccontextmanager
async def _opened_tree(
    context: RequestContext, repository: LocalRepository, subject: Subject
) -> AsyncIterator[tuple[StoredTree, StoredEntry]]:
    try:
        async with context.trees.reading(repository, subject.record.digest) as opened:
            entry = opened.tree.entry(subject.path)
            if entry is None:
                raise EntryNotFound(subject.record.full_name, for_display(subject.path))
            yield opened.tree, entry
    except NotAnArchive:
        raise InvalidReference(subject.name, "it is a single file and not a directory, so it has no entries") from None


def display(name: str) -> str:
    """Return a name from a file for a page: what cannot be printed is written as an escape, and a very long name is cut."""
    shown = (
        name
        if name.isprintable()
        else "".join(letter if letter.isprintable() else _escaped(letter) for letter in name[:_NAME_SHOWN])
    )
    return shown if len(name) <= _NAME_SHOWN else f"{shown[:_NAME_SHOWN]}… ({len(name):,} characters)"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
