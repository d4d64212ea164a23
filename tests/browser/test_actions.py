"""What people do on the pages: by the keyboard alone, with the mouse, and in a browser without scripts."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.browser import Browsing, sign_in
from tests.support.library import FOLDER, MODEL, OTHER, OWNED, WEIGHTS, Library
from tests.support.server import eventually

pytestmark = pytest.mark.slow

MOST_KEYS = 150
"""More controls than a page of these tests has."""


class Keyboard:
    """Somebody who has no mouse."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def reach(self, wanted: Locator) -> None:
        """Press TAB until a control has the focus."""
        expect(wanted).to_have_count(1)
        for _ in range(MOST_KEYS):
            if wanted.evaluate("(each) => each === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        pytest.fail(f"TAB does not lead to {wanted}")

    def use(self, wanted: Locator, key: str = "Enter") -> None:
        """Go to a control, and press a key there."""
        self.reach(wanted)
        self.page.keyboard.press(key)

    def write(self, field: Locator, text: str) -> None:
        """Go to a field, and write something there."""
        self.reach(field)
        self.page.keyboard.type(text)


def names_in(library: Library) -> list[str]:
    """What the command lists, a name for each version."""
    listed = library.home.result("ls", environ=library.environ)["files"]
    return [each["name"] if each.get("owner") is None else f"{each['owner']}/{each['name']}" for each in listed]


def labels_of(library: Library) -> set[str]:
    """The tags and branches of the model, as the command lists them."""
    return {each["name"] for each in library.home.result("tag", MODEL, environ=library.environ)["labels"]}


def status_of(url: str) -> int:
    """The status of a request without a token. It is 0 if the answer is cut, as it is when its link ends meanwhile."""
    try:
        with urlopen(url, timeout=60) as answer:  # an URL of the test's server
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (ConnectionError, HTTPException):
        return 0


def done(page: Page) -> Locator:
    """The sentence that says that an action was done."""
    return page.locator("p.done")


def test_a_session_begins_and_ends_by_keyboard(browsing: Browsing, small: Library) -> None:
    """The field for the token has the focus at once, and afterwards no page shows anything."""
    page = browsing.page(small.url)
    keys = Keyboard(page)
    page.goto("/")
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(small.tokens["read"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/names")
    keys.use(page.get_by_role("link", name="Skip to the content"))
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.querySelector('main').contains(document.activeElement)")
    page.goto("/ui/names")
    keys.use(page.get_by_role("button", name="Sign out"), "Space")
    page.get_by_label("Token").wait_for()
    page.goto(f"/ui/name?name={MODEL}")
    expect(page.get_by_label("Token")).to_be_visible()
    assert not page.context.cookies()
    # What is asked for is shown after the sign-in.
    page.keyboard.type(small.tokens["read"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/name?name={MODEL}")


def test_tags_are_set_and_removed_by_keyboard(browsing: Browsing, small: Library) -> None:
    """The page asks before it removes one."""
    page = browsing.page(small.url, small.tokens["delete"])
    keys = Keyboard(page)
    keys.use(page.get_by_role("link", name=MODEL))
    keys.use(page.get_by_role("link", name="Tag ").first)
    keys.write(page.get_by_label("Name of the tag or branch"), "release/2")
    page.keyboard.press("Enter")
    expect(done(page)).to_be_visible()
    assert {"v1", "release/2"} <= labels_of(small)
    keys.use(page.get_by_role("link", name="Remove the tag release/2"))
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Remove the tag release/2 of {MODEL}")
    assert "release/2" in labels_of(small), "nothing was removed yet"
    keys.use(page.get_by_role("link", name="Keep it"))
    keys.use(page.get_by_role("link", name="Remove the tag release/2"))
    keys.use(page.get_by_role("button", name="Remove the tag"), "Space")
    expect(done(page)).to_be_visible()
    assert "release/2" not in labels_of(small)


def test_a_wrong_tag_is_explained_at_its_field(browsing: Browsing, small: Library) -> None:
    """The field keeps the text, has the focus, and names the sentence that says what is wrong."""
    browsing.allow("status of 4")
    page = browsing.page(small.url, small.tokens["write"])
    page.goto(f"/ui/label?name={MODEL}")
    field = page.get_by_label("Name of the tag or branch")
    field.fill("a tag with spaces")
    page.get_by_role("button", name="Set").click()
    expect(field).to_have_value("a tag with spaces")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_contain_text("cannot be called")


def test_a_version_is_removed_by_keyboard(browsing: Browsing, small: Library) -> None:
    """The page says what goes with it, and nothing is removed before somebody agrees."""
    page = browsing.page(small.url, small.tokens["delete"])
    keys = Keyboard(page)
    page.goto(f"/ui/file?id={small.old}")
    keys.use(page.get_by_role("link", name="Remove this version"))
    expect(page.get_by_text("It has these tags and branches")).to_contain_text("v1")
    assert 2 == names_in(small).count(MODEL)
    button = page.get_by_role("button", name="Remove this version")
    keys.use(button)
    # The browser keeps the form, because the box is empty.
    expect(page.get_by_label("Remove it although it has a tag or a branch")).to_be_focused()
    assert 2 == names_in(small).count(MODEL)
    page.keyboard.press("Space")
    keys.use(button)
    expect(done(page)).to_be_visible()
    page.wait_for_url(f"**/ui/name?name={MODEL}*")
    assert 1 == names_in(small).count(MODEL)


def test_the_last_version_of_a_name_is_removed(browsing: Browsing, small: Library) -> None:
    """The reader comes back to the names, among which it is not. A reload and the button "back" remove nothing more."""
    page = browsing.page(small.url, small.tokens["delete"])
    page.goto(f"/ui/remove?id={small.other}")
    page.get_by_role("button", name="Remove this version").click()
    page.wait_for_url("**/ui/names?*")
    expect(done(page)).to_be_visible()
    expect(page.get_by_role("link", name=OTHER)).to_have_count(0)
    before = sorted(names_in(small))
    assert OTHER not in before
    page.reload()
    expect(page.get_by_role("link", name=MODEL)).to_be_visible()
    assert before == sorted(names_in(small))


def test_a_version_that_was_pushed_again_is_not_removed(browsing: Browsing, small: Library) -> None:
    """Two people at once: what somebody agreed to remove is not what is there now."""
    browsing.allow("status of 4")
    page = browsing.page(small.url, small.tokens["delete"])
    page.goto(f"/ui/remove?id={small.other}")
    other = browsing.page(small.url, small.tokens["delete"])
    other.goto(f"/ui/remove?id={small.other}")
    other.get_by_role("button", name="Remove this version").click()
    expect(done(other)).to_be_visible()
    page.get_by_role("button", name="Remove this version").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert OTHER not in names_in(small)


def test_a_link_is_made_by_keyboard(browsing: Browsing, small: Library) -> None:
    """Everyone reads its URL, until it is revoked on the page of links, which asks before."""
    page = browsing.page(small.url, small.tokens["delete"])
    keys = Keyboard(page)
    page.goto(f"/ui/file?id={small.other}")
    keys.reach(page.get_by_label("The link lasts"))
    page.keyboard.press("ArrowUp")
    keys.use(page.get_by_role("button", name="Make a link"))
    url = page.get_by_role("region", name="URL of the link").inner_text().strip()
    assert url.startswith(f"{small.url}/signed/")
    assert 200 == status_of(url)
    page.reload()
    assert url == page.get_by_role("region", name="URL of the link").inner_text().strip()
    links = small.home.result("link", "--list", environ=small.environ)["links"]
    (made,) = [each for each in links if each["name"] == OTHER]
    keys.use(page.get_by_role("link", name="all links"))
    row = page.get_by_role("row").filter(has_text=OTHER)
    keys.use(row.get_by_role("link", name="Revoke"))
    assert 200 == status_of(url)
    keys.use(page.get_by_role("button", name="Revoke"), "Space")
    page.wait_for_url("**/ui/links*")
    expect(page.get_by_role("row").filter(has_text=made["id"])).to_have_count(0)
    eventually(lambda: 403 == status_of(url))


def test_names_are_searched_by_keyboard(browsing: Browsing, small: Library) -> None:
    """The names that contain a text are left, in the order that the reader chooses."""
    page = browsing.page(small.url, small.tokens["read"])
    keys = Keyboard(page)
    keys.write(page.get_by_label("Search for a part of a name"), "minilm")
    keys.reach(page.get_by_label("Order", exact=True))
    page.keyboard.press("ArrowDown")
    keys.use(page.get_by_role("button", name="Show"))
    page.wait_for_url("**q=minilm*")
    rows = page.locator("tbody th")
    expect(rows).to_have_text([OWNED, FOLDER, MODEL])
    expect(page.get_by_label("Search for a part of a name")).to_have_value("minilm")
    expect(page.get_by_label("Order", exact=True)).to_have_value("newest")


def test_pages_work_without_a_script(browsing: Browsing, small: Library, tmp_path: Path) -> None:
    """Somebody signs in, lists, compares, downloads, tags and removes in a browser that runs no scripts."""
    page = browsing.page(small.url, has_script=False)
    sign_in(page, small.tokens["delete"])
    page.get_by_role("link", name=MODEL).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("table.compared tbody td.changed")).to_have_count(2)
    page.goto(f"/ui/file?id={small.new_folder}")
    page.get_by_role("link", name="vocabulary", exact=True).click()
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download words.txt").click()
    assert "words.txt" == begun.value.suggested_filename
    page.goto(f"/ui/tensors?id={small.new_folder}&path={WEIGHTS}")
    expect(page.get_by_role("rowheader", name="adapter.weight")).to_be_visible()
    page.goto(f"/ui/label?name={MODEL}")
    page.get_by_label("Name of the tag or branch").fill("v2")
    page.get_by_role("button", name="Set").click()
    expect(done(page)).to_be_visible()
    assert "v2" in labels_of(small)
    page.goto(f"/ui/file?id={small.other}")
    page.get_by_role("link", name="Remove this version").click()
    page.get_by_role("button", name="Remove this version").click()
    expect(done(page)).to_be_visible()
    assert OTHER not in names_in(small)
    page.goto("/ui/upload")
    expect(page.get_by_role("main")).to_contain_text("filestore push")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_session_ends_while_a_page_is_open(browsing: Browsing, small: Library) -> None:
    """The token is removed: the next click leads to the first page, and nothing is removed by the form that was open."""
    page = browsing.page(small.url, small.tokens["delete"])
    page.goto(f"/ui/remove?id={small.other}")
    tokens = small.home.result("token", "ls", "--root", small.server.root)["tokens"]
    (token,) = [each for each in tokens if each["label"] == "for delete"]
    small.home.result("token", "rm", token["digest"], "--root", small.server.root)
    other = browsing.page(small.url)

    def is_known() -> bool:
        """Whether somebody can still sign in with the token."""
        other.goto("/")
        other.get_by_label("Token").fill(small.tokens["delete"])
        other.get_by_role("button", name="Sign in").click()
        other.wait_for_load_state()
        if other.get_by_role("button", name="Sign out").count():
            other.get_by_role("button", name="Sign out").click()
            other.get_by_label("Token").wait_for()
            return True
        return False

    browsing.allow("status of 401")
    eventually(lambda: not is_known())
    page.get_by_role("button", name="Remove this version").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert OTHER in names_in(small)
