"""What people read from the pages of a real model and of its changed version, that a command has pushed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import Browsing
from tests.support.library import FOLDER, MODEL, OTHER, OWNED, WEIGHTS, Library, real_model
from tests.support.page_list import PAGES

pytestmark = pytest.mark.slow

WORDS = {"added": "new", "removed": "removed", "changed": "changed", "same": "shared"}
"""What a page calls what `diff --json` says of a tensor."""
CHANGING = re.compile(r"/ui/(remove|label|unlabel|unlink|link|upload)\b")
"""The pages and forms that change something."""


def compared(page: Page) -> dict[str, tuple[str, ...]]:
    """The tensors of a comparison: what became of each, and its type and shape on both sides."""
    rows: dict[str, tuple[str, ...]] = {}
    while True:
        for row in page.locator("table.compared tbody tr").all():
            status, name, *sides = (cell.inner_text().strip() for cell in row.locator("th, td").all())
            assert name not in rows
            rows[name] = (status.lower(), *(each for each in sides if not each.endswith("B") or each == "none"))
        following = page.get_by_role("navigation", name="Pages of the comparison").get_by_role("link", name="Next page")
        if not following.count():
            return rows
        following.click()
        page.wait_for_load_state()


def expected(library: Library, file: dict[str, Any], old: list[Any], new: list[Any]) -> dict[str, str]:
    """What `diff --json` says became of each tensor. Those that it does not name are shared."""
    found = {each["name"]: "shared" for each in (*old, *new)}
    found |= {each["name"]: WORDS[each["status"]] for each in file["tensors"]}
    assert file["same_tensors"] == list(found.values()).count("shared")
    return found


def tensors(library: Library, reference: str) -> list[Any]:
    """The tensors of a stored file, as the command lists them."""
    listed: list[Any] = library.home.result("ls", "--tensors", reference, environ=library.environ)["tensors"]
    return listed


def test_which_tensors_two_versions_share(browsing: Browsing, library: Library) -> None:
    """Somebody opens the name, compares its two versions, and reads of each tensor what `diff --json` says."""
    (file,) = library.home.result("diff", f"{MODEL}@v1", MODEL, environ=library.environ)["files"]
    wanted = expected(library, file, tensors(library, f"{MODEL}@v1"), tensors(library, MODEL))
    page = browsing.page(library.url, library.tokens["read"])
    page.get_by_role("link", name=MODEL).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url("**/ui/compare?*")
    expect(page.get_by_role("heading", level=1)).to_contain_text(MODEL)
    found = compared(page)
    assert wanted == {name: status for name, (status, *_) in found.items()}
    assert {"shared", "changed", "new", "removed"} == set(wanted.values())
    for each in file["tensors"]:
        for side in filter(None, (each["old"], each["new"])):
            assert side["dtype"] in found[each["name"]]
    page.get_by_role("link", name="Changed", exact=True).click()
    changed = {name for name, status in wanted.items() if status == "changed"}
    expect(page.locator("table.compared tbody tr")).to_have_count(len(changed))
    assert changed == set(compared(page))


def test_which_tensors_two_directories_share(browsing: Browsing, library: Library) -> None:
    """The page of two directories has the tensors of the file that changed."""
    (file,) = library.home.result("diff", library.old_folder, library.new_folder, environ=library.environ)["files"]
    page = browsing.page(library.url, library.tokens["read"])
    page.goto(f"/ui/compare?old={library.old_folder}&new={library.new_folder}")
    page.get_by_role("link", name=f"Compare the tensors of {WEIGHTS}").click()
    expect(page.locator("table.compared tbody tr").first).to_be_visible()
    found = {name: status for name, (status, *_) in compared(page).items() if status != "shared"}
    assert {each["name"]: WORDS[each["status"]] for each in file["tensors"]} == found


def test_the_tensors_of_a_model(browsing: Browsing, library: Library) -> None:
    """Names, types and shapes are those that the command lists."""
    page = browsing.page(library.url, library.tokens["read"])
    PAGES["tensors"].open(page, library)
    table = page.locator("section, main").locator("table").last
    listed = tensors(library, MODEL)
    shown = {}
    for row in table.locator("tbody tr").all():
        name, dtype, *_ = (cell.inner_text().strip() for cell in row.locator("th, td").all())
        shown[name] = dtype
    assert {each["name"]: each["dtype"] for each in listed} == shown


def test_a_viewer_with_the_scope_read_sees_no_action(browsing: Browsing, library: Library) -> None:
    """No page has a link or a form that changes something, apart from the end of the session."""
    page = browsing.page(library.url, library.tokens["read"])
    for name, visit in PAGES.items():
        if visit.scope == "read":
            visit.open(page, library)
            targets = page.locator("a, form[method=post], button[formaction]").evaluate_all(
                "(all) => all.map((each) => each.getAttribute('href') ?? each.getAttribute('action') ?? '')"
            )
            assert [] == [each for each in targets if CHANGING.search(each)], name
            assert ["Sign out"] == page.locator("form[method=post] button").all_inner_texts(), name
            assert ["Names", "Space", "Transfers", "Links"] == page.get_by_role("navigation", name="Pages").get_by_role(
                "link"
            ).all_inner_texts()


def test_a_token_with_a_prefix_sees_its_names(browsing: Browsing, library: Library) -> None:
    """Other names are on none of its pages."""
    page = browsing.page(library.url, library.tokens["prefix"])
    expect(page.get_by_role("link", name=MODEL)).to_be_visible()
    for name, visit in PAGES.items():
        if visit.scope == "read":
            visit.open(page, library)
            text = page.locator("main").inner_text()
            assert not [each for each in (OTHER, OWNED) if each in text], name


def test_a_file_and_a_directory_are_downloaded(browsing: Browsing, library: Library, tmp_path: Path) -> None:
    """The file is what was pushed, and the directory a zip file of it."""
    page = browsing.page(library.url, library.tokens["read"])
    page.goto(f"/ui/file?id={library.old}")
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download", exact=True).click()
    assert MODEL == begun.value.suggested_filename
    assert (real_model() / WEIGHTS).read_bytes() == begun.value.path().read_bytes()
    page.goto(f"/ui/file?id={library.old_folder}")
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download as a zip file").click()
    assert FOLDER == begun.value.suggested_filename
    with ZipFile(begun.value.path()) as archive:
        assert None is archive.testzip()
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert {path.relative_to(real_model()).as_posix() for path in real_model().rglob("*") if path.is_file()} == names
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download config.json").click()
    assert (real_model() / "config.json").read_bytes() == begun.value.path().read_bytes()


def test_the_picture_of_chunks_has_a_text(browsing: Browsing, library: Library) -> None:
    """A reader who does not see the picture reads which share of the file is shared with which other one."""
    page = browsing.page(library.url, library.tokens["read"])
    PAGES["chunks"].open(page, library)
    picture = page.get_by_role("img", name=re.compile(rf"Chunks of {re.escape(MODEL)} .*\d+ % is from an earlier version"))
    expect(picture).to_be_visible()
    table = page.get_by_role("region", name="Shared with")
    expect(table.locator("tbody tr").first).to_be_visible()
