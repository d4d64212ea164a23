"""The page with the versions of a name: `/ui/name`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import NamedTuple

from aiohttp import web

from filestore.core.commits import MAIN, Commit, Label, LabelKind
from filestore.core.timestamps import format_timestamp
from filestore.errors import RevisionNotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.measurements import measure_versions, render_measured
from filestore.http.server.routes.page.urls import content_url, file_url, name_url, page_url
from filestore.http.server.routes.queries import number_in, required
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.versions import summary

PAGE_COUNT = 50
"""Commits on a page."""
LABELS_COUNT = 50
"""Tags and branches on a page."""
SHORT_ID = 10
"""The digits of a commit's id that are shown, as `filestore log` does. A revision needs 7 of them."""
_AT_COMMIT = 4
"""Tags and branches at one commit that are shown beside it."""
DONE = {
    "removed": "The version was removed.",
    "labelled": "The tag or branch was set.",
    "unlabelled": "The tag or branch was removed. The version stays.",
}


class VersionRow(NamedTuple):
    """What is shown of a commit."""

    commit: Commit
    short_id: str
    title: str
    rest: str
    """What follows the first line of its message."""
    labels: list[str]
    more_labels: int
    pipelines: str
    """The names of the pipelines that need it."""
    url: str
    download_url: str
    label_url: str
    remove_url: str


class LabelRow(NamedTuple):
    """What is shown of a tag or a branch."""

    label: Label
    short_id: str
    url: str
    remove_url: str


async def show_versions(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a page of the versions of a name, the newest first."""
    request = context.request
    query = request.query
    name = context.noted.facts["name"] = required(request, "name")
    asked, before, labels_after = query.get("revision") or None, number_in(request, "before"), query.get("labels_after")
    labels = await repository.labels(name)
    revision, first = await _first(repository, name, asked, labels)
    commits = await repository.history(name, revision=first.id, limit=PAGE_COUNT + 1, before=before)
    following = _following(name, first, commits)
    commits = commits[:PAGE_COUNT]
    users = await pipelines_of(repository, {commit.file_id for commit in commits})
    at_commit = await _labels_by_commit(repository, name, labels)
    total = await repository.version_count(name)
    later = [label for label in labels if labels_after is None or label.name > labels_after]
    shown = later[:LABELS_COUNT]

    return await render_measured(
        context,
        repository,
        "name.html",
        partial(measure_versions, context, repository, [commit.file_id for commit in commits]),
        name=name,
        rows=[_row(name, commit, at_commit.get(commit.id, []), users) for commit in commits],
        total=total,
        revision=revision,
        is_main=asked is None,
        is_first=before is None,
        url=name_url(name),
        first_url=name_url(name, revision=asked),
        next_url=following,
        labels=[_label_row(name, label) for label in shown],
        labels_count=len(labels),
        next_labels_url=name_url(name, revision=asked, labels_after=shown[-1].name) if len(later) > len(shown) else None,
        measure_url=name_url(name, revision=asked, before=before, measure="yes"),
        done=DONE.get(query.get("done", ""), ""),
        choices=_choices(commits),
    )


async def pipelines_of(repository: LocalRepository, file_ids: set[str]) -> dict[str, str]:
    """Return, by the ids of those records that pipelines need, the names of these pipelines."""
    users: dict[str, list[str]] = {}
    for use in await repository.uses(file_ids):
        users.setdefault(use.file_id, []).append(use.pipeline_name)
    return {file_id: summary(sorted(names)) for file_id, names in users.items()}


async def _first(repository: LocalRepository, name: str, asked: str | None, labels: list[Label]) -> tuple[str, Commit]:
    """Return the revision that is shown, and its commit. If all versions are on branches, it is the first branch."""
    try:
        return asked or MAIN, await repository.find_commit(name, asked)
    except RevisionNotFound:
        branches = [label for label in labels if label.kind is LabelKind.BRANCH]
        if asked is not None or not branches:
            raise
    return branches[0].name, await repository.find_commit(name, branches[0].commit_id)


def _following(name: str, first: Commit, commits: list[Commit]) -> str | None:
    """Return the URL of the page after `commits`, which has one more than a page if there is another page."""
    if len(commits) <= PAGE_COUNT:
        return None
    last = commits[PAGE_COUNT - 1]
    # By an id: the branch may move meanwhile. From the first one, the index would pass over all other commits of a branch again.
    return name_url(name, revision=(first if last.branch == MAIN else last).id, before=last.number)


async def _labels_by_commit(repository: LocalRepository, name: str, labels: list[Label]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with suppress(RevisionNotFound):  # all versions may be on other branches
        found[(await repository.find_commit(name)).id] = [MAIN]
    for label in labels:
        found.setdefault(label.commit_id, []).append(label.name)
    return found


def _row(name: str, commit: Commit, labels: list[str], users: dict[str, str]) -> VersionRow:
    title, _, rest = commit.message.strip().partition("\n")
    return VersionRow(
        commit=commit,
        short_id=commit.id[:SHORT_ID],
        title=title.strip(),
        rest=rest.strip(),
        labels=labels[:_AT_COMMIT],
        more_labels=max(len(labels) - _AT_COMMIT, 0),
        pipelines=users.get(commit.file_id, ""),
        url=file_url(commit.file_id),
        download_url=content_url(commit.file_id),
        label_url=page_url("/ui/label", name=name, revision=commit.id),
        remove_url=page_url("/ui/remove", id=commit.file_id),
    )


def _label_row(name: str, label: Label) -> LabelRow:
    return LabelRow(
        label=label,
        short_id=label.commit_id[:SHORT_ID],
        # By its commit: a label may look like another revision.
        url=name_url(name, revision=f"refs/heads/{label.name}" if label.kind is LabelKind.BRANCH else f"refs/tags/{label.name}"),
        remove_url=page_url("/ui/unlabel", name=name, label=label.name),
    )


def _choices(commits: list[Commit]) -> list[tuple[str, str]]:
    """Return what can be compared: the ids of records, each once, with the digits of a commit and its time."""
    found: dict[str, tuple[str, str]] = {}
    for commit in commits:
        moment = format_timestamp(commit.created_at)
        words = f"{commit.id[:SHORT_ID]}, {moment[:10]} {moment[11:16]} UTC"
        found.setdefault(commit.file_id, (commit.file_id, words))
    return list(found.values())
