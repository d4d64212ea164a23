"""List the versions of one name: what `filestore ls NAME` prints."""

from __future__ import annotations

from typing import NamedTuple

from filestore.core.commits import Commit
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import InvalidReference, LimitExceeded, NotFound, RevisionNotFound
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext
from filestore_cli.history import SHORT_ID, NamedRevision, commits_from, explaining, label_words, labels_by_commit
from filestore_cli.text import for_display, in_units, minute

_PAGE = 1000
_VERSIONS_LIMIT = 1_000_000
"""The most versions of a name that are listed. A server could list them without end."""


class Version(NamedTuple):
    """A stored content of a name."""

    record: Record
    commit: Commit | None
    """The newest commit that stored it, as far as one was found."""
    labels: list[str]
    """The tags and branches at its commits."""

    def as_json(self) -> dict[str, object]:
        """Return the form that is printed: the record with its labels and its commit."""
        return {**self.record.as_json(), "labels": self.labels, "commit_id": None if self.commit is None else self.commit.id}

    def line(self) -> str:
        """Return the version as a line for a person."""
        record, commit = self.record, self.commit
        kind = "(directory)" if record.kind is Kind.DIRECTORY else ""
        short = "" if commit is None else commit.id[:SHORT_ID]
        message = "" if commit is None else commit.message.strip().partition("\n")[0]
        rest = [for_display(text) for text in (kind, label_words(self.labels), message) if text]
        start = [record.id, f"{in_units(record.size):>8}", minute(record.updated_at), f"{short:{SHORT_ID}}"]
        return "  ".join([*start, *rest]).rstrip()


async def list_versions(context: CommandContext, text: str, limit: int | None) -> None:
    """Print the versions of the name that the user gave, the newest first."""
    name, revision = NamedRevision.parse(text)
    if revision is not None:
        raise InvalidReference(text, "all versions of a name are listed; give the name alone")
    async with context.repository(read_only=True) as repository:
        async with explaining(repository, NamedRevision(name, None)):
            versions = await _versions(repository, name, limit)
        count, size = len(versions), sum(version.record.size for version in versions)
        context.show(
            {"name": name, "files": [version.as_json() for version in versions], "repository": repository.location},
            *(version.line() for version in versions),
            f"{count} version{'' if count == 1 else 's'} of {name}, {in_units(size)} in {context.place(repository)}",
        )


async def _versions(repository: Repository, name: str, limit: int | None) -> list[Version]:
    records = await _records(repository, name, limit)
    wanted = {record.id for record in records}
    head = None
    try:
        head = await repository.find_commit(name)
    except RevisionNotFound:
        pass  # all versions are on other branches
    except NotFound:
        # An earlier version of filestore made the folder, and nobody has written to it since.
        return [Version(record, None, []) for record in records]
    labels = await labels_by_commit(repository, name)
    commits: dict[str, Commit] = {}
    labels_of: dict[str, list[str]] = {}

    def note(commit: Commit) -> None:
        if commit.file_id not in wanted:
            return
        commits.setdefault(commit.file_id, commit)
        labels_of.setdefault(commit.file_id, []).extend(labels.pop(commit.id, []))

    if head is not None:
        async for commit in commits_from(repository, name, head):
            note(commit)
            if wanted <= commits.keys():
                break
    for commit_id in list(labels):
        # A tag of an older commit, or one on another branch.
        try:
            note(await repository.find_commit(name, commit_id))
        except NotFound:
            continue
    return [Version(record, commits.get(record.id), labels_of.get(record.id, [])) for record in records]


async def _records(repository: Repository, name: str, limit: int | None) -> list[Record]:
    found: list[Record] = []
    while limit is None or len(found) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        before = found[-1].updated_at if found else None
        try:
            page = (await repository.versions(Reference.of_name(name), limit=size, before=before)).records
        except NotFound:
            if not found:
                raise
            break
        found += page
        if len(found) > _VERSIONS_LIMIT:
            raise LimitExceeded(f"the number of versions at {repository.location}", len(found), _VERSIONS_LIMIT)
        if len(page) < size:
            break
    return found
