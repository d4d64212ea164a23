"""What a page has, read as a browser reads it: links, forms, rows of tables, and all elements with their attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from tests.support.server import Reply


@dataclass
class Form:
    """A form, with the values that it sends if nobody changes anything."""

    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)
    """By the names of lists: the values that can be chosen."""


class Page(HTMLParser):
    """A page that was read. Links are by their texts, or by their labels for readers of the screen."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.links: dict[str, str] = {}
        self.forms: dict[str, Form] = {}
        """By where they are sent."""
        self.rows: list[list[str]] = []
        """The texts of the cells of all rows of tables."""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[tuple[str, list[str]]] = []
        self._href: tuple[str, str | None] = "", None
        self._form: Form | None = None
        self._list = ""
        self.feed(reply.body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag == "a":
            self._href = given.get("href") or "", given.get("aria-label")
        if tag == "form":
            self._form = Form(given.get("method") or "get", given.get("action") or "")
            self.forms[self._form.action] = self._form
        if tag == "tr":
            self.rows.append([])
        if tag in {"a", "td", "th"}:
            self._texts.append((tag, []))
        self._note_field(tag, given)

    def _note_field(self, tag: str, given: dict[str, str | None]) -> None:
        name, value = given.get("name") or "", given.get("value") or ""
        if self._form is None:
            return
        if tag == "input" and (given.get("type") not in {"checkbox", "radio"} or "checked" in given):
            self._form.fields[name] = value
        if tag == "select":
            self._list = name
            self._form.options[name] = []
        if tag == "option":
            self._form.options[self._list].append(value)
            if "selected" in given or len(self._form.options[self._list]) == 1:
                self._form.fields[self._list] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        if tag in {"a", "td", "th"}:
            ended, texts = self._texts.pop()
            assert tag == ended
            text = " ".join("".join(texts).split())
            if tag == "a":
                self.links[self._href[1] or text] = self._href[0]
            elif self.rows:
                self.rows[-1].append(text)

    def handle_data(self, data: str) -> None:
        for _, texts in self._texts:
            texts.append(data)


def read(reply: Reply, status: int = 200) -> Page:
    """Return what a page has. It must have this status, and nothing that its policy forbids or that can run."""
    assert status == reply.status, reply.body
    assert "text/html; charset=utf-8" == reply.headers["Content-Type"]
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    page = Page(reply)
    for tag, attributes in page.elements:
        assert tag not in {"style", "iframe", "object", "embed", "img", "base", "b"}, f"{tag} {attributes}"
        assert tag != "script" or (attributes.get("src") or "").startswith("/ui/static/"), attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"], f"{tag} {attributes}"
        for name in ("href", "src", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), f"{tag} {attributes}"
    return page
