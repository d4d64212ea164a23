"""What the other tests of this folder use: the servers, and a browser that notices what no page may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from playwright.sync_api import Browser

from tests.support.browser import WIDTHS, Browsing, check_accessible, check_width
from tests.support.library import ADDED, FOLDER, MODEL, NAMES, OTHER, OWNED, PREFIX, WEIGHTS, HostileLibrary, Library

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'"


@contextmanager
def _page(body: str) -> Iterator[str]:
    """Serve one page on a free port until the end of the block. Its inline scripts and styles are refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"<!doctype html><html lang=en><title>a page</title><main><h1>a page</h1>{body}</main>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the name that the library has
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<img alt='a picture' src='http://other.example/a.png'>", "request to another origin: http://other.example/a.png"),
        ("<script>document.title = 'changed'</script>", "console: Executing inline script violates"),
        ("<p style='color: red'>red</p>", "console: Applying inline style violates"),
        ("<img alt='a picture' src='http://127.0.0.1:1/a.png'>", "request to another origin: http://127.0.0.1:1/"),
    ],
)
def test_what_no_page_may_do_is_noticed(browser: Browser, body: str, fault: str) -> None:
    """A request to another origin and a violation of the policy are faults, unless a test allows them."""
    browsing = Browsing(browser)
    try:
        with _page(body) as url:
            browsing.page(url).goto("/")
            assert [fault] == [each[: len(fault)] for each in browsing.faults() if each.startswith(fault)]
            browsing.allow(".")
            assert [] == browsing.faults()
    finally:
        browsing.close()


def test_a_dialog_and_an_exception_are_noticed(browser: Browser) -> None:
    """A page that says something by `alert`, or whose script fails, fails the test."""
    browsing = Browsing(browser)
    try:
        with _page("<p>text</p>") as url:
            page = browsing.page(url)
            page.goto("/")
            page.evaluate("() => { alert('a message'); setTimeout(() => { throw new Error('a fault'); }); }")
            with page.expect_event("pageerror"):
                page.evaluate("() => { setTimeout(() => { throw new Error('a fault'); }); }")
        assert "dialog: a message" in browsing.faults()
        assert any("exception in a script: a fault" in fault for fault in browsing.faults())
    finally:
        browsing.close()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<label>Name <input></label>", None),
        ("<input>", "label"),
        ("<p><button></button></p>", "button-name"),
        ("<p>" + "x" * 400 + "</p>", "pixels in a view of 400"),
    ],
)
def test_what_is_not_accessible_is_noticed(browsing: Browsing, body: str, fault: str | None) -> None:
    """A control without a name, and a page that is wider than a phone, fail the check; a good page passes."""
    with _page(body) as url:
        page = browsing.page(url)
        page.goto("/")
        if fault is None:
            check_accessible(page)
        else:
            with pytest.raises(AssertionError, match=fault):
                check_accessible(page)


def test_the_width_of_a_view(browsing: Browsing) -> None:
    """A page has the width that it was asked for, and a wide table fails the check at 400 pixels only."""
    with _page("<table><tr>" + "<td>a_long_word" * 8 + "</table>") as url:
        for width in WIDTHS:
            page = browsing.page(url, width=width)
            page.goto("/")
            assert width == page.evaluate("() => window.innerWidth")
            if width == WIDTHS[0]:
                with pytest.raises(AssertionError, match="a_long_word"):
                    check_width(page)
            else:
                check_width(page)


@pytest.mark.slow
def test_the_library_is_what_its_tests_expect(library: Library) -> None:
    """The large library has 90 MB in two versions that differ in some tensors, as a file and as a directory."""
    (file,) = library.home.result("diff", f"{MODEL}@v1", MODEL, environ=library.environ)["files"]
    by_status = [each["status"] for each in file["tensors"]]
    assert (90_868_376, 1, 2, 1) == (file["old_size"], *map(by_status.count, ("added", "changed", "removed")))
    assert ADDED in {each["name"] for each in file["tensors"] if each["status"] == "added"}
    assert file["bytes_new"] < file["new_size"] / 10
    (changed,) = library.home.result("diff", library.old_folder, library.new_folder, environ=library.environ)["files"]
    assert WEIGHTS == changed["path"]
    environ = library.environ | {"FILESTORE_TOKEN": library.tokens["prefix"]}
    seen = {each["name"] for each in library.home.result("ls", environ=environ)["files"]}
    assert {MODEL, FOLDER} == seen
    assert not OTHER.startswith(PREFIX)


@pytest.mark.slow
def test_a_small_library_is_a_server_of_its_own(small: Library, small_model: Library) -> None:
    """What a test removes from the copy is only gone there, and the ids and tokens are the same."""
    environ = small.environ | {"FILESTORE_TOKEN": small.tokens["delete"]}
    small.home.result("rm", small.other, environ=environ)
    assert small.other == small_model.other
    assert small.server.root != small_model.server.root
    names = {each["name"] for each in small.home.result("ls", environ=environ)["files"]}
    assert {MODEL, FOLDER, OWNED.partition("/")[2]} == names


@pytest.mark.slow
def test_hostile_names_are_stored_as_they_are(hostile: HostileLibrary) -> None:
    """The server of hostile names has each of them, so what a page shows is that page's own doing."""
    listed = {each["name"]: each["id"] for each in hostile.home.result("ls", environ=hostile.environ)["files"]}
    assert hostile.names.items() <= listed.items()
    assert set(NAMES) == set(hostile.names)
