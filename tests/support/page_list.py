"""All pages of a server, with what each needs to show something."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

from tests.support.library import MODEL, WEIGHTS, Library


class Visit(NamedTuple):
    """A page: its path, and the fields of its query with the names of values of a library."""

    path: str
    query: tuple[tuple[str, str], ...] = ()
    heading: str | None = None
    """A heading that the page has once all is measured. Until then it loads itself again."""
    scope: str = "read"
    """What it needs."""

    def url(self, library: Library) -> str:
        """The path with its query."""
        values = library._asdict()
        query = {key: values.get(value, value) for key, value in self.query}
        return f"{self.path}?{urlencode(query)}" if query else self.path

    def open(self, page: Page, library: Library) -> None:
        """Open the page, and wait until it is whole."""
        page.goto(self.url(library))
        if self.heading is not None:
            expect(page.get_by_role("heading", name=self.heading, exact=True)).to_be_visible()


_VERSION = (("name", MODEL), ("revision", "v1"))
PAGES = {
    "names": Visit("/ui/names"),
    "names-found": Visit("/ui/names", (("q", "mini"), ("order", "newest"))),
    "versions": Visit("/ui/name", (("name", MODEL),)),
    "file": Visit("/ui/file", (("id", "new"),)),
    "directory": Visit("/ui/file", (("id", "new_folder"),)),
    "entry": Visit("/ui/file", (("id", "new_folder"), ("path", "config.json"))),
    "tensors": Visit("/ui/tensors", (("id", "new"),)),
    "tensors-entry": Visit("/ui/tensors", (("id", "new_folder"), ("path", WEIGHTS))),
    "compare": Visit("/ui/compare", (("old", "old"), ("new", "new"))),
    "compare-directories": Visit("/ui/compare", (("old", "old_folder"), ("new", "new_folder"))),
    "compare-choose": Visit("/ui/compare"),
    "chunks": Visit("/ui/chunks", (("id", "new"),), "The picture"),
    "chunks-directory": Visit("/ui/chunks", (("id", "new_folder"),), "The picture"),
    "space": Visit("/ui/space", (), "By name"),
    "transfers": Visit("/ui/transfers"),
    "links": Visit("/ui/links"),
    "unlink": Visit("/ui/unlink", (("id", "link"),), scope="delete"),
    "server": Visit("/ui/admin", scope="admin"),
    "upload": Visit("/ui/upload", scope="write"),
    "label": Visit("/ui/label", _VERSION, scope="write"),
    "unlabel": Visit("/ui/unlabel", (("name", MODEL), ("label", "v1")), scope="delete"),
    "remove": Visit("/ui/remove", (("id", "old"),), scope="delete"),
    "remove-directory": Visit("/ui/remove", (("id", "new_folder"),), scope="delete"),
}
"""By the name of a picture of it."""
