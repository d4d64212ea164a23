"""Forms that change something, and the pages that ask before a removal: versions, tags, branches and links.

Each answer to POST sends the browser on to another page, so that a reload changes nothing again. Only a link is shown at once,
because its URL is not kept; the form has a nonce, by which a reload shows the same link.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from filestore.core.commits import Commit, Label, LabelKind, checked_label
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.errors import FilestoreError, InvalidInput, LabelExists, LimitExceeded, NotFound, RevisionNotFound
from filestore.http import wire
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.links import maker_of
from filestore.http.server.routes.page.errors import sentence_of
from filestore.http.server.routes.page.file import LINK_TIMES
from filestore.http.server.routes.page.measurements import measure_versions, render_measured
from filestore.http.server.routes.page.rendering import render, see_other
from filestore.http.server.routes.page.urls import NAMES, file_url, name_url, page_url
from filestore.http.server.routes.page.versions import SHORT_ID, pipelines_of
from filestore.http.server.routes.page.welcome import read_form
from filestore.http.server.routes.queries import required
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.versions import summary

FIELD_LIMIT = 1000
"""Characters of a name or an id in a form. The audit log has them."""


async def ask_removal(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the page that says what the removal of a version does, and asks for it."""
    record = await repository.record(Reference(id=required(context.request, "id")))
    context.noted.note_record(record)
    name = record.full_name
    labels = await repository.labels_of(record)
    pipelines = (await pipelines_of(repository, {record.id})).get(record.id, "")
    total = await repository.version_count(name)
    commits = await _main_commits(repository, name)
    is_newest = bool(commits) and commits[0].file_id == record.id
    # Several commits in a row may have stored the same version.
    following = next((commit for commit in commits if commit.file_id != record.id), None) if is_newest else None

    return await render_measured(
        context,
        repository,
        "remove.html",
        partial(measure_versions, context, repository, [record.id]),
        record=record,
        labels=summary(labels),
        pipelines=pipelines,
        is_last=total <= 1,
        is_newest=is_newest,
        following=following,
        measure_url=page_url("/ui/remove", id=record.id, measure="yes"),
        back_url=file_url(record.id),
    )


async def _main_commits(repository: LocalRepository, name: str) -> list[Commit]:
    """Return the newest commits that a name has on `main`. The result is empty if it has none."""
    try:
        return await repository.history(name, limit=100)
    except NotFound:
        return []


async def remove_version(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a version as it was when the form was shown: not one that was pushed again meanwhile."""
    form = await read_form(context)
    file_id = context.noted.facts["record"] = _field(form, "id")
    removed = await repository.remove(file_id, updated_at=_moment(form), force=form.get("force") == "yes")
    context.noted.note_record(removed)
    if await repository.version_count(removed.full_name):
        return see_other(name_url(removed.full_name, done="removed"))
    return see_other(page_url(NAMES, done="removed"))


def _field(form: dict[str, str], name: str) -> str:
    """Return the text of a field that names something. Raises InvalidInput if the form does not have it, or has a long text."""
    text = form.get(name)
    if not text:
        raise InvalidInput(f"the form has no {name}")
    if len(text) > FIELD_LIMIT:
        raise InvalidInput(f"the {name} in the form has {len(text):,} characters; allowed are {FIELD_LIMIT:,}")
    return text


def _moment(form: dict[str, str]) -> int:
    text = _field(form, "updated_at")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput("the form does not say which state of the version it was made for")
    return int(text)


async def show_label_form(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the form for a tag or a branch at a commit."""
    name = context.noted.facts["name"] = required(context.request, "name")
    commit = await repository.find_commit(name, context.request.query.get("revision") or None)
    return await _label_form(context, name, commit)


async def set_label(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Set a tag or a branch. A text that cannot be one is answered with the form, and what is wrong with it."""
    form = await read_form(context)
    name = context.noted.facts["name"] = _field(form, "name")
    revision, label, is_moved = _field(form, "revision"), form.get("label", "").strip(), form.get("move") == "yes"
    try:
        kind = LabelKind(form.get("kind", LabelKind.TAG.value))
    except ValueError:
        raise InvalidInput("the form names neither a tag nor a branch") from None
    access = context.noted.access
    if is_moved and access is not None:
        # The version that loses it may be removed then.
        access.check_scope(Scope.DELETE)
    commit = await repository.find_commit(name, revision)
    try:
        checked_label(label, what=kind.value)
        await repository.set_label(name, label, kind=kind, revision=commit.id, force=is_moved)
    except (InvalidInput, LabelExists, LimitExceeded) as error:
        return await _label_form(context, name, commit, label=label, kind=kind, error=error)
    return see_other(name_url(name, done="labelled"))


async def _label_form(
    context: RequestContext,
    name: str,
    commit: Commit,
    *,
    label: str = "",
    kind: LabelKind = LabelKind.TAG,
    error: FilestoreError | None = None,
) -> web.Response:
    return await render(
        context,
        "label.html",
        status=200 if error is None else wire.encode_problem(error).status,
        name=name,
        commit=commit,
        short_id=commit.id[:SHORT_ID],
        label=label,
        kind=kind.value,
        problem="" if error is None else _label_problem(context, error),
        is_taken=isinstance(error, LabelExists),
        back_url=name_url(name),
    )


def _label_problem(context: RequestContext, error: FilestoreError) -> str:
    sentence = sentence_of(context, error)
    if isinstance(error, LabelExists):
        # What `sentence_of` says is for commands, which have an option for it.
        where = error.commit_id[:SHORT_ID]
        return f"The commit {where} has this tag or branch already. Remove it there first, or choose another name."
    return sentence


async def ask_label_removal(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the page that asks whether a tag or a branch shall be removed."""
    name, wanted = (required(context.request, key) for key in ("name", "label"))
    context.noted.facts["name"] = name
    return await _unlabel_form(context, name, await _label(repository, name, wanted))


async def remove_label(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a tag or a branch. The version stays. If it was moved since the form was shown, show the form again."""
    form = await read_form(context)
    name = context.noted.facts["name"] = _field(form, "name")
    label = await _label(repository, name, _field(form, "label"))
    if form.get("commit", label.commit_id) != label.commit_id:
        return await _unlabel_form(context, name, label, status=409, is_moved=True)
    await repository.remove_label(name, label.name)
    return see_other(name_url(name, done="unlabelled"))


async def _label(repository: LocalRepository, name: str, wanted: str) -> Label:
    label = next((label for label in await repository.labels(name) if label.name == wanted), None)
    if label is None:
        raise RevisionNotFound(name, wanted)
    return label


async def _unlabel_form(
    context: RequestContext, name: str, label: Label, *, status: int = 200, is_moved: bool = False
) -> web.Response:
    return await render(
        context,
        "unlabel.html",
        status=status,
        name=name,
        label=label,
        short_id=label.commit_id[:SHORT_ID],
        is_moved=is_moved,
        back_url=name_url(name),
    )


async def make_link(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Make a link to a version, and answer with the page that shows its URL."""
    form = await read_form(context)
    file_id = context.noted.facts["record"] = _field(form, "id")
    seconds = _field(form, "seconds")
    if seconds not in LINK_TIMES:
        raise InvalidInput(f"a link is made here for one of {', '.join(LINK_TIMES.values())}")
    record: Record = await repository.record(Reference(id=file_id))
    link = await repository.make_link(file_id, seconds=int(seconds), nonce=_field(form, "nonce"), maker=maker_of(context))
    context.noted.facts |= {"link": link.id, "name": link.name}
    url = f"{context.base_url}/{link.path}"
    return await render(context, "link.html", record=record, link=link, url=url, back_url=file_url(record.id))
