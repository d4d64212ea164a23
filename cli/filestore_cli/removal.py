"""The command rm: choose records, say what their removal frees, and remove them."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import click

from filestore.core.commits import MAIN
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import (
    FileInUse,
    FilestoreError,
    InvalidReference,
    LimitExceeded,
    NotFound,
    RecordChanged,
    RevisionNotFound,
    ServerError,
    VersionLabelled,
)
from filestore.repository.maintenance.versions import summary
from filestore.repository.protocol import FreedContent, Repository
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.hints import explained
from filestore_cli.lookup import not_found
from filestore_cli.parameters import Age, Count
from filestore_cli.records import record_line
from filestore_cli.start import run_to_end, say
from filestore_cli.text import exactly, for_display

_PAGE = 1000
_VERSIONS_LIMIT = 1_000_000
"""The most versions of one argument that are removed at once. A server could list them without end."""
_FREED_LIMIT = 65536
"""The largest number of records for which a repository says what their removal frees."""
_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What the arguments and options of the command ask for."""

    references: tuple[str, ...]
    every: bool
    keep_last: int | None
    older_than_seconds: float | None
    force: bool

    @property
    def has_rule(self) -> bool:
        """Whether a rule chooses among the versions of each name."""
        return self.keep_last is not None or self.older_than_seconds is not None


@dataclass(slots=True)
class _Plan:
    """The records that are to be removed, and why others are not."""

    chosen: dict[str, Record] = field(default_factory=dict)
    """By id, so that a record that several arguments name is removed once."""
    totals: dict[str, int] = field(default_factory=dict)
    """The number of versions of each name of which a version was chosen by name."""
    labels: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """For each name, the labels of its records, by their ids. What a name means has the label `main`."""
    kept: dict[str, int] = field(default_factory=dict)
    """For each name, how many versions a rule would remove, but for their labels."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """References that failed, or ids, each with a sentence."""

    def choose(self, record: Record, *, user: str | None, request: _Request) -> None:
        """Choose a record, unless a pipeline, `user`, needs it, or a label names it."""
        labels = self.labels[record.full_name].get(record.id, [])
        if MAIN in labels and request.has_rule:
            return  # it may be older than the versions of other branches
        labels = [] if request.force else [label for label in labels if label != MAIN]
        if labels and request.has_rule:
            self.kept[record.full_name] = self.kept.get(record.full_name, 0) + 1
        elif user is not None and not request.force:
            self.failed.append((record.id, explained(FileInUse(record.id, user))))
        elif labels:
            self.failed.append((record.id, explained(VersionLabelled(record.id, summary(labels)))))
        else:
            self.chosen[record.id] = record


@click.command(short_help="Remove stored files and directories.")
@click.argument("references", metavar="ID|DIGEST|PATH|NAME[@REV]", nargs=-1, required=True)
@click.option("--all", "every", is_flag=True, help="Remove all versions of each name, and all records of each digest.")
@click.option("--keep-last", type=Count(min=1), metavar="COUNT", help="Keep this many of the newest versions of each name.")
@click.option("--older-than", type=Age(), help="Remove only versions that were stored longer ago, such as 30d or 12h.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
@click.option("--force", is_flag=True, help="Remove also what a pipeline needs, or a tag or a branch names.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; show what would be removed.")
@takes("url", "token")
def rm(
    context: CommandContext, references: tuple[str, ...], *, yes: bool, dry_run: bool, older_than: float | None, **options: Any
) -> None:
    """Remove stored files and directories. A name means its newest version only; its other versions stay.

    The version that a name means is never removed by --keep-last and --older-than, nor one with a tag or a branch. What
    no other file needs can then be freed by a collection.
    """
    request = _Request(references=references, older_than_seconds=older_than, **options)
    if request.every and request.has_rule:
        raise click.UsageError("--all removes all versions, and --keep-last and --older-than keep some; give one of them")
    run_to_end(_rm(context, request, yes=yes, dry_run=dry_run))


async def _rm(context: CommandContext, request: _Request, *, yes: bool, dry_run: bool) -> None:
    async with context.repository(read_only=dry_run) as repository:
        plan = _Plan()
        for text in dict.fromkeys(request.references):
            await _plan(repository, plan, text, request)
        records = list(plan.chosen.values())
        if request.every and records and not yes and not dry_run:
            _confirm(records)
        freed = await _freed(context, repository, records)
        removed = records if dry_run else await _remove(repository, plan, request)
        if len(removed) < len(records):
            # What was counted includes files that stay.
            freed = None if removed else FreedContent(0, 0)
        if not dry_run and context.is_local:
            for record in removed:
                named = {"record": record.id, "name": record.full_name, "digest": str(record.digest), "size": record.size}
                audit(context.settings, "remove", {"namespace": record.namespace, **named})
        _show(context, repository, plan, removed, freed, dry_run=dry_run)
    if plan.failed:
        for _, sentence in plan.failed[:-1]:
            say(f"Error: {for_display(sentence)}")
        raise click.ClickException(for_display(plan.failed[-1][1]))


async def _plan(repository: Repository, plan: _Plan, text: str, request: _Request) -> None:
    """Add to `plan` the records that one argument means. A failure of this argument is noted there.

    Raises the errors of the repository itself, such as TransferError: they would be the same for each argument.
    """
    try:
        reference = Reference.parse(text)
        is_name = reference.name is not None and reference.digest is None and reference.revision is None
        if request.has_rule and not is_name:
            raise InvalidReference(text, "--keep-last and --older-than choose among the versions of a name; give a name alone")
        if request.every and reference.revision is not None:
            raise InvalidReference(text, "it means one version, and --all means all; give the name alone or leave out --all")
        if reference.revision is not None and not request.force:
            await _check_not_main(repository, reference)
        await _choose(repository, plan, reference, request, is_one=is_name and not request.every and not request.has_rule)
    except RecordChanged as error:
        plan.failed.append((text, explained(error)))
    except NotFound as error:
        plan.failed.append((text, await not_found(repository, reference, error)))
    except InvalidReference as error:
        plan.failed.append((text, explained(error)))


async def _choose(repository: Repository, plan: _Plan, reference: Reference, request: _Request, *, is_one: bool) -> None:
    rule = {"keep_last": request.keep_last, "older_than_seconds": request.older_than_seconds}
    if is_one:
        # The newest version of all may be one of a branch, which the name does not mean.
        reference = Reference(id=(await repository.record(reference)).id)
    page = await repository.versions(reference, limit=1 if is_one else _PAGE, **rule)  # type: ignore[arg-type]  # as declared
    if reference.digest is not None and page.total > 1 and not request.every:
        names = list(dict.fromkeys(record.full_name for record in page.records))
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        shown = ", ".join(map(repr, names[:_SHOWN_NAMES]))
        reason = f"{page.total} records have this content ({shown}{more}); give the id of one, or --all for all of them"
        raise InvalidReference(str(reference), reason)
    seen: set[str] = set()
    while page.records:
        ids = {record.id for record in page.records}
        if ids <= seen:
            raise ServerError(repository.location, HTTPStatus.OK, "its list of versions does not end")
        seen |= ids
        if len(seen) > _VERSIONS_LIMIT:
            raise LimitExceeded(f"the number of versions at {repository.location}", len(seen), _VERSIONS_LIMIT)
        for record in page.records:
            if reference.digest is None:
                plan.totals[record.full_name] = page.total
            if record.full_name not in plan.labels:
                plan.labels[record.full_name] = await _labels(repository, record.full_name)
            plan.choose(record, user=page.users.get(record.id), request=request)
        if is_one or len(page.records) < _PAGE:
            break
        page = await repository.versions(reference, limit=_PAGE, before=page.records[-1].updated_at, **rule)  # type: ignore[arg-type]  # the same


async def _check_not_main(repository: Repository, reference: Reference) -> None:
    """Raise RecordChanged if an older commit is meant whose content the newest commit stored again."""
    name = reference.full_name or ""
    commit = await repository.find_commit(name, reference.revision)
    try:
        newest = await repository.find_commit(name)
    except RevisionNotFound:
        return
    if commit.id != newest.id and commit.file_id == newest.file_id:
        reason = f"the newest commit of {name!r} stored the same content, which would go with it; --force removes it"
        raise RecordChanged(str(reference), reason)


async def _labels(repository: Repository, name: str) -> dict[str, list[str]]:
    """Return the labels of the records of a name, by the ids of the records."""
    found: dict[str, list[str]] = {}
    try:
        labels = [MAIN, *(label.name for label in await repository.labels(name))]
    except (NotFound, ServerError):
        # The name is gone, or an earlier version of the server has no labels.
        return found
    for label in labels:
        with suppress(NotFound):
            found.setdefault((await repository.find_commit(name, label)).file_id, []).append(label)
    return found


def _confirm(records: list[Record]) -> None:
    """Ask whether to remove all these records. Raises ClickException, Abort."""
    count = _count(len(records))
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.ClickException(
            f"--all would remove {count}, and nobody can be asked here; --yes removes them without a question"
        )
    for record in records[:_SHOWN_NAMES]:
        say(record_line(record))
    if len(records) > _SHOWN_NAMES:
        say(f"and {len(records) - _SHOWN_NAMES} more")
    if not click.confirm(f"Remove {count}?", err=True):
        raise click.ClickException("nothing was removed")


async def _freed(context: CommandContext, repository: Repository, records: list[Record]) -> FreedContent | None:
    """Return what a collection can free afterwards. None if that is not known, or if nobody asks for it."""
    if context.quiet and not context.json:
        return None
    if not 0 < len(records) <= _FREED_LIMIT:
        return FreedContent(0, 0) if not records else None
    try:
        return await repository.freed_by([record.id for record in records])
    except FilestoreError as error:
        context.note(f"It is not known what this frees: {for_display(explained(error))}.")
        return None


async def _remove(repository: Repository, plan: _Plan, request: _Request) -> list[Record]:
    """Remove the chosen records, each only in the state in which it was chosen. Note failures in `plan`."""
    removed: list[Record] = []
    for record in plan.chosen.values():
        try:
            removed.append(
                await repository.remove(
                    record.id, force=request.force, updated_at=record.updated_at, unless_newest=request.has_rule
                )
            )
        except (NotFound, RecordChanged) as error:
            plan.failed.append((record.id, explained(error)))
        except FilestoreError as error:
            plan.failed.append((record.id, f"{record.id} ({record.full_name!r}) was not removed: {explained(error)}"))
    return removed


def _show(
    context: CommandContext,
    repository: Repository,
    plan: _Plan,
    removed: list[Record],
    freed: FreedContent | None,
    *,
    dry_run: bool,
) -> None:
    verb = "would remove" if dry_run else "removed"
    left = dict(plan.totals)
    for record in removed:
        if record.full_name in left:
            left[record.full_name] -= 1
    size = None if freed is None else freed.stored_size
    result = {
        "removed": [record.as_json() for record in removed],
        "failed": [{"reference": reference, "error": sentence} for reference, sentence in plan.failed],
        "remaining": left,
        "labelled": plan.kept,
        "freed_size": size,
        "is_held": freed is not None and freed.is_held,
        "dry_run": dry_run,
        "repository": repository.location,
    }
    lines = [f"{verb} {record_line(record)}" for record in removed]
    lines += [
        f"{_count(count)} of {for_display(name)} {'remains' if count == 1 else 'remain'}" for name, count in left.items() if count
    ]
    if removed or context.json or not plan.failed:
        lines.append(f"{verb} {_count(len(removed))} in {context.place(repository)}")
        context.show(result, *lines)
    for name, count in plan.kept.items():
        has, them = ("has", "it") if count == 1 else ("have", "them")
        context.note(
            f"{_count(count)} of {for_display(name)} {has} a tag or a branch, which keeps {them}; --force removes {them} too."
        )
    if removed and size and freed is not None and freed.is_held:
        context.note(
            f"{exactly(size)} that no other file needs can be freed later: the collection is held, as `filestore du` says, and"
            " nothing is freed before `filestore gc --end-hold`."
        )
    elif removed and size:
        context.note(
            f"{exactly(size)} that no other file needs can be freed: by a server with collection after its grace period,"
            " or by `filestore gc`. Chunks that were used in the grace period, 24 hours by default, are freed later."
        )
    elif removed and size == 0:
        context.note("This frees no disk space, because other files need the same content.")


def _count(count: int) -> str:
    return "1 version" if count == 1 else f"{count} versions"
