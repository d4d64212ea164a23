"""Read what the paths of the Hub API name: a repository, a revision, and a path inside it. Nothing in them is trusted (I4)."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from filestore.core.names import checked_name, checked_new_full_name, split_full_name
from filestore.errors import InvalidName, NotFound

_NAME = "[^/]+(?:/[^/]+)?"
REPOSITORY = f"{{repository:(?:(?:datasets|spaces|kernels)/)?{_NAME}}}"
"""The part of a route for a repository, where the type of a model has no prefix: `team/my-model`, `datasets/team/texts`."""
API_TYPE = "{type:models|datasets|spaces|kernels}"
"""The part of a route for the type of a repository, after `/api/`."""
API_REPOSITORY = f"{API_TYPE}/{{repository:{_NAME}}}"
"""The part of a route for a repository after `/api/`: `models/team/my-model`."""
REVISION = "{revision:[^/]+}"
"""The part of a route for a revision. A slash in it is percent-encoded, so it is one segment."""

PREFIXES = ("datasets", "spaces", "kernels")
"""The beginnings of paths that say the type of a repository. A model has none."""
PATH_LIMIT = 4096
"""Bytes of a path inside a repository, as the limit for the entries of a stored directory."""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository as a request of the Hub API names it."""

    type: str
    """`models`, `datasets`, `spaces` or `kernels`. It is repeated in answers, and distinguishes nothing."""
    name: str
    """The full name: `OWNER/NAME` or `NAME`."""

    @property
    def url_path(self) -> str:
        """The path of the page of the repository on the server, as clients put it together."""
        return f"/{self.name}" if self.type == "models" else f"/{self.type}/{self.name}"

    @property
    def api_path(self) -> str:
        """The path of the repository in the API."""
        return f"/api/{self.type}/{self.name}"


def repository_in(request: web.Request) -> HubRepository:
    """Return the repository that the path of a request names. Raises NotFound if nothing can have this name."""
    found = request.match_info
    kind, name = found.get("type"), found["repository"]
    if kind is None:
        prefix, _, rest = name.partition("/")
        kind, name = (prefix, rest) if prefix in PREFIXES and rest else ("models", name)
    return HubRepository(kind, hub_name(name))


def hub_name(text: str) -> str:
    """Return a full name that is valid. Raises NotFound if nothing can have this name.

    A request for it is answered as one for a name that is absent, without a look at the index.
    """
    owner, name = split_full_name(text)
    try:
        if owner is None:
            checked_name(name)
        else:
            checked_new_full_name(text)
    except InvalidName:
        raise NotFound(text[:PATH_LIMIT]) from None
    return text


def revision_in(request: web.Request) -> str | None:
    """Return the revision that the path of a request names, or None if it names none."""
    return request.match_info.get("revision") or None


def path_in(request: web.Request, part: str = "path") -> str | None:
    """Return the path inside a repository that a request names. Return None if no entry can have this path."""
    return entry_path(request.match_info.get(part, "").removeprefix("/"))


def entry_path(text: str) -> str | None:
    """Return `text` if it can be the path of an entry, or is empty, which means the repository itself. Otherwise None."""
    if len(text) > PATH_LIMIT or "\0" in text or (text and not {"", ".", ".."}.isdisjoint(text.split("/"))):
        return None
    return text
