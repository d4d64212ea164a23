"""List the versions of one name: what `filestore ls NAME` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from filestore.core.commits import Commit
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import InvalidReference, LimitExceeded, NotFound, RevisionNotFound
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext
from filestore_cli.history import SHORT_ID, NamedRevision, commits_from, explaining, labels_by_commit
from filestore_cli.listing import STORED, short_digest, stored_at
from filestore_cli.text import columns, for_display, in_units
from filestore_cli.version_sizes import MANIFESTS_LIMIT, VERSIONS_LIMIT, bytes_added

_PAGE = 1000
_LISTED_LIMIT = 1_000_000
"""The most versions of a name that are listed. A server could list them without end."""


class Version(NamedTuple):
    """A stored content of a name."""

    record: Record
    commit: Commit | None
    """The newest commit that stored it, as far as one was found."""
    labels: list[str]
    """The tags and branches at its commits."""

    bytes_added: int | None = None
    """Bytes of those chunks that no older version has, before they are compressed. None where that is not known."""

    def as_json(self) -> dict[str, object]:
        """Return the form that is printed: the record with its labels and its commit."""
        commit_id = None if self.commit is None else self.commit.id
        return {**self.record.as_json(), "labels": self.labels, "commit_id": commit_id, "bytes_added": self.bytes_added}

    def row(self) -> tuple[str, ...]:
        """Return the version as a row for a person."""
        record, commit = self.record, self.commit
        return (
            "" if commit is None else commit.id[:SHORT_ID],
            in_units(record.size),
            "?" if self.bytes_added is None else in_units(self.bytes_added),
            stored_at(record),
            short_digest(record),
            record.kind.value,
            for_display(", ".join(self.labels)),
            "" if commit is None else for_display(commit.message.strip().partition("\n")[0]),
        )


_HEADER = ("COMMIT", ">SIZE", ">ADDS", STORED, "DIGEST", "KIND", "LABELS", "MESSAGE")
_ADDS = _HEADER.index(">ADDS")


async def list_versions(context: CommandContext, text: str, limit: int | None) -> None:
    """Print the versions of the name that the user gave, the newest first."""
    name, revision = NamedRevision.parse(text)
    if revision is not None:
        raise InvalidReference(text, "all versions of a name are listed; give the name alone")
    async with context.repository(read_only=True) as repository:
        async with explaining(repository, NamedRevision(name, None)):
            records = await _records(repository, name, limit)
            versions = await _versions(repository, name, records)
            added = await bytes_added(repository, name, records, is_whole=limit is None or len(records) < limit)
        versions = [version._replace(bytes_added=added.get(version.record.id)) for version in versions]
        count, size = len(versions), sum(version.record.size for version in versions)
        context.show(
            {"name": name, "files": [version.as_json() for version in versions], "repository": repository.location},
            *_lines(versions, with_added=bool(added)),
            f"{count} version{'' if count == 1 else 's'} of {name}, {in_units(size)} in {context.place(repository)}",
        )
        if not added:
            context.note(
                f"what each version adds is left out: it is shown for up to {VERSIONS_LIMIT} versions, "
                f"whose lists of chunks take up to {in_units(MANIFESTS_LIMIT)} together"
            )


def _lines(versions: Sequence[Version], *, with_added: bool) -> list[str]:
    rows = [_HEADER, *(version.row() for version in versions)]
    if not with_added:
        rows = [(*row[:_ADDS], *row[_ADDS + 1 :]) for row in rows]
    if not any(row[-1] for row in rows[1:]):
        # With the column of messages, the line of a directory is wider than a terminal.
        rows = [row[:-1] for row in rows]
    return columns(rows[0], rows[1:])


async def _versions(repository: Repository, name: str, records: Sequence[Record]) -> list[Version]:
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
        if len(found) > _LISTED_LIMIT:
            raise LimitExceeded(f"the number of versions at {repository.location}", len(found), _LISTED_LIMIT)
        if len(page) < size:
            break
    return found
