"""The page about space, at a real server: its figures are those of the API, and a token sees only its names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.quotas import Quota
from filestore.core.scopes import Scope
from filestore.http.server.routes.page.rendering import _rendered
from filestore.http.wire import API
from filestore.repository.protocol import Usage, usage_from_json
from tests.support.changed_tokens import changed
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.pages import page_text, sign_in
from tests.support.server import RunningServer, running_server

EMPTY_TOKEN = "a-token-of-an-empty-namespace"
PREFIX_TOKEN = "a-token-of-one-prefix"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with 60 names that share chunks, a removed one, and a quota."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        chunks = [octets(number, 1000) for number in range(70)]
        assert 200 == server.put([encoded(chunk) for chunk in chunks]).status
        for number in range(60):
            assert 201 == server.commit(manifest(chunks[number : number + 5]).encoded, name=f"name-{number:02}").status
        removed = server.commit(manifest(chunks[64:70]).encoded, name="removed").json
        assert 200 == server.ask("DELETE", f"{API}/files/{removed['id']}").status
        for token, namespace, prefix in ((EMPTY_TOKEN, "empty", ""), (PREFIX_TOKEN, DEFAULT_NAMESPACE, "name-0")):
            given = {"namespace": namespace, "label": "", "scope": Scope.READ, "prefix": prefix}
            changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))  # type: ignore[arg-type] # noqa: B023  # called at once
        quota = Quota(stored_size=1_000_000, name_count=60)
        changed(server, lambda _, transaction: transaction.set_quota(DEFAULT_NAMESPACE, quota))
        yield server


def figures(page: bytes) -> list[int]:
    """Return the sizes on a page, in bytes, in their order."""
    return [int(value) for value in re.findall(r'<data class="size" value="(\d+)">', page.decode())]


def usage_of(server: RunningServer) -> Usage:
    """Return what the API says."""
    return usage_from_json(server.ask("GET", f"{API}/usage").json)


def test_the_figures_are_those_of_the_api(server: RunningServer) -> None:
    """What is stored, what sharing and encoding leave, and what a collection can remove."""
    reply = sign_in(server).get("/ui/space")
    usage = usage_of(server)
    assert 200 == reply.status
    assert (60, 300_000, 64_000) == (usage.record_count, usage.logical_size, usage.distinct_size)
    sizes = figures(reply.body)
    assert [usage.logical_size, usage.distinct_size, usage.needed_size] == sizes[:3]
    for part in (usage.manifests_size, usage.free_size, usage.waiting_size):
        assert part in sizes
    text = page_text(reply)
    assert "all 60 versions" in text
    assert f"Saved {(usage.logical_size - usage.needed_size) / 1000:.0f} kB" in text
    assert "Names 60 60 100 % 100 %" in text


def test_the_curve_ends_at_what_is_stored_now(server: RunningServer) -> None:
    """The table has the same: what was added in all its rows is what is stored."""
    page = sign_in(server).get("/ui/space").body.decode()
    assert '<svg role="img" aria-labelledby="growth-title-1 growth-text-1"' in page
    # The content is 4.7 times as large as the rest, which has a chart of its own.
    assert ["logical", "distinct", "stored", "distinct", "stored"] == re.findall(r'<path class="([a-z]+)"', page)
    table = page.partition('aria-label="Growth by minute"')[2].partition("</table>")[0]
    rows = [figures(row.encode()) for row in table.partition("<tbody>")[2].split("<tr>")[1:]]
    usage = usage_of(server)
    assert usage.logical_size == sum(row[0] for row in rows)
    assert usage.needed_size == sum(row[1] for row in rows)
    assert [usage.logical_size, usage.distinct_size, usage.needed_size] == rows[0][2:5]


def test_names_are_paged(server: RunningServer) -> None:
    """Those that take the most come first, each with a link."""
    visitor = sign_in(server)
    found = [
        name
        for number in (1, 2)
        for name in re.findall(r'href="/ui/name\?name=([^"]+)"', visitor.get("/ui/space", page=number).body.decode())
    ]
    assert [name.name for name in usage_of(server).names] == found


def test_an_empty_namespace_has_nothing(server: RunningServer) -> None:
    """It shows neither a curve nor anything of another namespace."""
    reply = sign_in(server, EMPTY_TOKEN).get("/ui/space")
    text = page_text(reply)
    assert "Nothing is stored here yet." in text
    assert b"<svg" not in reply.body
    assert b"name-" not in reply.body


def test_a_token_sees_only_its_names(server: RunningServer) -> None:
    """The curve too is that of these names."""
    reply = sign_in(server, PREFIX_TOKEN).get("/ui/space")
    page = reply.body.decode()
    assert {f"name-0{number}" for number in range(10)} == set(re.findall(r"name-\d\d", page))
    assert [50_000, 14_000] == figures(reply.body)[:2]
    assert "Free to remove" not in page


def test_a_page_that_waits_says_so() -> None:
    """A large store takes minutes to measure. The page is loaded again, and has a link for that."""
    assert "asks again in a moment" in page_text(_rendered("space.html", {"viewer": None, "path": "/ui/space", "usage": None}))
    name = "<img src=x onerror=alert(1)>"
    record = type("Record", (), {"full_name": name, "id": "file_1"})
    page = _rendered("chunks.html", {"viewer": None, "path": "/ui/chunks", "record": record, "report": None})
    assert "asks again in a moment" in page_text(page)
    assert name in unescape(page.decode())
    assert b"<img" not in page
