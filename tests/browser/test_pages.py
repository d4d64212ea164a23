"""What holds for each page, whatever it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from filestore.http.server.routes.page.routes import PAGE_ROUTES
from tests.support.browser import HEIGHT, WIDTHS, Browsing, check_accessible, check_keys, sign_in, take_pictures
from tests.support.library import MODEL, Library
from tests.support.page_list import PAGES, Visit

pytestmark = pytest.mark.slow

FIRST_VIEW_SIZE = 100_000
"""Bytes that a browser which has nothing of a page may load to show it."""
NO_PAGES = {"/ui/content", "/ui/{rest:.*}"}
"""A download, and what does not exist."""


def test_each_page_is_in_the_list() -> None:
    """What the tests below see is all that a server has."""
    assert {visit.path for visit in PAGES.values()} | NO_PAGES == {route.path for route in PAGE_ROUTES if route.method == "GET"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible(browsing: Browsing, library: Library, name: str) -> None:
    """In both widths and colour schemes, axe finds nothing serious, no line is wider than the view, and TAB leads everywhere.

    Nothing is asked of another origin, and the policy of the page is kept: see `Browsing`.
    """
    page = browsing.page(library.url, library.tokens["admin"])
    PAGES[name].open(page, library)
    assert 1 == page.get_by_role("heading", level=1).count()
    assert 1 == page.get_by_role("main").count()
    assert page.title().endswith(" \N{EN DASH} filestore")
    assert "" == page.evaluate("() => [...document.querySelectorAll('[style]')].map((each) => each.outerHTML).join()")
    take_pictures(page, name)
    check_accessible(page)
    check_keys(page)
    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    page.evaluate("() => document.activeElement.blur()")
    check_keys(page)


def test_the_first_page_is_accessible(browsing: Browsing, library: Library) -> None:
    """Also with the message that a token is wrong, to which the field leads."""
    page = browsing.page(library.url)
    page.goto("/")
    take_pictures(page, "welcome")
    check_accessible(page)
    check_keys(page)
    browsing.allow("401")
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    take_pictures(page, "welcome-wrong")
    check_accessible(page)


@pytest.mark.parametrize(("path", "status"), [("/ui/absent", 404), ("/ui/file?id=file_00000000000000000000000000000000", 404)])
def test_an_error_is_an_accessible_page(browsing: Browsing, library: Library, path: str, status: int) -> None:
    """It says what is wrong, and leads back."""
    browsing.allow(str(status))
    page = browsing.page(library.url, library.tokens["read"])
    answer = page.goto(path)
    assert answer is not None
    assert status == answer.status
    take_pictures(page, f"error-{len(path)}")
    check_accessible(page)
    check_keys(page)
    page.get_by_role("alert").wait_for()
    page.get_by_role("link", name="Back to the first page").click()
    page.wait_for_url("**/ui/names")


def test_a_page_of_another_scope_is_an_accessible_error(browsing: Browsing, library: Library) -> None:
    """It says which scope is needed."""
    browsing.allow("403")
    page = browsing.page(library.url, library.tokens["read"])
    for name, visit in PAGES.items():
        if visit.scope != "read":
            answer = page.goto(visit.url(library))
            assert answer is not None
            assert 403 == answer.status, name
            assert "scope" in page.get_by_role("alert").inner_text()
    check_accessible(page)


@pytest.mark.parametrize("name", ["welcome", *PAGES])
def test_a_first_view_is_small(browsing: Browsing, library: Library, name: str) -> None:
    """A browser that has nothing of the pages loads less than 100 kB for one of them."""
    context = browsing.context(library.url)
    page = context.new_page()
    if name != "welcome":
        sign_in(page, library.tokens["admin"])
    sizes: list[float] = []

    def note(event: Mapping[str, Any]) -> None:
        sizes.append(event["encodedDataLength"])

    devtools = context.new_cdp_session(page)
    devtools.on("Network.loadingFinished", note)
    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
    visit = PAGES.get(name, Visit("/"))
    page.goto(visit.url(library), wait_until="networkidle")
    assert len(sizes) >= 3, "the page, its style and its script"
    assert sum(sizes) < FIRST_VIEW_SIZE


def test_the_first_page_reads_no_content(browsing: Browsing, library: Library) -> None:
    """Without a session, the server is asked for the page and the files of pages, and for nothing else."""
    browsing.page(library.url).goto("/", wait_until="networkidle")
    assert {"/"} == {each.removeprefix(library.url) for each in browsing.requests if "/ui/static/" not in each}


@pytest.mark.parametrize(
    ("locale", "shown"), [("en-GB", "90.9 MB"), ("de-DE", "90,9 MB"), ("hi-IN", "90.9 MB"), ("ar-EG", "\u0669\u0660\u066b\u0669")]
)
def test_numbers_are_in_the_locale_of_the_reader(browsing: Browsing, library: Library, locale: str, shown: str) -> None:
    """The script writes sizes as the reader is used to; the title has all digits."""
    page = browsing.page(library.url, library.tokens["read"], locale=locale)
    PAGES["versions"].open(page, library)
    size = page.locator("table data.size[value='90868376']").first
    assert shown in size.inner_text()
    assert size.get_attribute("title") is not None


def test_without_a_script_numbers_are_in_english(browsing: Browsing, library: Library) -> None:
    """What the server writes is complete."""
    page = browsing.page(library.url, library.tokens["read"], has_script=False, locale="de-DE")
    page.goto(f"/ui/name?name={MODEL}")
    assert "90.9 MB" == page.locator("table data.size[value='90868376']").first.inner_text()
    assert page.locator("table time").first.inner_text().endswith(" UTC")
