"""Fixtures of the tests that use the pages of a server in Chromium.

Playwright's event loop counts as running from the first test of a module that uses the browser to the last one. Such a module
has no asynchronous test and no asynchronous fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Browsing, running_browser
from tests.support.library import HostileLibrary, Library, hostile_library, large_library, served_copy, small_library


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one module. The next module may have asynchronous tests."""
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browsing(browser: Browser) -> Iterator[Browsing]:
    """The contexts of one test, in which no page may ask another origin, or write an error to the console."""
    browsing = Browsing(browser)
    try:
        yield browsing
        faults = browsing.faults()
    finally:
        browsing.close()
    assert [] == faults


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """A server with the real model of 90 MB and its changed version. All tests of a worker share it: they change nothing."""
    with large_library(tmp_path_factory.mktemp("library")) as library:
        yield library


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileLibrary]:
    """A server on which all that users choose is hostile. All tests of a worker share it: they change nothing."""
    with hostile_library(tmp_path_factory.mktemp("hostile")) as library:
        yield library


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """What a server with a small model has. The server has stopped."""
    with small_library(tmp_path_factory.mktemp("small")) as library:
        return library


@pytest.fixture
def small(small_model: Library, tmp_path: Path) -> Iterator[Library]:
    """A server of its own with a small model, for a test that changes something."""
    with served_copy(small_model, tmp_path) as library:
        yield library
