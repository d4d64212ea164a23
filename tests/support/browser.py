"""Chromium for tests of the pages of a server. It notices what no page may do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, WebError, expect, sync_playwright

from tests.support.daemons import program

WIDTHS = (400, 1280)
"""The widths of a view for which pages are made, in pixels: a phone, and a screen."""
HEIGHT = 800
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SECONDS = 60
"""How long a test waits for what a page should show, on a machine that does much else."""
_SERIOUS = ("serious", "critical")
_ARGUMENTS = (
    "--headless",
    # The tests of a container run as root, where Chromium's own sandbox cannot start.
    "--no-sandbox",
    # Some containers have 64 MB of shared memory.
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Chromium itself asks its maker for nothing, and could not: no name has an address.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


_PICTURES = os.environ.get("FILESTORE_TEST_SCREENSHOTS")
_KEYS = """() => {
    const all = 'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]';
    const isReachable = (each) => !each.disabled && each.tabIndex >= 0 && each.checkVisibility({visibilityProperty: true})
        && (each.type !== 'radio' || each.checked);
    window.missing = new Map([...document.querySelectorAll(all)].filter(isReachable).map((each) => [each, each.outerHTML]));
    window.unseen = [];
    document.addEventListener('focusin', () => {
        const style = getComputedStyle(document.activeElement);
        const isSeen = (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== 'none';
        if (!isSeen && document.activeElement.id !== 'content') {
            window.unseen.push(document.activeElement.outerHTML);
        }
        window.missing.delete(document.activeElement);
    });
    return window.missing.size;
}"""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium until the end of the block. Skip the test if it is missing. In CI that is a failure.

    Playwright's event loop counts as running in this thread until then, so no test in between may run another one.
    """
    path = program("chromium")
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Browsing:
    """The contexts of one test: each is a user with cookies of their own. It notes what no page may do."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._allowed: list[re.Pattern[str]] = []
        self._contexts: list[BrowserContext] = []
        self._faults: list[str] = []
        self.requests: list[str] = []
        """The URLs of all requests."""

    def context(
        self, url: str, *, width: int = WIDTHS[-1], scheme: Scheme = "light", has_script: bool = True, locale: str = "en-GB"
    ) -> BrowserContext:
        """Make a context whose pages may ask the server at `url`, and no other one. A view is `width` pixels wide."""
        context = self._browser.new_context(
            base_url=url,
            viewport={"width": width, "height": HEIGHT},
            color_scheme=scheme,
            java_script_enabled=has_script,
            locale=locale,
            timezone_id="UTC",
            # A colour on its way to another one is neither.
            reduced_motion="reduce",
        )
        context.set_default_timeout(SECONDS * 1000)
        context.on("request", lambda request: self._note_request(request, url))
        context.on("console", self._note_message)
        context.on("weberror", self._note_error)
        context.on("dialog", self._note_dialog)
        self._contexts.append(context)
        return context

    def page(
        self,
        url: str,
        token: str | None = None,
        *,
        width: int = WIDTHS[-1],
        scheme: Scheme = "light",
        has_script: bool = True,
        locale: str = "en-GB",
    ) -> Page:
        """Open a page in a context of its own (see `context`), and sign in if there is a token."""
        context = self.context(url, width=width, scheme=scheme, has_script=has_script, locale=locale)
        page = context.new_page()
        if token is not None:
            sign_in(page, token)
        return page

    def allow(self, pattern: str) -> None:
        """Allow messages of the console that contain the pattern, such as that of a status that the test asks for."""
        self._allowed.append(re.compile(pattern))

    def faults(self) -> list[str]:
        """Return what pages did until now that no page may do."""
        return [fault for fault in self._faults if not any(pattern.search(fault) for pattern in self._allowed)]

    def close(self) -> None:
        """Close all contexts, and with them their pages."""
        while self._contexts:
            self._contexts.pop().close()

    def _note_request(self, request: Request, url: str) -> None:
        self.requests.append(request.url)
        asked = urlsplit(request.url)
        # What `blob:` and `data:` name is in the browser.
        if asked.scheme not in {"blob", "data"} and (asked.scheme, asked.netloc) != urlsplit(url)[:2]:
            self._faults.append(f"request to another origin: {request.url}")

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning", "assert"}:
            self._faults.append(f"console: {message.text} ({message.location['url']})")

    def _note_dialog(self, dialog: Dialog) -> None:
        if dialog.type == "beforeunload":
            # The answer is yes, so that the page is left as the test wants.
            self._faults.append("dialog: beforeunload")
            dialog.accept()
            return
        self._faults.append(f"dialog: {dialog.message}")
        if dialog.type == "confirm":
            dialog.accept()
        else:
            dialog.dismiss()

    def _note_error(self, error: WebError) -> None:
        self._faults.append(f"exception in a script: {error.error}")


def sign_in(page: Page, token: str) -> None:
    """Sign in at the server's first page, as a user does."""
    page.goto("/")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ui/names")


def check_accessible(page: Page) -> None:
    """Fail if axe finds a serious or critical fault on a page, in any of the widths and colour schemes; or if it is too wide."""
    before = page.viewport_size
    page.evaluate(Axe().axe_script)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            found = page.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"]
            faults = [
                f"{fault['id']}: {node['html']}: {node['failureSummary']}"
                for fault in found
                if fault["impact"] in _SERIOUS
                for node in fault["nodes"]
            ]
            assert not faults, "\n".join([f"{page.url}, {width} pixels, {scheme}", *faults])
            check_width(page)
    page.emulate_media(color_scheme="light")
    if before is not None:
        page.set_viewport_size(before)


def check_width(page: Page) -> None:
    """Fail if a page is wider than its view, so that lines would be read by scrolling to the side."""
    wide, view = page.evaluate("() => [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert wide <= view, f"{page.url} has {wide} pixels in a view of {view}: {_widest(page)}"


def take_pictures(page: Page, name: str) -> None:
    """Keep what a page looks like in each width and colour scheme, if somebody wants to look at it."""
    if _PICTURES is None:
        return
    for scheme in SCHEMES:
        for width in WIDTHS:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": HEIGHT})
            page.screenshot(path=Path(_PICTURES) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": WIDTHS[-1], "height": HEIGHT})


def check_keys(page: Page) -> None:
    """Fail unless the key TAB leads to each control of a page, and each shows that it has the focus."""
    count = page.evaluate(_KEYS)
    for _ in range(count + 5):
        page.keyboard.press("Tab")
    assert [] == page.evaluate("() => [...window.missing.values()]"), "TAB leads to none of these"
    assert [] == page.evaluate("() => window.unseen"), "nothing shows that these have the focus"


def _widest(page: Page) -> list[str]:
    """The beginnings of the innermost elements that end to the right of the view."""
    found: list[str] = page.evaluate(
        """() => [...document.body.querySelectorAll('*')]
            .filter((each) => each.getBoundingClientRect().right > window.innerWidth && each.childElementCount === 0)
            .slice(0, 5).map((each) => each.outerHTML.slice(0, 200))"""
    )
    return found
