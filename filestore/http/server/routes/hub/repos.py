"""Create and delete repositories, and their tags and branches, as clients of the Hub do.

A repository is a name with a history, so to create one is to commit an empty tree.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from reprlib import repr as brief
from typing import Any, NamedTuple

from aiohttp import web

from filestore.core.commits import MAIN, Commit, LabelKind, NewCommit, checked_label
from filestore.core.names import checked_new_full_name, full_name
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.errors import HeadMoved, InvalidInput, LabelExists, NameExists, NotFound, RevisionNotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.routes.hub.names import HubRepository, hub_name, repository_in, revision_in
from filestore.http.server.routes.sdk.multipart import json_body
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import VersionPage
from filestore.transfer.edits import TreeEdit

INITIAL = "initial commit"
"""The message of the commit of an empty tree."""
_TYPES = {"model": "models", "dataset": "datasets", "space": "spaces", "kernel": "kernels"}
_PAGE = 1000


class _NewLabel(NamedTuple):
    """A tag or a branch that is wanted."""

    repository: HubRepository
    label: str
    kind: LabelKind
    revision: str | None


async def create_repository(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Commit an empty tree under a new name. Answer with the URL of the repository, also if it is there already."""
    return await create_at(context, repository, await new_repository(context))


async def new_repository(context: RequestContext) -> HubRepository:
    """Return the repository that a request wants to create. Raises InvalidInput, InvalidName."""
    kind, name = _named(await json_body(context))
    context.noted.facts["name"] = name
    return HubRepository(kind, checked_new_full_name(name))


async def create_at(context: RequestContext, repository: LocalRepository, hub: HubRepository) -> web.StreamResponse:
    """Do what `create_repository` does, for a request whose body was read."""
    described = {"url": f"{context.base_url}{hub.url_path}", "name": hub.name}
    with suppress(NotFound):
        await repository.find_commit(hub.name)
        return _conflict(context, hub, described)
    result = await TreeEdit(repository, None, []).store()
    try:
        new = NewCommit(INITIAL, context.author, parent="")
        record = await repository.commit(result.manifest.encoded, name=hub.name, kind=Kind.DIRECTORY, commit=new)
    except HeadMoved:
        return _conflict(context, hub, described)
    context.noted.note_record(record)
    return web.json_response({**described, "id": record.id})


async def delete_repository(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove all versions of a name, and its labels."""
    kind, name = _named(await json_body(context))
    hub = HubRepository(kind, hub_name(name))
    context.noted.facts["name"] = hub.name
    await repository.find_commit(hub.name)
    # One that a pipeline needs is refused, and this before anything is removed.
    for file_id in [file_id async for page in _pages(repository, hub) for file_id in page.users]:
        await repository.remove(file_id)
    count = 0
    async for page in _pages(repository, hub):
        for record in page.records:
            await repository.remove(record.id, force=True)
            count += 1
    context.noted.facts["removed"] = count
    return web.json_response({})


async def _pages(repository: LocalRepository, hub: HubRepository) -> AsyncIterator[VersionPage]:
    """Yield the versions of a name, the newest first. They may be removed meanwhile."""
    before: int | None = None
    while True:
        try:
            page = await repository.versions(Reference.of_name(hub.name), limit=_PAGE, before=before)
        except NotFound:
            return
        if not page.records:
            return
        before = page.records[-1].updated_at
        yield page


async def move_repository(context: RequestContext, _: LocalRepository) -> web.StreamResponse:
    """Refuse to move a repository: its commits and its content would belong to a name that they were not made for."""
    message = await json_body(context)
    what = f"{brief(message.get('fromRepo'))} cannot be moved to {brief(message.get('toRepo'))}"
    raise InvalidInput(
        f"{what}: repositories do not move here; upload the files under the new name, which sends no content again"
    )


async def change_settings(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Accept settings that say what is so anyway: a repository is private to its namespace, and not gated."""
    hub = repository_in(context.request)
    message = await json_body(context)
    await repository.find_commit(hub.name)
    if message.get("private") is False or message.get("visibility", "private") != "private":
        raise InvalidInput("a repository cannot be made public here: the tokens of its namespace see it, and nobody else")
    if message.get("gated", False) is not False:
        raise InvalidInput("a repository cannot be gated here: all tokens of its namespace see it")
    return web.json_response({"private": True, "gated": False})


async def create_tag(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Set a tag at a revision."""
    hub, revision = repository_in(context.request), revision_in(context.request)
    message = await json_body(context)
    return await _set_label(context, repository, _NewLabel(hub, _text(message, "tag"), LabelKind.TAG, revision))


async def delete_tag(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a tag."""
    return await _remove_label(context, repository, LabelKind.TAG)


async def create_branch(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Make a branch at a revision."""
    hub, branch = repository_in(context.request), revision_in(context.request) or ""
    message = await json_body(context) if context.request.can_read_body else {}
    start = message.get("startingPoint")
    if start is not None and not isinstance(start, str):
        raise InvalidInput(f"startingPoint is {brief(start)}; a revision is expected")
    if branch == MAIN:
        found = await repository.find_commit(hub.name)
        raise LabelExists(hub.name, MAIN, found.id)
    return await _set_label(context, repository, _NewLabel(hub, branch, LabelKind.BRANCH, start))


async def delete_branch(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a branch. Its commits stay."""
    return await _remove_label(context, repository, LabelKind.BRANCH)


async def _set_label(context: RequestContext, repository: LocalRepository, new: _NewLabel) -> web.StreamResponse:
    hub, label, kind, revision = new
    context.noted.facts |= {"name": hub.name, kind.value: label}
    checked_label(label, what=kind.value)
    existing = next((each for each in await repository.labels(hub.name) if each.name == label), None)
    if existing is not None:
        # Also at the same commit, as the Hub does.
        raise LabelExists(hub.name, label, existing.commit_id)
    made = await repository.set_label(hub.name, label, kind=kind, revision=revision)
    return web.json_response({"name": made.name, "ref": f"refs/{_FOLDERS[kind]}/{made.name}", "targetCommit": made.commit_id})


async def _remove_label(context: RequestContext, repository: LocalRepository, kind: LabelKind) -> web.StreamResponse:
    hub, label = repository_in(context.request), revision_in(context.request) or ""
    context.noted.facts |= {"name": hub.name, kind.value: label}
    if label == MAIN:
        raise InvalidInput(f"the branch {MAIN!r} cannot be removed: it is what the name means")
    found = next((each for each in await repository.labels(hub.name) if each.name == label and each.kind is kind), None)
    if found is None:
        raise RevisionNotFound(hub.name, label)
    await repository.remove_label(hub.name, label)
    return web.json_response({})


async def head_of(repository: LocalRepository, hub: HubRepository, revision: str | None) -> tuple[str, Commit]:
    """Return a branch, and its newest commit. Raises NotFound, RevisionNotFound, and InvalidInput if it is not a branch."""
    branch = (revision or MAIN).removeprefix("refs/heads/")
    found = await repository.find_commit(hub.name, None if branch == MAIN else branch)
    if branch != MAIN:
        labels = await repository.labels(hub.name)
        if not any(each.name == branch and each.kind is LabelKind.BRANCH for each in labels):
            raise InvalidInput(f"{branch!r} is not a branch; a commit can only be made on a branch")
    return branch, found


_FOLDERS = {LabelKind.TAG: "tags", LabelKind.BRANCH: "heads"}


def _conflict(context: RequestContext, hub: HubRepository, described: dict[str, str]) -> web.StreamResponse:
    """Answer that a repository is there. Clients that do not mind read its URL in the same answer."""
    answer = problem(context.request, NameExists(hub.name))
    document = json.loads(answer.body) if isinstance(answer.body, bytes) else {}
    answer.body = json.dumps(document | described).encode()
    return answer


def _named(message: dict[str, Any]) -> tuple[str, str]:
    """Return the type and the full name that a request to create or delete a repository has. Raises InvalidInput."""
    name, owner, kind = message.get("name"), message.get("organization"), message.get("type") or "model"
    if not isinstance(name, str) or not isinstance(owner, str | None) or not isinstance(kind, str):
        raise InvalidInput("name, organization or type is not a text")
    if kind not in _TYPES:
        raise InvalidInput(f"type is {brief(kind)}; there are {', '.join(_TYPES)}")
    return _TYPES[kind], full_name(owner or None, name)


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"{key} is {brief(value)}; a text is expected")
    return value
