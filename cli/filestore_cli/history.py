"""The commands log and tag: the commits of a name, and its tags and branches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import click

from filestore.core.commits import MAIN, Commit, Label, LabelKind, checked_label
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.references import Reference
from filestore.errors import InvalidReference, LimitExceeded, NotFound, RevisionNotFound
from filestore.repository.protocol import Repository
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.lookup import not_found
from filestore_cli.parameters import Count
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, in_units, minute

SHORT_ID = 10
"""The number of digits of a commit's id that a person is shown. A revision needs 7 of them."""
_PAGE = 1000
_COMMITS_LIMIT = 10_000_000
"""The most commits of a name that are read. A server could list them without end."""


class NamedRevision(NamedTuple):
    """A name with its owner, and which of its versions is meant."""

    name: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> NamedRevision:
        """Parse a reference to a name. A text that looks like an id or a digest is the name that it is.

        Raises InvalidReference for any other reference: only names have a history.
        """
        reference = Reference.parse(text)
        name = reference.full_name or reference.name_otherwise
        is_path = reference.digest is not None and reference.name is not None
        if name is None or is_path or reference.entry_path is not None:
            raise InvalidReference(
                text, "commits, tags and branches belong to a name; give one, with or without '@' and a revision"
            )
        return cls(name, reference.revision)


@click.command(short_help="Show the history of a name.")
@click.argument("reference", metavar="NAME[@REV]")
@click.option("--limit", type=Count(min=1), metavar="COUNT", help="The largest number of commits to show.  [default: all]")
@takes("url", "token")
def log(context: CommandContext, reference: str, limit: int | None) -> None:
    """Show the commits of a name, from the newest one back to the first one, or from the one that REV means.

    A line has the first digits of the commit's id, its time, the size of the content, the author, the tags and branches
    at it, and its message.
    """

    async def run() -> None:
        wanted = NamedRevision.parse(reference)
        async with context.repository(read_only=True) as repository:
            async with explaining(repository, wanted):
                first = await repository.find_commit(*wanted)
            labels = await labels_by_commit(repository, wanted.name)
            await _show_commits(
                context, repository, wanted.name, commits_from(repository, wanted.name, first, limit=limit), labels
            )

    run_to_end(run())


@click.command(short_help="List, set and remove tags and branches.")
@click.argument("reference", metavar="NAME[@REV]")
@click.argument("label", metavar="[LABEL]", required=False)
@click.option("--branch", is_flag=True, help="Make a branch, to which commits can be added, and not a tag.")
@click.option("--delete", is_flag=True, help="Remove LABEL. The version stays.")
@click.option("--force", is_flag=True, help="Move LABEL if another version has it.")
@takes("url", "token")
def tag(context: CommandContext, reference: str, label: str | None, *, branch: bool, delete: bool, force: bool) -> None:
    """List the tags and branches of a name. With LABEL, set a tag at its newest version, or at the one that REV means."""
    wanted = NamedRevision.parse(reference)
    if label is not None:
        checked_label(label, what="branch" if branch else "tag")
    if label is None and (branch or delete or force):
        raise click.UsageError("--branch, --delete and --force need a LABEL")
    if delete and (branch or force):
        raise click.UsageError("--delete removes a tag or a branch, and --branch and --force make one; give one of them")
    if wanted.revision is not None and (delete or label is None):
        raise click.UsageError("a name has its tags and branches as a whole, so give it without '@' and a revision")
    if label is None:
        run_to_end(_list_labels(context, wanted.name))
    elif delete:
        run_to_end(_remove_label(context, wanted.name, label))
    else:
        kind = LabelKind.BRANCH if branch else LabelKind.TAG
        run_to_end(_set_label(context, wanted, label, kind=kind, force=force))


async def _show_commits(
    context: CommandContext, repository: Repository, name: str, commits: AsyncIterator[Commit], labels: dict[str, list[str]]
) -> None:
    """Print commits as they come, since their number has no limit."""
    count = 0
    about = json.dumps({"name": name, "repository": repository.location})
    before = f'{about[:-1]}, "commits": ['
    async for commit in commits:
        count += 1
        own_labels = labels.get(commit.id, [])
        if context.json:
            context.write(before + json.dumps(commit.as_json() | {"labels": own_labels}))
            before = ","
        else:
            context.write(_commit_line(commit, own_labels))
    if context.json:
        context.write(f"{before if not count else ''}]}}")
    else:
        context.write(f"{count} commit{_s(count)} of {for_display(name)} in {context.place(repository)}")


async def commits_from(repository: Repository, name: str, first: Commit, *, limit: int | None = None) -> AsyncIterator[Commit]:
    """Yield `first` and the commits before it, from the newest down, at most `limit`. Raises LimitExceeded."""
    count, start, before = 0, first, None
    while limit is None or count < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - count)
        page = await repository.history(name, revision=start.id, limit=size, before=before)
        for commit in page:
            yield commit
        if len(page) < size:
            return
        count, before = count + len(page), page[-1].number
        if page[-1].branch != MAIN:
            start = page[-1]  # from `first`, the repository would pass over all commits between both again
        if count > _COMMITS_LIMIT:
            raise LimitExceeded(f"the number of commits at {repository.location}", count, _COMMITS_LIMIT)


async def labels_by_commit(repository: Repository, name: str) -> dict[str, list[str]]:
    """Return the names of the labels of each commit that has any. `main` is the first one of its commit."""
    found: dict[str, list[str]] = {}
    with suppress(RevisionNotFound):  # all its versions may be on other branches
        found[(await repository.find_commit(name)).id] = [MAIN]
    for label in await repository.labels(name):
        found.setdefault(label.commit_id, []).append(label.name)
    return found


def label_words(labels: Iterable[str]) -> str:
    """Return labels for a line, such as `(main, v2)`. Without labels, an empty text."""
    words = ", ".join(labels)
    return f"({words})" if words else ""


async def _list_labels(context: CommandContext, name: str) -> None:
    async with context.repository(read_only=True) as repository:
        async with explaining(repository, NamedRevision(name, None)):
            labels = await repository.labels(name)
            head = await _head(repository, name, is_needed=not labels)
        shown = [*labels] if head is None else [Label(MAIN, LabelKind.BRANCH, head.id, head.created_at), *labels]
        tags = sum(label.kind is LabelKind.TAG for label in shown)
        branches = len(shown) - tags
        context.show(
            {
                "name": name,
                "main": None if head is None else head.id,
                "labels": [label.as_json() for label in labels],
                "repository": repository.location,
            },
            *map(_label_line, shown),
            f"{tags} tag{_s(tags)} and {branches} branch{'' if branches == 1 else 'es'} of {name} in {context.place(repository)}",
        )


async def _head(repository: Repository, name: str, *, is_needed: bool) -> Commit | None:
    """Return the newest commit of `main`. Return None if all are on other branches, unless it `is_needed`."""
    try:
        return await repository.find_commit(name)
    except RevisionNotFound:
        if is_needed:
            raise
        return None


async def _set_label(context: CommandContext, wanted: NamedRevision, label: str, *, kind: LabelKind, force: bool) -> None:
    async with context.repository() as repository:
        async with explaining(repository, wanted):
            made = await repository.set_label(wanted.name, label, kind=kind, revision=wanted.revision, force=force)
        _audit(context, "set-label", wanted.name, made)
        context.show(
            {"name": wanted.name, **_named(made), "repository": repository.location},
            _label_line(made),
            f"set for {wanted.name} in {context.place(repository)}",
        )


async def _remove_label(context: CommandContext, name: str, label: str) -> None:
    async with context.repository() as repository:
        async with explaining(repository, NamedRevision(name, None)):
            removed = await repository.remove_label(name, label)
        _audit(context, "remove-label", name, removed)
        context.show(
            {"name": name, **_named(removed), "repository": repository.location},
            f"removed {_label_line(removed)}",
            f"from {name} in {context.place(repository)}; the version stays",
        )


@asynccontextmanager
async def explaining(repository: Repository, wanted: NamedRevision) -> AsyncIterator[None]:
    """Say for a failure of the block what the user may have meant. Raises ClickException."""
    try:
        yield
    except NotFound as error:
        if await _lacks_history(repository, wanted.name):
            sentence = (
                f"{wanted.name!r} has no history yet, because an earlier version of filestore stored it"
                f" in {repository.location}; the next push or start of `filestore serve` makes it"
            )
            raise click.ClickException(for_display(sentence)) from error
        raise click.ClickException(for_display(await not_found(repository, Reference.of_name(*wanted), error))) from error


async def _lacks_history(repository: Repository, name: str) -> bool:
    """Return whether something is stored under a name, and has no commit."""
    with suppress(NotFound):
        await repository.find_commit(name)
        return False
    with suppress(NotFound):
        await repository.record(Reference.of_name(name))
        return True
    return False


def _audit(context: CommandContext, action: str, name: str, label: Label) -> None:
    if context.is_local:
        audit(context.settings, action, {"namespace": DEFAULT_NAMESPACE, "name": name} | _named(label))


def _named(label: Label) -> dict[str, object]:
    values = label.as_json()
    return {"label": values.pop("name"), **values}


def _commit_line(commit: Commit, labels: Iterable[str]) -> str:
    """Return a commit as a line for a person."""
    first_line = commit.message.strip().partition("\n")[0]
    rest = [commit.author, label_words(labels), first_line]
    return "  ".join(
        [
            commit.id[:SHORT_ID],
            minute(commit.created_at),
            f"{in_units(commit.size):>8}",
            *(for_display(text) for text in rest if text),
        ]
    )


def _label_line(label: Label) -> str:
    """Return a tag or a branch as a line for a person."""
    return f"{label.commit_id[:SHORT_ID]}  {minute(label.created_at)}  {label.kind.value:<6}  {for_display(label.name)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
