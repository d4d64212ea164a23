"""A browser without a browser: a session at a server, and what its pages say, for tests of pages that need no script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urlencode

from tests.support.server import Reply, RunningServer

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
_EMPTY = frozenset({"meta", "link", "input", "br", "hr", "img"})


@dataclass(frozen=True)
class Visitor:
    """Somebody who is signed in at a server."""

    server: RunningServer
    cookie: str

    @property
    def headers(self) -> dict[str, str]:
        """What the browser sends with each request."""
        return {"Cookie": self.cookie, "Accept": "text/html"}

    def get(self, path: str, /, **query: object) -> Reply:
        """Open a page, without following where it sends the browser."""
        return self.server.ask("GET", _with_query(path, query), headers=self.headers, token=None)

    def post(self, path: str, form: Mapping[str, object] | None = None, *, headers: Mapping[str, str] = SAME_ORIGIN) -> Reply:
        """Send a form, as a page of the server does."""
        return post_form(self.server, path, form or {}, headers={**self.headers, **headers})


def sign_in(server: RunningServer, token: str | None = None) -> Visitor:
    """Begin a session with a token, by default with that of the server."""
    reply = post_form(server, "/ui/login", {"token": token or server.token})
    assert 303 == reply.status, reply.body
    return Visitor(server, reply.headers["Set-Cookie"].partition(";")[0])


def post_form(server: RunningServer, path: str, form: Mapping[str, object], *, headers: Mapping[str, str] = SAME_ORIGIN) -> Reply:
    """Send a form. Without other `headers` it comes from a page of the server."""
    content_type = {"Content-Type": "application/x-www-form-urlencoded"}
    return server.ask("POST", path, urlencode(form).encode(), headers={**content_type, **headers}, token=None)


def page_text(page: Reply | bytes) -> str:
    """Return what a reader sees of a page, without its menu, in one line. The page must be well formed."""
    parser = _Text()
    parser.feed((page if isinstance(page, bytes) else page.body).decode())
    parser.close()
    assert not parser.open, f"these elements do not end: {parser.open}"
    return " ".join("".join(parser.found).split())


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _EMPTY and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]  # it has just begun
            self.open.append(tag)
        del attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert tag == self.open.pop(), f"</{tag}> does not end what began last"
        self.found.append(" ")

    def handle_data(self, data: str) -> None:
        if "main" in self.open:
            self.found.append(data)


def _with_query(path: str, query: Mapping[str, object]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
