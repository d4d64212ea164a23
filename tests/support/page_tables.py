"""Read the tables and the links of a page, as a test compares them with what a command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser

from tests.support.server import Reply

Row = Sequence[str]
"""The cells of a row. A size, a number or a time is its exact value."""


class PageReader(HTMLParser):
    """The tables of a page by their labels, its links by their texts, and the messages about what is wrong."""

    def __init__(self, page: Reply) -> None:
        super().__init__()
        self.tables: dict[str, list[Row]] = {}
        self.links: dict[str, str] = {}
        self.problems: list[str] = []
        self.elements: list[str] = []
        """All elements, for tests that look for those that must not be there."""
        self._labels: dict[str, str] = {}
        self._rows: list[Row] = []
        self._cells: list[str] = []
        self._spans: list[int] = []
        self._texts: list[tuple[str, list[str], Mapping[str, str]]] = []
        self.feed(page.body.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.elements.append(tag)
        if given.get("role") == "region":
            self._rows = self.tables[given.get("aria-label") or given["aria-labelledby"]] = []
        if tag == "tr":
            self._cells = []
            self._rows.append(self._cells)
        if tag in {"td", "th", "a", "p", "data"}:
            self._texts.append((tag, [], given))

    def handle_endtag(self, tag: str) -> None:
        if not self._texts or self._texts[-1][0] != tag:
            return
        _, found, given = self._texts.pop()
        text = given["value"] if tag == "data" else " ".join("".join(found).split())
        if tag == "a":
            self.links[text] = given["href"]
        if tag == "p" and "problem" in given.get("class", ""):
            self.problems.append(text)
        if tag in {"td", "th"}:
            self._cells += [text] * int(given.get("colspan", 1))
        elif self._texts:
            self._texts[-1][1].append(text)

    def handle_data(self, data: str) -> None:
        if self._texts:
            self._texts[-1][1].append(data)
