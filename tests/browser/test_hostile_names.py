"""Names, entries, tensors, messages, labels and authors that an attacker has chosen do no harm on any page."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import Browsing, check_accessible
from tests.support.library import NAMES, OWNED, HostileLibrary

pytestmark = pytest.mark.slow

_HARM = """() => {
    const found = [];
    for (const each of document.querySelectorAll('*')) {
        const url = each.getAttribute('href') ?? each.getAttribute('action') ?? each.getAttribute('src') ?? '';
        const isOurs = new URL(url, location.href).origin === location.origin;
        const handlers = [...each.attributes].filter((other) => other.name.startsWith('on'));
        const isForeign = each.localName === 'img' || (each.localName === 'script' && !each.src) || each.localName === 'iframe';
        if (handlers.length || isForeign || !isOurs) {
            found.push(each.outerHTML);
        }
    }
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const parent = texts.currentNode.parentElement;
        const turns = /[\\u202a-\\u202e\\u2066-\\u2069]/.test(texts.currentNode.data);
        if (turns && !parent.closest('bdi, [dir=auto], option, title, code')) {
            found.push(`not apart from its line: ${parent.outerHTML}`);
        }
    }
    return found;
}"""


def check_harmless(page: Page) -> None:
    """Fail if a page has something that only an attacker would write there. `Browsing` fails for what scripts did."""
    assert [] == page.evaluate(_HARM), page.url
    # What a template would make of one of the names, 777*777, and not a part of an id.
    assert None is re.search(r"(?<![0-9a-f])603729(?![0-9a-f])", page.locator("main").inner_text())


def urls(hostile: HostileLibrary) -> list[str]:
    """The pages that show what an attacker has chosen."""
    paths = [
        ("/ui/names", {}),
        *(("/ui/name", {"name": name}) for name in hostile.names),
        *(("/ui/file", {"id": id_}) for id_ in hostile.names.values()),
        *(("/ui/label", {"name": name}) for name in hostile.names),
        *(("/ui/remove", {"id": id_}) for id_ in hostile.names.values()),
        ("/ui/name", {"name": "tensors.safetensors"}),
        ("/ui/name", {"name": OWNED}),
        ("/ui/file", {"id": hostile.folder}),
        ("/ui/file", {"id": hostile.page}),
        ("/ui/file", {"id": hostile.model}),
        ("/ui/tensors", {"id": hostile.model}),
        ("/ui/tensors", {"id": hostile.model, "q": NAMES[0]}),
        ("/ui/compare", {"old": hostile.old_model, "new": hostile.model}),
        ("/ui/compare", {"old_ref": NAMES[0], "new_ref": NAMES[1]}),
        ("/ui/chunks", {"id": hostile.folder}),
        ("/ui/chunks", {"id": hostile.model}),
        ("/ui/space", {}),
        ("/ui/transfers", {}),
        ("/ui/links", {}),
        ("/ui/admin", {}),
    ]
    return [f"{path}?{urlencode(query)}" if query else path for path, query in paths]


def test_hostile_names_do_no_harm(browsing: Browsing, hostile: HostileLibrary) -> None:
    """On each page they are text: no tag, no handler, no template, no URL, and their direction ends with them."""
    # A label of this name does not exist, and neither does a reference of that form.
    browsing.allow("status of 4")
    page = browsing.page(hostile.url, hostile.tokens["admin"])
    for url in urls(hostile):
        answer = page.goto(url, wait_until="load")
        assert answer is not None
        assert answer.status < 500, url
        check_harmless(page)


def test_hostile_names_are_shown_as_they_are(browsing: Browsing, hostile: HostileLibrary) -> None:
    """Each one is a link with its whole text, which leads to its page."""
    page = browsing.page(hostile.url, hostile.tokens["read"])
    shown = page.locator("tbody th bdi").evaluate_all("(all) => all.map((each) => each.textContent)")
    assert set(NAMES) <= set(shown)
    for name, id_ in hostile.names.items():
        page.goto("/ui/names")
        page.locator("tbody th a").nth(shown.index(name)).click()
        heading = page.get_by_role("heading", level=1)
        expect(heading).to_be_visible()
        assert name == heading.evaluate("(each) => each.textContent").strip()
        page.goto(f"/ui/file?id={id_}")
        with page.expect_download() as begun:
            page.get_by_role("link", name="Download", exact=True).click()
        assert 300 == begun.value.path().stat().st_size


@pytest.mark.parametrize(
    "kind", ["names", "long", "letters", "direction", "folder", "tensors", "compare", "links", "space", "chunks", "server"]
)
def test_pages_of_hostile_names_are_accessible(browsing: Browsing, hostile: HostileLibrary, kind: str) -> None:
    """A name of 255 letters without a space makes no page wider than a phone."""
    long, letters, direction = NAMES[-2], NAMES[-1], next(name for name in NAMES if "\u202e" in name)
    url = {
        "names": "/ui/names",
        "long": f"/ui/name?{urlencode({'name': long})}",
        "letters": f"/ui/file?id={hostile.names[letters]}",
        "direction": f"/ui/name?{urlencode({'name': direction})}",
        "folder": f"/ui/file?id={hostile.folder}",
        "tensors": f"/ui/tensors?id={hostile.model}",
        "compare": f"/ui/compare?old={hostile.old_model}&new={hostile.model}",
        "links": "/ui/links",
        "space": "/ui/space",
        "chunks": f"/ui/chunks?id={hostile.folder}",
        "server": "/ui/admin",
    }[kind]
    page = browsing.page(hostile.url, hostile.tokens["admin"])
    page.goto(url)
    if kind in {"space", "chunks"}:
        expect(page.get_by_role("heading", level=2).first).to_be_visible()
    check_accessible(page)


def test_a_stored_page_is_never_shown(browsing: Browsing, hostile: HostileLibrary) -> None:
    """A browser saves HTML and SVG that somebody has stored, also where it would rather show them."""
    page = browsing.page(hostile.url, hostile.tokens["admin"])
    for query in (
        {"id": hostile.page},
        {"id": hostile.folder, "path": "index.html"},
        {"id": hostile.folder, "path": "picture.svg"},
    ):
        with page.expect_download() as begun:
            page.evaluate("(url) => { location.href = url; }", f"/ui/content?{urlencode(query)}")
        assert b"alert(1)" in begun.value.path().read_bytes()
    page.evaluate("(url) => { document.body.append(Object.assign(document.createElement('iframe'), {src: url})); }", "/ui/names")
    # The page may not be framed, by itself either.
    browsing.allow("frame")
    assert 2 == len(page.frames)
