"""What administrators do on the pages, and what these say while something moves."""

from __future__ import annotations

from contextlib import closing

import pytest
from playwright.sync_api import expect

from tests.support.browser import Browsing, check_accessible, check_keys, take_pictures
from tests.support.library import MODEL, Library
from tests.support.server import FORM, RunningServer, form

pytestmark = pytest.mark.slow


def test_a_link_is_revoked_by_the_keyboard(browsing: Browsing, small: Library) -> None:
    """The first ENTER only leads to a question. Its answer is announced."""
    page = browsing.page(small.url, small.tokens["delete"])
    page.goto("/ui/links")
    row = page.get_by_role("row").filter(has_text=small.link)
    expect(row).to_contain_text(MODEL)
    row.get_by_role("link", name="Revoke the link").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Revoke this link?")
    take_pictures(page, "unlink-asked")
    page.get_by_role("button", name="Revoke the link").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(f"The link {small.link} is revoked.")
    expect(page.get_by_text("There are no links.")).to_be_visible()
    take_pictures(page, "links-revoked")
    check_accessible(page)
    check_keys(page)


def test_transfers_in_progress_are_accessible(browsing: Browsing, small: Library) -> None:
    """Also where the page loads itself again, which it does only for readers who ask. They can stop it."""
    body = form("model-with-a-long-name-" + "n" * 150 + ".bin", bytes(300_000))
    server = RunningServer(small.url, small.tokens["write"], small.server.root, small.server.process)
    head = (f"Content-Type: {FORM['Content-Type']}", f"Content-Length: {len(body)}")
    with closing(server.begin("POST", "/v3/pipeline_files", *head, body=body[:200_000])):
        begun = server.ask(
            "POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "a-%s.bin"}' % (b"x" * 150), token=server.token
        )
        assert 201 == begun.status
        page = browsing.page(small.url, small.tokens["admin"])
        page.goto("/ui/transfers")
        page.get_by_role("link", name="Load again every 5 seconds").click()
        expect(page.get_by_role("cell", name="Upload", exact=True)).to_be_visible()
        page.get_by_role("link", name="Stop").click()
        expect(page.get_by_role("link", name="Load again every 5 seconds")).to_be_visible()
        expect(page.get_by_role("cell", name="Upload", exact=True)).to_be_visible()
        take_pictures(page, "transfers-moving")
        check_accessible(page)
        check_keys(page)


def test_last_results_are_accessible(browsing: Browsing, small: Library) -> None:
    """With damage and with a quota, whose share is a picture with a text too."""
    home, root = small.home, small.server.root
    assert 0 == home.run("quota", "set", "--stored", "1GB", "--root", root).returncode
    assert 0 == home.run("gc", "--root", root).returncode
    frame = next(path for path in root.glob("chunks/default/**/*") if path.is_file())
    frame.write_bytes(bytes(frame.stat().st_size))
    assert 1 == home.run("check", "--read-data", "--root", root).returncode
    page = browsing.page(small.url, small.tokens["admin"])
    page.goto("/ui/admin")
    expect(page.get_by_text("1 place is damaged")).to_be_visible()
    expect(page.get_by_role("cell", name="of 1.00 GB")).to_be_visible()
    expect(page.get_by_role("meter")).to_have_accessible_name("Share of the disk that is used")
    take_pictures(page, "server-results")
    check_accessible(page)
    check_keys(page)
