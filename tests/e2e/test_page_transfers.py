"""The page of transfers at a real server of two processes: what moves now, and which uploads are not finished."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from tests.support.changed_tokens import changed
from tests.support.generator import octets
from tests.support.pages import Visitor, page_text, sign_in
from tests.support.server import FORM, OTHER_TOKEN, RunningServer, eventually, form, running_server
from tests.support.uploads import PartsUpload

HOSTILE = "<img src=x onerror=alert(1)>'\"&.bin"
LOOKS = 12
"""How often the page is asked for, so that both processes answer: one is missed once in 2**11 runs."""
TOKENS = {
    "reader": {"label": "a reader", "scope": Scope.READ},
    "team": {"label": "<b>the team</b>", "scope": Scope.ADMIN, "prefix": "team-"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two processes."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2) as server:
        for token, properties in TOKENS.items():
            changed(
                server,
                lambda _, transaction, token=token, properties=properties: transaction.add_token(  # type: ignore[misc]
                    token_digest(token), namespace="default", **properties
                ),
            )
        assert 201 == server.upload("large.bin", octets(1, 20_000_000)).status
        yield server


def pages(visitor: Visitor, **query: object) -> list[str]:
    """What the page says when each of the processes has answered."""
    answers = [visitor.get("/ui/transfers", **query) for _ in range(LOOKS)]
    assert {200} == {answer.status for answer in answers}
    return [page_text(answer) for answer in answers]


def all_say(visitor: Visitor, *words: str) -> bool:
    """Return whether all processes say these words."""
    return all(all(word in page for word in words) for page in pages(visitor))


def uploading(server: RunningServer, *, token: str = "") -> socket.socket:
    """Begin a form that sends less than it has announced."""
    body = form("unfinished.bin", bytes(300_000))
    return server._replace(token=token or server.token).begin(
        "POST",
        "/v3/pipeline_files",
        f"Content-Type: {FORM['Content-Type']}",
        f"Content-Length: {len(body)}",
        body=body[:200_000],
    )


def test_nothing_moves_at_first(server: RunningServer) -> None:
    """The page says so, and does not load itself again."""
    visitor = sign_in(server)
    eventually(lambda: all_say(visitor, "Nothing is being sent or received.", "No upload in parts waits for more parts."))
    assert "Refresh" not in visitor.get("/ui/transfers").headers


def test_the_page_loads_again_only_if_its_reader_asks(server: RunningServer) -> None:
    """A page that changes by itself hinders people who read slowly (WCAG 2.2, 2.2.1 and 2.2.2)."""
    visitor = sign_in(server)
    page = visitor.get("/ui/transfers", refresh=5)
    assert "5" == page.headers["Refresh"]
    assert "This page loads again every 5 seconds. Stop" in page_text(page)
    for other in ("", "1", "0", "5; url=//host", "on"):
        assert "Refresh" not in visitor.get("/ui/transfers", refresh=other).headers


def test_each_process_shows_what_all_receive(server: RunningServer) -> None:
    """With the token, and with the bytes that have arrived. It ends with the connection."""
    administrator, reader = sign_in(server), sign_in(server, "reader")
    with closing(uploading(server, token="reader")) as refused:
        assert b" 403 " in refused.recv(100)
    with closing(uploading(server)):
        eventually(lambda: all_say(administrator, "Upload", "default", token_digest(server.token).hex()[:16]))
        eventually(lambda: all("200 kB" in page for page in pages(administrator)))
        # A reader of the same namespace sees it too.
        eventually(lambda: all_say(reader, "In progress Work File Token Moved Since Upload"))
        assert "Nothing" in page_text(sign_in(server, OTHER_TOKEN).get("/ui/transfers"))
        assert not any("Upload not known yet" in page for page in pages(sign_in(server, "team")))
    eventually(lambda: all_say(administrator, "Nothing is being sent or received."))


def test_a_download_is_shown_by_its_name(server: RunningServer) -> None:
    """A client that reads slowly is one too."""
    administrator = sign_in(server)
    (stored,) = server.ask("GET", "/native/v1/files").json["files"]
    with closing(server.begin("GET", f"/{stored['path']}")) as connection:
        connection.recv(10)
        eventually(lambda: all_say(administrator, "Download", "large.bin"))
    eventually(lambda: all_say(administrator, "Nothing is being sent or received."))


def test_unfinished_uploads_are_shown_to_their_namespace(server: RunningServer) -> None:
    """Names are text, whatever they are. A token with a prefix sees the names that begin so."""
    mine, other = PartsUpload(server, HOSTILE), PartsUpload(server, "others.bin", token=OTHER_TOKEN)
    theirs = PartsUpload(server, "team-model.bin")
    mine.put(1, b"x" * 123_000)
    administrator, stranger, team = sign_in(server), sign_in(server, OTHER_TOKEN), sign_in(server, "team")
    page = administrator.get("/ui/transfers")
    text = page_text(page)
    for words in (f"{HOSTILE} default 1 123 kB", "others.bin other 0 0 B", mine.id[:8]):
        assert words in text
    assert b"<img" not in page.body
    seen = page_text(stranger.get("/ui/transfers"))
    assert ("others.bin" in seen, HOSTILE in seen, "team-" in seen) == (True, False, False)
    seen = page_text(team.get("/ui/transfers"))
    assert ("others.bin" in seen, HOSTILE in seen, "team-model.bin" in seen) == (False, False, True)
    assert b"<b>the team" not in team.get("/ui/transfers").body
    for upload in (mine, theirs, other):
        assert upload.folder.is_dir()


def test_a_process_that_is_killed_moves_nothing(tmp_path: Path) -> None:
    """The one that takes its place begins without transfers."""
    with running_server(tmp_path / "root", workers=2, check=False) as server:
        visitor = sign_in(server)
        with closing(uploading(server)):
            eventually(lambda: all_say(visitor, "In progress Work"))
            for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        eventually(lambda: _says_nothing(visitor))


def _says_nothing(visitor: Visitor) -> bool:
    try:
        return all_say(visitor, "Nothing is being sent or received.")
    except OSError:  # no process has the port yet
        return False
