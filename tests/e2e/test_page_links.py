"""The page of links at a real server: who sees them, and how they are revoked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from filestore.http.wire import API
from tests.support.changed_tokens import changed
from tests.support.pages import page_text, sign_in
from tests.support.server import OTHER_TOKEN, RunningServer, eventually, running_server

TOKENS = {
    "reader": {"label": "a reader", "scope": Scope.READ},
    "team": {"label": "the team", "scope": Scope.DELETE, "prefix": "team/"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a file."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        for token, properties in TOKENS.items():
            changed(
                server,
                lambda _, transaction, token=token, properties=properties: transaction.add_token(  # type: ignore[misc]
                    token_digest(token), namespace="default", **properties
                ),
            )
        yield server


@pytest.fixture(scope="module")
def file_id(server: RunningServer) -> str:
    """A stored file whose name is hostile."""
    return str(server.upload("<img src=x onerror=alert(1)>.bin", b"content").json["id"])


def link_to(server: RunningServer, file_id: str) -> dict[str, str]:
    """Make a link."""
    made = server.ask("POST", f"{API}/links?file_id={file_id}&seconds=3600")
    assert 200 == made.status, made.body
    return dict(made.json)


def test_without_links_the_page_says_so(server: RunningServer) -> None:
    """Of another namespace there is none."""
    assert "There are no links." in page_text(sign_in(server, OTHER_TOKEN).get("/ui/links"))


def test_links_are_shown_without_their_urls(server: RunningServer, file_id: str) -> None:
    """Only those may revoke one whose scope permits it. Names are text."""
    link = link_to(server, file_id)
    page = sign_in(server).get("/ui/links")
    assert all(text in page_text(page) for text in ("<img src=x onerror=alert(1)>.bin", link["id"], "Revoke"))
    assert b"<img" not in page.body
    assert link["path"].rsplit("/", 3)[-1].encode() not in page.body
    assert f"/ui/file?id={file_id}" in page.body.decode()
    reading = sign_in(server, "reader")
    assert (True, False) == (link["id"] in page_text(reading.get("/ui/links")), "Revoke" in page_text(reading.get("/ui/links")))
    # A prefix hides the links to other names.
    assert "There are no links to a name that begins with team/ ." in page_text(sign_in(server, "team").get("/ui/links"))
    assert link["id"] not in page_text(sign_in(server, OTHER_TOKEN).get("/ui/links"))


def test_a_link_is_revoked_after_a_question(server: RunningServer, file_id: str) -> None:
    """The question changes nothing. The URL then leads to nothing."""
    link, visitor = link_to(server, file_id), sign_in(server)
    url = f"/{link['path']}"
    question = visitor.get("/ui/unlink", id=link["id"])
    assert (200, True) == (question.status, "Revoke this link?" in page_text(question))
    assert '<form class="inline" method="post" action="/ui/unlink">' in question.body.decode()
    assert f'<input type="hidden" name="id" value="{link["id"]}">' in question.body.decode()
    assert 200 == server.ask("GET", url, token=None).status
    revoked = visitor.post("/ui/unlink", {"id": link["id"]})
    assert (303, f"/ui/links?revoked={link['id']}") == (revoked.status, revoked.headers["Location"])
    eventually(lambda: server.ask("GET", url, token=None).status != 200)
    after = page_text(visitor.get(revoked.headers["Location"]))
    assert f"The link {link['id']} is revoked." in after
    assert 1 == after.count(link["id"])
    for again in (visitor.post("/ui/unlink", {"id": link["id"]}), visitor.get("/ui/unlink", id=link["id"])):
        assert 404 == again.status


def test_nobody_revokes_a_link_that_they_may_not(server: RunningServer, file_id: str) -> None:
    """A scope, a prefix, a namespace and a page of another site stand before it."""
    link = link_to(server, file_id)
    form = {"id": link["id"]}
    for token, status in (("reader", 403), ("team", 404), (OTHER_TOKEN, 404)):
        visitor = sign_in(server, token)
        assert (status, status) == (visitor.get("/ui/unlink", **form).status, visitor.post("/ui/unlink", form).status)
    assert 400 == sign_in(server).post("/ui/unlink", form, headers={"Sec-Fetch-Site": "cross-site"}).status
    assert 404 == sign_in(server).post("/ui/unlink").status
    assert 200 == server.ask("GET", f"/{link['path']}", token=None).status


def test_the_page_repeats_nothing_of_a_url(server: RunningServer) -> None:
    """Whoever makes a link to this page must not choose what it says."""
    page = sign_in(server).get("/ui/links", revoked="you won <b>a prize</b>")
    assert b"prize" not in page.body
