"""The page with the names that are stored: `/ui/names`."""

from __future__ import annotations

import shlex
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from aiohttp import web

from filestore.core.commits import Commit
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import InvalidInput, NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.measurements import last_name_sizes, measure_name_sizes, render_measured
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.page.urls import NAMES, name_url, page_url
from filestore.http.server.routes.queries import number_in
from filestore.repository.local import LocalRepository

PAGE_COUNT = 50
"""Names on a page."""
LOOKED_AT_CALLS = 5
"""How often one page asks the index for names. Each call looks at 20,000 of them."""
LOOKED_AT_RECORDS = 5000
"""Records that one page looks at, to find the newest names."""
_RECORDS = 250
_LABELS = 4
"""Tags and branches of a name that are shown."""
_SEARCH_LIMIT = 255
DONE = {"removed": "The last version was removed. Nothing is stored under its name any more."}


class NewestVersion(NamedTuple):
    """A name, and its newest version: that of `main`, or of another branch if all versions are on such."""

    name: str
    version: Commit | Record

    @property
    def stored_at(self) -> int:
        """When it was stored, in microseconds since 1970."""
        return self.version.created_at if isinstance(self.version, Commit) else self.version.updated_at


class NamePage(NamedTuple):
    """A page of names."""

    found: list[NewestVersion]
    following: dict[str, object] | None
    """What the query of the next page has. None if this is the last one."""


class NameRow(NamedTuple):
    """What is shown of a name."""

    name: str
    url: str
    kind: str
    size: int
    stored_at: int
    version_count: int
    labels: list[str]
    more_labels: int
    """How many labels are left out."""


async def show_names(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a page of the stored names."""
    query = context.request.query
    search = query.get("q", "").strip()
    order = query.get("order", "name")
    if order not in {"name", "newest"}:
        raise InvalidInput(f"the order is {order[:40]!r}; allowed are name and newest")
    if len(search) > _SEARCH_LIMIT:
        raise InvalidInput(f"what is searched for has {len(search)} characters; allowed are {_SEARCH_LIMIT}")
    page = await (_by_name if order == "name" else _newest)(context, repository, search.casefold())
    asked = {"q": search, "order": None if order == "name" else order}

    this = asked | {key: query.get(key) for key in ("after", "before")}
    is_first = "after" not in query and "before" not in query
    values: dict[str, Any] = {
        "rows": [await _row(repository, found) for found in page.found],
        "search": search,
        "order": order,
        "is_first": is_first,
        "first_url": page_url(NAMES, **asked),
        "next_url": None if page.following is None else page_url(NAMES, **asked, **page.following),
        "measure_url": page_url(NAMES, **this, measure="yes"),
        "is_empty": not page.found and not search and page.following is None and is_first,
        # A token with a prefix is refused for the name that a push chooses by itself.
        "push_arguments": _push_arguments(context.base_url, repository.prefix),
        "done": DONE.get(query.get("done", ""), ""),
    }
    last = None if "measure" in query else await last_name_sizes(context, repository)
    if last is not None or not page.found:
        return await render(context, "names.html", sizes=last, problem="", **values)
    return await render_measured(context, repository, "names.html", partial(measure_name_sizes, context, repository), **values)


def _push_arguments(url: str, prefix: str) -> str:
    """Return what follows the command that stores a folder, as words for a shell."""
    name = f" --name {shlex.quote(prefix + 'NAME.zip')}" if prefix else ""
    return f"--url {shlex.quote(url)}{name} FOLDER"


async def _by_name(context: RequestContext, repository: LocalRepository, search: str) -> NamePage:
    after: str | None = context.request.query.get("after")
    found: list[NewestVersion] = []
    for _ in range(LOOKED_AT_CALLS):
        heads = await repository.list_names(search=search or None, after=after, limit=PAGE_COUNT - len(found))
        found += [NewestVersion(name, commit) for name, commit in heads.heads]
        after = heads.next_after
        if after is None or len(found) == PAGE_COUNT:
            break
    return NamePage(found, None if after is None else {"after": after})


async def _newest(context: RequestContext, repository: LocalRepository, search: str) -> NamePage:
    """Find names in the order in which their newest versions were stored. Each name comes once, at one place."""
    before = number_in(context.request, "before")
    newest: dict[str, str | None] = {}
    found: list[NewestVersion] = []
    for _ in range(LOOKED_AT_RECORDS // _RECORDS):
        records = await repository.records(limit=_RECORDS, before=before)
        for record in records:
            before = record.updated_at
            name = record.full_name
            if search not in name.casefold():
                continue
            if name not in newest:
                newest[name] = await _newest_id(repository, name)
            if newest[name] == record.id:
                found.append(NewestVersion(name, record))
            if len(found) == PAGE_COUNT:
                return NamePage(found, {"before": before})
        if len(records) < _RECORDS:
            return NamePage(found, None)
    return NamePage(found, {"before": before})


async def _newest_id(repository: LocalRepository, name: str) -> str | None:
    """Return the id of the record that a name means, or of its newest one if all are on other branches than `main`."""
    try:
        return (await repository.find_commit(name)).file_id
    except NotFound:
        pass
    with suppress(NotFound):
        records = (await repository.versions(Reference.of_name(name), limit=1)).records
        return records[0].id if records else None
    return None


async def _row(repository: LocalRepository, found: NewestVersion) -> NameRow:
    labels: list[str] = []
    with suppress(NotFound):  # it may have been removed meanwhile
        labels = [label.name for label in await repository.labels(found.name)]
    return NameRow(
        name=found.name,
        url=name_url(found.name),
        kind=found.version.kind.value,
        size=found.version.size,
        stored_at=found.stored_at,
        version_count=await repository.version_count(found.name),
        labels=labels[:_LABELS],
        more_labels=max(len(labels) - _LABELS, 0),
    )
