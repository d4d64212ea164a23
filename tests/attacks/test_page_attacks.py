"""Somebody attacks the pages of a server and their sessions: another site, a reader, a thief of cookies, an uploader of pages."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from email.message import Message
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys, path_signature
from filestore.http.server.app import ROUTES
from filestore.http.server.route import Route
from filestore.http.server.routes.page.routes import PAGE_ROUTES
from filestore.http.server.routes.page.session import session_access
from filestore.http.wire import API
from tests.support.changed_tokens import answered, changed, signing_keys
from tests.support.library import OWNED, HostileLibrary, hostile_library
from tests.support.pages import SAME_ORIGIN, page_text, post_form, sign_in
from tests.support.server import SECONDS, Reply, RunningServer, eventually, reply, running_server

pytestmark = pytest.mark.slow

PAGES = [route.path for route in PAGE_ROUTES if route.method == "GET"]
UNSAFE = [route for route in (*PAGE_ROUTES, *ROUTES) if route.method != "GET" and route.access is session_access]
"""What a session may change."""
ACTIVE = ("text/html", "xml", "svg", "javascript", "ecmascript", "pdf", "multipart")
"""What of a content type has a browser run or show content as a page of this server."""
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
WELCOME = "/?next="
HOSTILE_VALUES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x00",
    "\N{PILE OF POO}" * 300,
    "-1",
    "9" * 30,
    "",
    "%",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> HostileLibrary:
    """What the server has."""
    with hostile_library(tmp_path_factory.mktemp("library")) as library:
        return library


@pytest.fixture(scope="module")
def server(library: HostileLibrary) -> Iterator[RunningServer]:
    """Two workers, which answer many wrong signatures as such."""
    with running_server(library.server.root, workers=2, guesses_limit=100_000, check=False) as server:
        yield server
        status, log = server.stop()
        assert 0 == status, log
        assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def keys(server: RunningServer) -> SigningKeys:
    """The keys that sign sessions. Anyone who can read them can read everything else too."""
    return signing_keys(server)


def filled(path: str, library: HostileLibrary) -> str:
    """The URL of a page, or the path of another route, with what it may need."""
    path = path.replace("{rest:.*}", "absent").replace("{upload_id}", "0" * 32).replace("{number}", "1")
    query = {"id": library.model, "old": library.old_model, "new": library.model, "name": "tensors.safetensors"}
    return f"{path}?{urlencode(query)}"


def as_form(library: HostileLibrary) -> dict[str, str]:
    """The fields of a form that any action of a page finds something in."""
    return {"id": library.model, "name": "tensors.safetensors", "label": "attacked", "revision": "main", "for": "1h"}


def state(library: HostileLibrary, server: RunningServer) -> dict[str, object]:
    """What other sites and readers may not change."""
    paths = ("files", "labels?name=tensors.safetensors", "links")
    found = {path: server.ask("GET", f"{API}/{path}", token=library.tokens["admin"]) for path in paths}
    assert {200} == {answer.status for answer in found.values()}
    return {path: [json.loads(line) for line in answer.body.splitlines()] for path, answer in found.items()}


def is_sent_away(answer: Reply) -> bool:
    """Whether a request was answered as one without a session."""
    return answer.status == 401 or (answer.status == 303 and answer.headers["Location"].startswith(("/?next=%2Fui%2F", "/")))


def check_page_headers(answer: Reply) -> None:
    """An answer for one viewer is kept by nobody, runs no code but ours, and is shown in no frame."""
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["Content-Security-Policy"].split(";"))
    assert "'none'" == policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"]
    assert {"'self'"} == {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src", "form-action")}
    assert not any(word in value for value in policy.values() for word in ("unsafe", "*", "data:", "http"))
    assert "no-store" == answer.headers["Cache-Control"]
    assert {"Cookie", "Authorization"} <= set(answer.headers["Vary"].replace(" ", "").split(","))
    assert ("nosniff", "DENY") == (answer.headers["X-Content-Type-Options"], answer.headers["X-Frame-Options"])
    assert answer.headers["Access-Control-Allow-Origin"] is None
    assert answer.headers["ETag"] is None


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_kept_by_a_proxy_or_framed(server: RunningServer, library: HostileLibrary, path: str) -> None:
    """Each page, also in the answer to HEAD, of an error and of a request without a session, says what a browser may do."""
    url = filled(path, library)
    visitor = sign_in(server, library.tokens["admin"])
    for answer in (visitor.get(url), server.ask("HEAD", url, headers=visitor.headers, token=None), visitor.get(path)):
        if "text/html" in answer.headers.get("Content-Type", "text/html"):
            check_page_headers(answer)
        else:
            assert answer.headers["Content-Disposition"].startswith("attachment"), path
            assert "private" in answer.headers["Cache-Control"] or "no-store" in answer.headers["Cache-Control"]
    without = server.ask("GET", url, headers={"Accept": "text/html"}, token=None)
    assert (303, True) == (without.status, without.headers["Location"].startswith(WELCOME))
    check_page_headers(without)
    # A validator of another answer does not make this one "not modified".
    conditional = server.ask("GET", url, headers=visitor.headers | {"If-None-Match": "*"}, token=None)
    assert 304 != conditional.status or path == "/ui/content"


@pytest.mark.parametrize("path", ["/", "/ui/login", "/ui/logout", "/ui/static/absent", "/ui", "/ui/", "//ui//names", "/ui/%00"])
def test_a_page_without_a_session_has_the_same_rules(server: RunningServer, path: str) -> None:
    """What no token is asked for is as safe."""
    for method in ("GET", "POST"):
        answer = server.ask(method, path, headers={"Accept": "text/html", **FORM}, token=None)
        if answer.status != 405 and "text/html" in answer.headers.get("Content-Type", ""):
            check_page_headers(answer)


@pytest.mark.parametrize("name", ["page.css", "page.js", "icon.svg"])
def test_a_file_of_the_pages_is_used_as_a_page(server: RunningServer, name: str) -> None:
    """It has a policy of its own that permits no script, and a cookie changes nothing of it."""
    plain = server.ask("GET", f"/ui/static/{name}", token=None)
    signed_in = server.ask("GET", f"/ui/static/{name}", headers=sign_in(server).headers, token=None)
    assert plain.body == signed_in.body
    for answer in (plain, signed_in):
        assert "script-src" not in answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert ("nosniff", None) == (answer.headers["X-Content-Type-Options"], answer.headers["Set-Cookie"])


@pytest.mark.parametrize(
    "path",
    [
        "../session.py",
        "..%2f..%2fsession.py",
        "%2e%2e/%2e%2e/session.py",
        "..%5c..%5csession.py",
        "....//session.py",
        "page.css%00.html",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "%252e%252e%252fsession.py",
        "page.css/",
        "page.css/../../session.py",
        "../templates/base.html",
        ".",
        "",
        "PAGE.CSS",
    ],
)
def test_a_path_leads_out_of_the_files_of_the_pages(server: RunningServer, path: str) -> None:
    """Only the names of these files exist."""
    answer = server.ask("GET", f"/ui/static/{path}", token=None)
    assert (True, False) == (answer.status in {303, 404, 400}, b"import" in answer.body or b"block content" in answer.body)


@pytest.mark.parametrize("route", UNSAFE, ids=lambda route: f"{route.method} {route.path}")
def test_another_site_sends_a_form(server: RunningServer, library: HostileLibrary, route: Route) -> None:
    """Nothing changes, whatever the browser says of where it comes from, if it does not say that a page of ours has sent it."""
    visitor = sign_in(server, library.tokens["admin"])
    before = state(library, server)
    other = f"http://127.0.0.1:{server.port + 1}"
    sent: list[dict[str, str]] = [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin, cross-site"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": server.url},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": other},
        {"Origin": f"{server.url}.evil.example"},
        {"Origin": f"http://evil.example/{server.url}"},
        {"Origin": server.url.replace("http://", "https://")},
        {"Origin": server.url.replace("http://", "http://evil@")},
        {"Referer": f"{server.url}/ui/names"},
        {"Origin": other, "X-Forwarded-Host": urlsplit(other).netloc, "Forwarded": f"host={urlsplit(other).netloc}"},
        {"Origin": "http://evil.example", "X-Forwarded-Host": "evil.example"},
        {"X-HTTP-Method-Override": "GET"},
    ]
    for headers in sent:
        answer = server.ask(
            *(route.method, filled(route.path, library).partition("?")[0], urlencode(as_form(library)).encode()),
            headers={**visitor.headers, **FORM, **headers},
            token=None,
        )
        assert 400 == answer.status, (headers, answer.body)
        assert "only a page of this server may send this" in answer.body.decode().lower()
    assert before == state(library, server)


def test_another_site_sends_two_headers(server: RunningServer, library: HostileLibrary) -> None:
    """Of two answers to the same question, none is believed."""
    visitor = sign_in(server, library.tokens["admin"])
    body = urlencode({"token": library.tokens["read"]}).encode()
    for pair in (("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-origin"), ("Origin: null", f"Origin: {server.url}")):
        with server.connection() as connection:
            lines = [
                "POST /ui/login HTTP/1.1",
                f"Host: {server.host}:{server.port}",
                f"Cookie: {visitor.cookie}",
                "Content-Type: application/x-www-form-urlencoded",
                f"Content-Length: {len(body)}",
                *pair,
                "",
                "",
            ]
            connection.sendall("\r\n".join(lines).encode() + body)
            answer = reply(connection)
        assert (400, None) == (answer.status, answer.headers["Set-Cookie"]), pair


@pytest.mark.parametrize("route", UNSAFE, ids=lambda route: f"{route.method} {route.path}")
def test_a_viewer_sends_what_the_token_does_not_permit(server: RunningServer, library: HostileLibrary, route: Route) -> None:
    """The scope decides, and not which buttons a page has."""
    before = state(library, server)
    lower = [scope for scope in Scope if scope < route.scope]
    for scope in lower:
        visitor = sign_in(server, library.tokens[str(scope)])
        path = filled(route.path, library).partition("?")[0]
        body = urlencode(as_form(library)).encode()
        answer = server.ask(route.method, path, body, headers={**visitor.headers, **FORM, **SAME_ORIGIN}, token=None)
        assert (403, True) == (answer.status, b"scope" in answer.body), answer.body
    assert before == state(library, server)
    assert lower, "whatever changes something needs more than the scope read"


def test_a_viewer_opens_the_pages_of_administrators(server: RunningServer, library: HostileLibrary) -> None:
    """Each page that needs a scope refuses those below it, and says nothing of what it has."""
    for route in PAGE_ROUTES:
        if route.method == "GET":
            for scope in (scope for scope in Scope if scope < route.scope):
                answer = sign_in(server, library.tokens[str(scope)]).get(filled(route.path, library))
                assert (403, True) == (answer.status, "scope" in page_text(answer)), route.path


@pytest.mark.parametrize("path", PAGES)
def test_a_token_with_a_prefix_sees_no_other_name(server: RunningServer, library: HostileLibrary, path: str) -> None:
    """What it may not see is answered as what does not exist, and no page has another name, id, author or link."""
    visitor = sign_in(server, library.tokens["prefix"])
    answer = visitor.get(filled(path, library))
    if answer.status == 200:
        text = answer.body.decode(errors="replace")
        hidden = (*library.names.values(), library.page, library.folder, *library.names)
        assert [] == [each for each in hidden if each in text]
    nothing = {name: f"file_{number:032}" for number, name in enumerate(("id", "old", "new"))}
    absent = visitor.get(f"{filled(path, library).partition('?')[0]}?{urlencode(nothing | {'name': 'absent'})}")
    given = {library.model, library.old_model, "tensors.safetensors", *nothing.values(), "absent"}
    assert (answer.status, told(answer, given)) == (absent.status, told(absent, given))


def told(answer: Reply, given: Iterable[str]) -> str:
    """What a page says, apart from what it was asked for and what differs for each request."""
    text = page_text(answer)
    for each in given:
        text = text.replace(each, "ASKED")
    return re.sub(r"\b[0-9a-f]{16}\b|\d{4}-\d\d-\d\d \d\d:\d\d", "CHANGING", text)


def test_a_cookie_is_changed(server: RunningServer, library: HostileLibrary) -> None:
    """A reader cannot become another viewer: each part is signed, also in another encoding of the same text."""
    reader = sign_in(server, library.tokens["read"])
    name, _, value = reader.cookie.partition("=")
    namespace, expires_at, signature, viewer = value.split(".")
    said = json.loads(base64.urlsafe_b64decode(viewer + "=" * (-len(viewer) % 4)))

    def encoded(**other: object) -> str:
        return base64.urlsafe_b64encode(json.dumps({**said, **other}).encode()).decode().rstrip("=")

    admin = sign_in(server, library.tokens["admin"]).cookie.partition("=")[2].split(".")
    forged = [
        f"{namespace}.{expires_at}.{signature}.{encoded(scope='admin')}",
        f"{namespace}.{expires_at}.{signature}.{encoded(scope='ADMIN')}",
        f"{namespace}.{expires_at}.{signature}.{encoded(until=None, id='')}",
        f"{namespace}.{expires_at}.{signature}.{viewer}=",
        f"{namespace}.{expires_at}.{signature}.{viewer}.{viewer}",
        f"{namespace}.{expires_at}.{signature}.{admin[3]}",
        f"{namespace}.{admin[1]}.{signature}.{admin[3]}",
        f"{namespace}.{expires_at}.{signature.upper()}.{viewer}",
        f"{namespace}.0{expires_at}.{signature}.{viewer}",
        f"{namespace}.+{expires_at}.{signature}.{viewer}",
        f"{namespace}.{expires_at}0.{signature}.{viewer}",
        f"{namespace}.inf.{signature}.{viewer}",
        f"{namespace}.{'9' * 4000}.{signature}.{viewer}",
        f"..{signature}.{viewer}",
        f"../../{namespace}.{expires_at}.{signature}.{viewer}",
        f"{namespace}%2e{expires_at}%2e{signature}%2e{viewer}",
        library.tokens["admin"],
        f"Bearer {library.tokens['admin']}",
        "\u00e9" * 40,
        '"',
    ]
    for cookie in forged:
        answer = server.ask("GET", "/ui/absent", headers={"Cookie": f"{name}={cookie}".encode().decode("latin-1")}, token=None)
        assert is_sent_away(answer), (cookie, answer.status, answer.body)
    assert 404 == reader.get("/ui/absent").status


def test_a_signed_url_is_used_as_a_session(server: RunningServer, library: HostileLibrary, keys: SigningKeys) -> None:
    """And the reverse. What is signed for one thing is worth nothing for another."""
    visitor = sign_in(server, library.tokens["admin"])
    name, _, value = visitor.cookie.partition("=")
    namespace, expires_at, signature, viewer = value.split(".")
    for path in (viewer, f"/{viewer}", "pipeline_files/x", "ui/names"):
        answer = server.ask("GET", f"/signed/{namespace}/{expires_at}/{signature}/{path}", token=None)
        assert answer.status in {403, 404}, path
    issuer = keys.issuer(token_digest(library.tokens["admin"]))
    for method in ("GET", "PUT", "POST", "session", ""):
        forged = path_signature(keys, method, viewer, namespace=namespace, expires_at=int(expires_at), issuer=issuer)
        answer = server.ask(
            "GET", "/ui/absent", headers={"Cookie": f"{name}={namespace}.{expires_at}.{forged}.{viewer}"}, token=None
        )
        assert is_sent_away(answer), method
    # A session does not count as a token, wherever it is put.
    for headers in ({"Authorization": f"Bearer {value}"}, {"X-Api-Key": value}, {"Authorization": f"Cookie {visitor.cookie}"}):
        assert 401 == server.ask("GET", f"{API}/files", headers=headers, token=None).status
    assert is_sent_away(server.ask("GET", f"/ui/absent?{name}={quote(value)}&token={library.tokens['admin']}", token=None))


def test_a_session_is_over(server: RunningServer, library: HostileLibrary, keys: SigningKeys) -> None:
    """A signature of ours does not make a session last longer than it says, or serve a token that does not exist."""
    name, _, value = sign_in(server, library.tokens["admin"]).cookie.partition("=")
    namespace, expires_at, _, viewer = value.split(".")
    issuer = keys.issuer(token_digest(library.tokens["admin"]))
    made = [
        (expires_at, issuer, 404),
        ("1700000000", issuer, 303),
        (expires_at, keys.issuer(token_digest("a-token-that-nobody-has")), 303),
    ]
    for end, who, status in made:
        signature = path_signature(keys, "SESSION", viewer, namespace=namespace, expires_at=int(end), issuer=who)
        cookie = f"{name}={namespace}.{end}.{signature}.{viewer}"
        answer = server.ask("GET", "/ui/absent", headers={"Cookie": cookie, "Accept": "text/html"}, token=None)
        assert status == answer.status, (end, who)
        if status == 303:
            assert answer.headers["Location"].startswith(WELCOME)
            assert 200 == server.ask("GET", "/", headers={"Cookie": cookie}, token=None).status


def test_a_session_goes_on_after_its_token_was_removed(server: RunningServer, library: HostileLibrary) -> None:
    """Each process refuses it, for pages and for uploads. Sessions of other tokens go on."""
    stolen = "a-token-whose-session-was-stolen"
    digest = token_digest(stolen)
    changed(server, lambda _, change: change.add_token(digest, namespace=DEFAULT_NAMESPACE, label=""))
    eventually(lambda: {303} == {answered(lambda: post_form(server, "/ui/login", {"token": stolen})) for _ in range(16)})
    visitor, friend = sign_in(server, stolen), sign_in(server, library.tokens["read"])
    eventually(lambda: {404} == {answered(lambda: visitor.get("/ui/absent")) for _ in range(16)})
    changed(server, lambda _, change: change.remove_token(digest))
    eventually(lambda: {303} == {answered(lambda: visitor.get("/ui/absent")) for _ in range(16)})
    begun = server.ask(
        *("POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "a"}'),
        headers=visitor.headers | SAME_ORIGIN,
        token=None,
    )
    assert 400 < begun.status < 404
    assert 404 == friend.get("/ui/absent").status


def test_a_token_permits_less_than_when_its_session_began(server: RunningServer) -> None:
    """A session permits at most what its token permits now."""
    token = "a-token-that-permits-less-now"
    digest = token_digest(token)

    def permit(scope: Scope, prefix: str = "") -> None:
        changed(
            server, lambda _, change: change.add_token(digest, namespace=DEFAULT_NAMESPACE, label="", scope=scope, prefix=prefix)
        )

    permit(Scope.ADMIN)
    eventually(lambda: {303} == {answered(lambda: post_form(server, "/ui/login", {"token": token})) for _ in range(16)})
    visitor = sign_in(server, token)
    begin = ("POST", "/v3/pipeline_files/initiate-multipart-upload", b'{"name": "a"}')

    def statuses() -> set[int]:
        # A request is cut if the server notices the change meanwhile.
        return {answered(lambda: server.ask(*begin, headers=visitor.headers | SAME_ORIGIN, token=None)) for _ in range(16)}

    eventually(lambda: {201} == statuses())
    permit(Scope.READ)
    eventually(lambda: {403} == statuses())
    permit(Scope.ADMIN, prefix="other")
    eventually(lambda: {303} == {answered(lambda: visitor.get("/ui/absent")) for _ in range(16)})


def test_a_session_is_given_to_a_victim(server: RunningServer, library: HostileLibrary) -> None:
    """A cookie that was there before the sign-in is replaced, and a link makes no session."""
    attacker = sign_in(server, library.tokens["read"])
    answer = post_form(
        server, "/ui/login", {"token": library.tokens["admin"]}, headers={**SAME_ORIGIN, "Cookie": attacker.cookie}
    )
    given = answer.headers["Set-Cookie"].partition(";")[0]
    assert (303, True) == (answer.status, given != attacker.cookie)
    assert '"admin"' in json_of(given)
    failed = post_form(server, "/ui/login", {"token": "wrong"}, headers={**SAME_ORIGIN, "Cookie": attacker.cookie})
    assert (401, None) == (failed.status, failed.headers["Set-Cookie"])
    name, _, value = attacker.cookie.partition("=")
    for path in (f"/?{name}={value}", f"/ui/names?{name}={value}", f"/?token={library.tokens['admin']}"):
        shown = server.ask("GET", path, token=None)
        assert (None, False) == (shown.headers["Set-Cookie"], library.tokens["admin"] in shown.body.decode())
    # A form in a URL would be in histories and logs.
    assert 303 == server.ask("GET", f"/ui/login?token={library.tokens['admin']}", token=None).status


def test_tokens_are_guessed_in_the_form(tmp_path: Path) -> None:
    """Wrong tokens of the form, of cookies and of the header have one count. The right token passes, and no token is logged."""
    with running_server(tmp_path / "root", guesses_limit=6, check=False) as server:
        value = f"default.9999999999.{'0' * 64}.e30"
        for number in range(3):
            assert 401 == post_form(server, "/ui/login", {"token": f"guess-{number}"}).status
            cookie = {"Cookie": f"filestore-{server.port}={value}", "Accept": "text/html"}
            assert 303 == server.ask("GET", "/ui/absent", headers=cookie, token=None).status
        limited = post_form(server, "/ui/login", {"token": "guess-4"})
        assert (429, "60", None) == (limited.status, limited.headers["Retry-After"], limited.headers["Set-Cookie"])
        assert "Too many wrong tokens" in page_text(limited)
        check_page_headers(limited)
        assert 429 == server.ask("GET", "/ui/absent", headers=cookie, token=None).status
        assert 429 == server.ask("GET", f"{API}/repository", token="guess-5").status
        assert 404 == sign_in(server).get("/ui/absent").status
        status, log = server.stop()
    assert 0 == status
    assert "guess-" not in log
    assert server.token not in log


@pytest.mark.parametrize(
    ("body", "content_type", "statuses"),
    [
        (b"token=" + b"a" * (65 << 10), "application/x-www-form-urlencoded", {413}),
        (b"&".join([b"a=b"] * 101), "application/x-www-form-urlencoded", {400}),
        (b"token=%ff%fe", "application/x-www-form-urlencoded", {400, 401}),
        (b"token=\xff\xfe", "application/x-www-form-urlencoded", {400}),
        (b"token=a%00b%0d%0aX: y", "application/x-www-form-urlencoded", {401}),
        (b"token", "application/x-www-form-urlencoded", {401}),
        (b"", "application/x-www-form-urlencoded", {401}),
        (b"&&&===&", "application/x-www-form-urlencoded", {401}),
        (b'{"token": "a"}', "application/json", {400}),
        (b"token=a", "text/plain", {400}),
        (b'--b\r\nContent-Disposition: form-data; name="token"\r\n\r\na\r\n--b--', "multipart/form-data; boundary=b", {400}),
        (b"token=a", "", {400}),
    ],
)
def test_a_form_is_hostile(server: RunningServer, body: bytes, content_type: str, statuses: set[int]) -> None:
    """It is refused before it takes memory, and begins no session; the page of the error has nothing of it."""
    answer = server.ask(
        "POST", "/ui/login", body, headers={"Content-Type": content_type, "Accept": "text/html", **SAME_ORIGIN}, token=None
    )
    assert (True, None) == (answer.status in statuses, answer.headers["Set-Cookie"]), (answer.status, answer.body)
    assert "X" not in answer.headers
    assert len(answer.body) < 10_000


def test_a_form_never_ends(tmp_path: Path) -> None:
    """A large one without a length is refused at its limit, and a slow one when it stalls. Others are answered meanwhile."""
    with running_server(tmp_path / "root", stall_seconds=1, check=False) as server:
        form = ("Content-Type: application/x-www-form-urlencoded", "Sec-Fetch-Site: same-origin")
        with server.begin("POST", "/ui/login", *form, "Transfer-Encoding: chunked") as connection:
            for _ in range(16):
                connection.sendall(b"1000\r\n" + b"a" * 0x1000 + b"\r\n")
            # One byte more than the limit, and none after it: an answer to bytes that are not read may be lost.
            connection.sendall(b"1\r\na")
            assert b" 413 " in first_line(connection)
        with server.begin("POST", "/ui/login", *form, "Content-Length: 1000", body=b"token=") as connection:
            assert 200 == server.ask("GET", "/", token=None).status
            assert b"" == first_line(connection), "it was cut"


@pytest.mark.parametrize(
    "following",
    [
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https:evil.example",
        "https://evil.example/ui/names",
        "javascript:alert(1)",
        "data:text/html,a",
        "/%5cevil.example",
        "/\t/evil.example",
        "/ui/\\..\\evil.example",
        "/ui/names\r\nSet-Cookie: a=b",
        "/ui/names\n\n<script>",
        "/ui",
        "ui/names",
        " /ui/names",
        "/ui/logout" + "\x00",
        "/ui/\u2028",
        "/uix/names",
        "",
    ],
)
def test_a_link_leads_to_another_place_after_the_sign_in(server: RunningServer, library: HostileLibrary, following: str) -> None:
    """Both the form and the link of somebody who is signed in lead only to a page of this server."""
    visitor = sign_in(server, library.tokens["read"])
    for answer in (
        post_form(server, "/ui/login", {"token": library.tokens["read"], "next": following}),
        visitor.get("/", next=following),
    ):
        assert (303, "/ui/names") == (answer.status, answer.headers["Location"])
        assert 1 >= len(answer.headers.get_all("Set-Cookie", []))
    shown = server.ask("GET", f"/?next={quote(following, safe='')}", token=None)
    assert "evil.example" not in shown.body.decode()


@pytest.mark.parametrize(
    "path", ["/ui/<script>alert(1)</script>", "/ui/%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E", "/ui/{{777*777}}"]
)
def test_a_path_is_shown_as_html(server: RunningServer, library: HostileLibrary, path: str) -> None:
    """No error page repeats what a link has."""
    answer = sign_in(server, library.tokens["read"]).get(path)
    assert (404, False) == (
        answer.status,
        b"<script>alert" in answer.body or b"onerror" in answer.body or b"603729" in answer.body,
    )


@pytest.mark.parametrize("path", PAGES)
def test_a_query_is_shown_as_html(server: RunningServer, library: HostileLibrary, path: str) -> None:
    """What a link asks a page for is shown as text, whatever it is, and never ends in a failure of the server."""
    visitor = sign_in(server, library.tokens["admin"])
    names = ("id", "name", "old", "new", "path", "q", "page", "after", "from", "sort", "days", "next", "kind", "label")
    found = {"id": library.model, "old": library.old_model, "new": library.model, "name": "tensors.safetensors"}
    queries = [dict.fromkeys(names, value) for value in (*HOSTILE_VALUES, *library.names)]
    queries += [found | {name: value} for name in names for value in HOSTILE_VALUES[1:3]]
    for query in queries:
        answer = visitor.get(f"{filled(path, library).partition('?')[0]}?{urlencode(query)}")
        assert answer.status < 500, (path, query, answer.body)
        if "text/html" in answer.headers.get("Content-Type", ""):
            check_escaped(answer)


def check_escaped(answer: Reply) -> None:
    """What users write is on a page as text only: it has no tag, handler or template of theirs."""
    text = answer.body.decode()
    assert not any(each in text for each in ("<script>", "<img", "<svg onload", "<i>", "' onmouseover=")), text
    page_text(answer)


def test_a_stored_page_is_shown_as_a_page_of_the_server(server: RunningServer, library: HostileLibrary) -> None:
    """HTML and SVG of users are octets that browsers save, whatever route, range or method gives them, and with any `Accept`."""
    visitor = sign_in(server, library.tokens["admin"])
    token = {"Authorization": f"Bearer {library.tokens['admin']}"}
    record = server.ask("GET", f"{API}/files/{library.page}", headers=token, token=None).json
    signed = server.ask("POST", f"{API}/files/{library.page}/sign", headers=token, token=None).json["path"]
    link = server.ask(
        *("POST", f"{API}/links", json.dumps({"id": library.page, "seconds": 600}).encode()), headers=token, token=None
    )
    paths: dict[str, Mapping[str, str]] = {
        f"/{record['path']}": token,
        f"/{signed}": {},
        f"/v3/pipeline_files/download/{library.page}": token,
        f"/ui/content?id={library.page}": visitor.headers,
        **{f"/ui/content?id={library.folder}&path={entry}": visitor.headers for entry in ("index.html", "picture.svg", "")},
        **{
            f"/{name}/{verb}/main/{entry}": token
            for name in (OWNED,)
            for verb in ("resolve", "raw")
            for entry in ("index.html", "picture.svg")
        },
    }
    if link.status == 201:
        paths[urlsplit(link.json["url"]).path] = {}
    counted = 0
    for path, headers in paths.items():
        for more in ({}, {"Accept": "text/html"}, {"Range": "bytes=0-20"}, {"Range": "bytes=999999-"}, {"If-None-Match": "*"}):
            for method in ("GET", "HEAD"):
                answer = server.ask(method, path, headers={**headers, **more}, token=None)
                kind = answer.headers.get("Content-Type", "application/octet-stream")
                if answer.status in {200, 206}:
                    counted += 1
                    assert "application/octet-stream" == kind.partition(";")[0], (path, kind)
                    assert answer.headers["Content-Disposition"].startswith("attachment"), path
                    assert "nosniff" == answer.headers["X-Content-Type-Options"], path
                elif not path.startswith("/ui/"):
                    assert not any(each in kind for each in ACTIVE), (path, answer.status, kind)
    assert counted >= 6 * len(paths) - 20, "most of these routes exist"


def test_a_name_adds_a_header_to_its_download(server: RunningServer, library: HostileLibrary) -> None:
    """The name is one quoted value, or one in percent-encoding, and clients read it as it is stored."""
    visitor = sign_in(server, library.tokens["read"])
    for name, id_ in library.names.items():
        answer = visitor.get("/ui/content", id=id_)
        if answer.status != 200:
            assert 404 == answer.status
            continue
        (header,) = answer.headers.get_all("Content-Disposition", [])
        assert header.isascii()
        assert not set("\r\n") & set(header)
        message = Message()
        message["Content-Disposition"] = header
        assert name == message.get_filename() or quote(name, safe="") in header
        assert "attachment" == message.get_content_disposition()


def json_of(cookie: str) -> str:
    """What a cookie says of its viewer."""
    text = cookie.rpartition(".")[2]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def first_line(connection: socket.socket) -> bytes:
    """The first line of an answer, also if the server then cuts the connection."""
    connection.settimeout(SECONDS)
    received = b""
    with suppress(ConnectionError):
        while b"\r\n" not in received and (piece := connection.recv(1 << 16)):
            received += piece
    return received.partition(b"\r\n")[0]
