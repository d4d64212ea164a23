"""How a browser signs in at a real server, and what a session permits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.http.wire import API
from tests.support.pages import SAME_ORIGIN, page_text, post_form, sign_in
from tests.support.server import RunningServer, running_server

BEGIN = "/v3/pipeline_files/initiate-multipart-upload"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two processes."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2) as server:
        yield server


def test_without_a_token_the_page_says_only_what_the_server_is(server: RunningServer) -> None:
    """The printed URL shows a page. Every other page leads to it, and back."""
    first = server.ask("GET", "/", token=None)
    assert (200, "text/html; charset=utf-8") == (first.status, first.headers["Content-Type"])
    assert "A filestore server" in page_text(first)
    assert "default" not in first.body.decode(), "it names no namespace"
    sent_away = server.ask("GET", "/ui/names?q=a%20b", token=None, headers={"Accept": "text/html"})
    assert (303, "/?next=%2Fui%2Fnames%3Fq%3Da%2520b") == (sent_away.status, sent_away.headers["Location"])
    asked = server.ask("GET", sent_away.headers["Location"], token=None)
    assert 'name="next" value="/ui/names?q=a%20b"' in asked.body.decode()


def test_a_session_needs_the_token_once(server: RunningServer) -> None:
    """The cookie is hidden from scripts and from other sites, and does not have the token."""
    reply = post_form(server, "/ui/login", {"token": f" {server.token}\n", "next": "/ui/names?q=a"})
    assert (303, "/ui/names?q=a") == (reply.status, reply.headers["Location"])
    cookie = reply.headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=Strict"} == set(cookie.split("; ")[1:])
    assert server.token not in cookie
    visitor = sign_in(server)
    for _ in range(8):  # each of the processes accepts it
        assert (303, "/ui/names") == ((page := visitor.get("/")).status, page.headers["Location"])
    ended = visitor.post("/ui/logout")
    assert (303, "/") == (ended.status, ended.headers["Location"])
    assert re.search(r'=""; .*Max-Age=0', ended.headers["Set-Cookie"])


@pytest.mark.parametrize("following", ["//host", "/\\host", "https://host/", "/ui/\\host", "/native", "/ui/\nX: y", "/ui/\u202e"])
def test_signing_in_leads_to_no_other_place(server: RunningServer, following: str) -> None:
    """A link to this server must not lead to another one, after somebody has signed in."""
    reply = post_form(server, "/ui/login", {"token": server.token, "next": following})
    assert (303, "/ui/names") == (reply.status, reply.headers["Location"])


def test_a_password_for_a_proxy_does_not_hide_a_session(server: RunningServer) -> None:
    """Browsers send it with each request. A token in the header counts, and the session then does not."""
    visitor = sign_in(server)
    for given, status in (("Basic dXNlcjpwYXNzd29yZA==", 200), ("Basic", 200), ("Bearer wrong", 303), ("bearer wrong", 303)):
        headers = {**visitor.headers, "Authorization": given}
        assert status == server.ask("GET", "/ui/names", headers=headers, token=None).status, given
    # Nor is it a way around the question which page has sent a form.
    headers = {**visitor.headers, "Authorization": "Basic dXNlcjpwYXNzd29yZA==", "Sec-Fetch-Site": "cross-site"}
    assert 400 == server.ask("DELETE", "/v3/pipeline_files/uploads/" + "0" * 32, headers=headers, token=None).status


@pytest.mark.parametrize("host", ["xn--a", "a..b", "[::ffff:1.2.3.4]:1", "a_b.example"])
def test_a_session_begins_at_any_name_of_the_server(server: RunningServer, host: str) -> None:
    """A browser that says only the origin of a form may know the server by an unusual name."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert 303 == post_form(server, "/ui/login", {"token": server.token}, headers=headers).status
    headers["Origin"] = "http://[other"
    assert 400 == post_form(server, "/ui/login", {"token": server.token}, headers=headers).status


def test_the_first_page_and_the_sign_in_need_no_content(tmp_path: Path) -> None:
    """They are answered although the folders of all content are away, and so is the page that says that nothing is there."""
    with running_server(tmp_path / "root", check=False) as server:
        assert 201 == server.upload("a.bin", b"content").status
        for folder in ("chunks", "manifests"):
            (server.root / folder).rename(tmp_path / folder)
        assert 200 == server.ask("GET", "/", token=None).status
        visitor = sign_in(server)
        assert 303 == visitor.get("/").status
        assert 404 == visitor.get("/ui/nothing").status
        for folder in ("chunks", "manifests"):
            (tmp_path / folder).rename(server.root / folder)


@pytest.mark.parametrize("path", ["/ui/login", "/ui/logout"])
def test_the_address_of_a_form_leads_to_the_first_page(server: RunningServer, path: str) -> None:
    """After a wrong token the browser shows it, and somebody may load it again."""
    for headers in ({}, sign_in(server).headers):
        reply = server.ask("GET", path, headers=headers, token=None)
        assert (303, "/") == (reply.status, reply.headers["Location"])
    after = post_form(server, "/ui/login", {"token": server.token, "next": path})
    assert (303, "/ui/names") == (after.status, after.headers["Location"])


def test_a_wrong_token_is_told_in_one_sentence(server: RunningServer) -> None:
    """Nothing of it is repeated, and no session begins."""
    reply = post_form(server, "/ui/login", {"token": "<b>wrong"})
    assert (401, None) == (reply.status, reply.headers["Set-Cookie"])
    assert "This server does not know the token." in page_text(reply)
    assert b"wrong" not in reply.body.replace(b"wrong token", b"")


@pytest.mark.parametrize("path", ["/ui/login", "/ui/logout", BEGIN])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://other:1"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "OWN"},
    ],
    ids=str,
)
def test_other_sites_can_cause_nothing(server: RunningServer, path: str, headers: dict[str, str]) -> None:
    """A browser sends the cookie also for another port of the host, and says so."""
    sent = {name: server.url if value == "OWN" else value for name, value in headers.items()}
    reply = sign_in(server).post(path, {"token": server.token}, headers=sent)
    assert (400, None) == (reply.status, reply.headers["Set-Cookie"])
    assert "only a page of this server may send this" in reply.body.decode().lower()


@pytest.mark.parametrize("headers", [SAME_ORIGIN, {"Origin": "OWN"}], ids=str)
def test_a_script_of_a_page_uploads_with_the_session(server: RunningServer, headers: dict[str, str]) -> None:
    """Where a connection is not encrypted, browsers name only the origin."""
    sent = {name: server.url if value == "OWN" else value for name, value in headers.items()}
    cookie = {"Cookie": sign_in(server).cookie}
    begun = server.ask("POST", BEGIN, b'{"name": "a"}', headers=cookie | sent, token=None)
    assert 201 == begun.status, begun.body
    part = f"/v3/pipeline_files/uploads/{begun.json['upload_id']}/parts/1"
    assert 200 == server.ask("PUT", part, b"content", headers=cookie | sent, token=None).status


def test_a_session_is_for_pages_only(server: RunningServer) -> None:
    """The API asks for the token, but where the script of a page needs it."""
    visitor = sign_in(server)
    assert 401 == server.ask("GET", f"{API}/files", headers=visitor.headers, token=None).status
    assert 404 == server.ask("GET", f"{API}/files/find?name=absent", headers=visitor.headers, token=None).status


def test_a_changed_cookie_is_worth_nothing(server: RunningServer) -> None:
    """Each part of it is signed."""
    name, _, value = sign_in(server).cookie.partition("=")
    namespace, expires_at, signature, viewer = value.split(".")
    changed = [
        f"other.{expires_at}.{signature}.{viewer}",
        f"{namespace}.{int(expires_at) + 1}.{signature}.{viewer}",
        f"{namespace}.{expires_at}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}.{viewer}",
        f"{namespace}.{expires_at}.{signature}.{viewer[:-1]}",
        f"{namespace}.{expires_at}.{signature}.",
        "",
        "....",
    ]
    for cookie in changed:
        reply = server.ask("GET", "/ui/nothing", headers={"Cookie": f"{name}={cookie}", "Accept": "text/html"}, token=None)
        assert (303, "/?next=%2Fui%2Fnothing") == (reply.status, reply.headers["Location"]), cookie


@pytest.mark.parametrize("path", ["/ui/nothing?a=b&c", "//ui/nothing?a=b&c", "/", "///"])
def test_a_link_of_another_site_is_followed_with_the_session(server: RunningServer, path: str) -> None:
    """A browser does not send the cookie then. The page that it gets asks again, from this server."""
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
    page = server.ask("GET", path, headers=headers, token=None)
    own = "/" + path.lstrip("/").replace("&", "&amp;")
    assert (200, True) == (page.status, f'<meta http-equiv="refresh" content="0; url={own}">' in page.body.decode())
    assert b"refresh" not in server.ask("GET", path, headers=headers | {"Sec-Fetch-Site": "same-origin"}, token=None).body


def test_a_cookie_of_another_repository_is_removed(tmp_path: Path) -> None:
    """It would count as a wrong guess with each page, and after too many of them nobody could sign in."""
    with running_server(tmp_path / "root", check=False, guesses_limit=5) as server:
        name, _, value = sign_in(server).cookie.partition("=")
        headers = {"Cookie": f"{name}={value[:-80]}{80 * '0'}", "Accept": "text/html"}
        for _ in range(12):
            page = server.ask("GET", "/", headers=headers, token=None)
            assert (200, True) == (page.status, page.headers["Set-Cookie"].startswith(f'{name}=""; '))
        assert sign_in(server)


@pytest.mark.parametrize(("path", "leads_to"), [("/ui", "/"), ("/ui/link", "/ui/links")])
def test_other_addresses_lead_on(server: RunningServer, path: str, leads_to: str) -> None:
    """What a reader may type, or load again."""
    reply = sign_in(server).get(path)
    assert (303, leads_to) == (reply.status, reply.headers["Location"])


def test_a_link_that_ended_shows_a_page_to_a_browser(server: RunningServer) -> None:
    """It says why, and nothing about the token that made the link. A program gets the problem document."""
    record = server.upload("shared.bin", b"content").json
    path = "/" + server.ask("POST", f"{API}/files/{record['id']}/sign").json["path"]
    assert b"content" == server.ask("GET", path, headers={"Accept": "text/html"}, token=None).body
    ended = path.replace(path.split("/")[4], 64 * "0")
    for asked, status, text in ((ended, 403, "signature is not ours"), (path.replace("shared", "other"), 403, "not ours")):
        page = server.ask("GET", asked, headers={"Accept": "text/html,*/*"}, token=None)
        assert (status, "text/html; charset=utf-8") == (page.status, page.headers["Content-Type"])
        assert text in page_text(page)
        assert b"Sign out" not in page.body
        assert "url-refused" == server.ask("GET", asked, token=None).slug
    server.ask("DELETE", f"{API}/files/{record['id']}")
    gone = server.ask("GET", path, headers={"Accept": "text/html"}, token=None)
    assert (404, False) == (gone.status, b"Sign out" in gone.body)


def test_files_of_pages_are_kept_by_browsers(server: RunningServer) -> None:
    """Their URLs change with them."""
    first = server.ask("GET", "/", token=None).body.decode()
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        found = re.search(rf'"(/ui/static/{re.escape(name)}\?v=[0-9a-f]{{16}})"', first)
        assert found is not None
        answer = server.ask("GET", found[1], token=None)
        assert (200, f"{kind}; charset=utf-8") == (answer.status, answer.headers["Content-Type"])
        assert "public, max-age=31536000, immutable" == answer.headers["Cache-Control"]
        assert 304 == server.ask("GET", found[1], headers={"If-None-Match": answer.headers["ETag"]}, token=None).status
        assert "public, no-cache" == server.ask("GET", f"/ui/static/{name}", token=None).headers["Cache-Control"]
    for path in ("none.css", "../session.py", "%2e%2e/session.py", "..%2fsession.py", "/etc/passwd"):
        assert 404 == server.ask("GET", f"/ui/static/{path}", token=None).status
