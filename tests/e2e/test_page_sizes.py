"""Whoever stores something may try to make pages about it so large that a server has no memory for others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from html import unescape
from io import BytesIO
from urllib.parse import parse_qs, quote, urlsplit
from zipfile import ZipFile

import pytest

from filestore.backends import open_backend
from filestore.core.commits import AUTHOR_LIMIT, MESSAGE_LIMIT, NewCommit
from filestore.core.digest import manifest_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.http.server.routes.page.file import STEPS_LIMIT, _breadcrumb
from filestore.http.server.routes.page.measurements import PAGE_SIZE
from filestore.http.server.routes.page.versions import PAGE_COUNT as VERSIONS
from filestore.repository.local import LocalRepository
from tests.support.frames import encoded, manifest
from tests.support.pages import page_text, sign_in
from tests.support.server import RunningServer, eventually, running_server
from tests.support.uploads import PartsUpload

COUNT = 600
LONG = "/".join(["\N{CYRILLIC SMALL LETTER ZHE}" * 100] * 18)
"""A path of folders that takes almost all that a path in a directory may take."""
PAGE_LIMIT = 2 << 20
"""Bytes of a page that lists something."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with nothing at first."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder / "root", audit_log=str(folder / "audit.log")) as server:
        yield server


def store(server: RunningServer, name: str, changed: bytes) -> str:
    """Store a directory of many files with long paths, and return its id. Each file has `changed` in it."""
    made = BytesIO()
    with ZipFile(made, "w") as archive:
        for number in range(COUNT):
            archive.writestr(f"{LONG}/{number:04}.safetensors", changed)
    upload = PartsUpload(server, name)
    answer = upload.finish([upload.put(1, made.getvalue())], kind="directory")
    assert 201 == answer.status, answer.body
    return str(answer.json["id"])


@pytest.mark.slow
def test_a_folder_of_long_paths_is_shown_in_small_pages(server: RunningServer) -> None:
    """All of it can be reached all the same."""
    file_id, visitor = store(server, "deep.zip", b"x"), sign_in(server)
    after: dict[str, str] = {}
    seen: list[str] = []
    while True:
        page = visitor.get("/ui/file", id=file_id, path=LONG, **after)
        assert (200, True) == (page.status, len(page.body) < PAGE_LIMIT)
        seen += re.findall(r'aria-label="Download ([^"]*)"', page.body.decode())
        following = re.search(r'<a href="([^"]*)" rel="next">', page.body.decode())
        if following is None:
            break
        after = {"after": parse_qs(urlsplit(unescape(following[1])).query)["after"][0]}
    assert [f"{number:04}.safetensors" for number in range(COUNT)] == seen


@pytest.mark.slow
def test_a_comparison_of_long_paths_is_a_small_page(server: RunningServer) -> None:
    """A path that cannot be shown as a whole is cut."""
    old, new = store(server, "old.zip", b"old"), store(server, "new.zip", b"new")
    page = sign_in(server).get("/ui/compare", old=old, new=new)
    assert (200, True) == (page.status, len(page.body) < PAGE_LIMIT)
    assert f"{COUNT} changed" in page_text(page)


def test_the_way_to_a_path_through_many_folders_is_short() -> None:
    """A path may lead through the same folders again and again, by links."""
    path = "/".join(["a"] * 4000)
    steps = _breadcrumb(Record("file_" + "0" * 32, "d", manifest_digest(b""), 1, Kind.DIRECTORY, DEFAULT_NAMESPACE, 0, 0), path)
    assert 2 + STEPS_LIMIT == len(steps)
    assert sum(len(url or "") for _, url in steps) < PAGE_LIMIT
    assert [None] == [url for _, url in steps if url is None]
    # What is left out can be reached, one page after the other.
    assert steps[1][1] is not None
    assert steps[1][1].endswith(quote("/".join(["a"] * (4000 - STEPS_LIMIT)), safe=""))


@pytest.mark.slow
def test_a_form_writes_little_to_the_logs(server: RunningServer) -> None:
    """Its fields are in the audit log, where each line has to be read by somebody."""
    visitor, long = sign_in(server), "x" * 60_000
    forms: dict[str, dict[str, object]] = {
        "/ui/remove": {"id": long, "updated_at": 1},
        "/ui/unlabel": {"name": long, "label": "a"},
        "/ui/link": {"id": long, "seconds": 3600, "nonce": "0" * 32},
        "/ui/unlink": {"id": long},
    }
    for path, form in forms.items():
        answer = visitor.post(path, form)
        assert (True, True) == (answer.status in {400, 404}, len(answer.body) < 10_000), path
    actions = {"remove", "remove-label", "make-link", "revoke-link"}
    log = server.root.parent / "audit.log"
    # It is written a moment later.
    eventually(lambda: all(f'"{action}"' in log.read_text() for action in actions))
    assert max(map(len, log.read_text().splitlines())) < 10_000


@pytest.mark.slow
def test_the_versions_of_a_name_fit_into_a_page_that_comes_late(server: RunningServer) -> None:
    """Its size is announced before it is made, whatever is in messages, authors, labels and names."""
    name = '"' * 200

    async def store_versions() -> None:
        store, index = await open_backend(server.root)
        repository = LocalRepository(store, index, location="the server")
        for number in range(VERSIONS + 1):
            content = b"%d" % number
            await repository.put([encoded(content)])
            commit = NewCommit('"' * MESSAGE_LIMIT, author='"' * AUTHOR_LIMIT)
            await repository.commit(manifest([content]).encoded, name=name, commit=commit)
            for label in "abcde":
                await repository.set_label(name, f"{label * 200}-{number}")
        await repository.close()

    asyncio.run(store_versions())
    page = sign_in(server).get("/ui/name", name=name)
    assert 200 == page.status
    assert PAGE_SIZE // 3 < len(page.body) < PAGE_SIZE
