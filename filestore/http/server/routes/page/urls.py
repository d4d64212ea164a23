"""The URLs of pages, and of what the pages link to. A reader's browser asks for them below the server's own URL."""

from __future__ import annotations

from urllib.parse import urlencode

NAMES = "/ui/names"
"""The page that a session begins with."""


def page_url(page: str, /, **values: object) -> str:
    """Return the URL of a page with these values in its query. Those that are None or an empty text are left out."""
    given = {key: value for key, value in values.items() if value not in (None, "")}
    return f"{page}?{urlencode(given)}" if given else page


def name_url(name: str, **values: object) -> str:
    """Return the URL of the page with the versions of a name."""
    return page_url("/ui/name", name=name, **values)


def file_url(file_id: str, **values: object) -> str:
    """Return the URL of the page of one version."""
    return page_url("/ui/file", id=file_id, **values)


def tensors_url(file_id: str, path: str = "") -> str:
    """Return the URL of the page with the tensors of a version, or of one file in it."""
    return page_url("/ui/tensors", id=file_id, path=path)


def content_url(file_id: str, path: str = "") -> str:
    """Return the URL of the content of a version, or of one file in it."""
    return page_url("/ui/content", id=file_id, path=path)
