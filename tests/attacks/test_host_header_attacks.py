"""Somebody sends a `Host`, or the headers of a proxy, to change the links of others or the view of its own address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from multidict import CIMultiDict

from filestore.http.server.origin import Origin, TrustedProxies
from filestore.http.wire import API
from tests.support.server import FORM, TOKEN, Reply, RunningServer, form, reply, running_server
from tests.support.uploads import PARTS, PartsUpload

EVIL = "evil.example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with default settings."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def asked(server: RunningServer, *hosts: bytes, version: str = "1.1") -> Reply:
    """Send a request with these `Host` headers."""
    with server.connection() as connection:
        lines = [f"GET {API}/repository HTTP/{version}".encode(), b"Authorization: Bearer " + TOKEN.encode()]
        connection.sendall(b"\r\n".join([*lines, *(b"Host: " + host for host in hosts), b"Connection: close", b"", b""]))
        return reply(connection)


@pytest.mark.parametrize(
    "hosts",
    [
        [b"a b"],
        [b"user:password@evil.example"],
        [b"evil.example/path"],
        [b"evil.example\\@good.example"],
        [b"evil.example?x"],
        [b"evil.example#x"],
        [b"<script>"],
        [b"a\tb"],
        [b"\x80\xff"],
        [b"evil.example:port"],
        [b"evil.example:123456"],
        [b"evil.example:65536"],
        [b"[1.2.3.4]"],
        [b"[:evil:]"],
        [b"[::1"],
        [b"a" * 256],
        [b"one.example", b"two.example"],
    ],
    ids=repr,
)
def test_an_absurd_host(server: RunningServer, hosts: list[bytes]) -> None:
    """It gets 400, and nothing of it is in the answer."""
    answer = asked(server, *hosts)
    assert 400 == answer.status
    assert b"evil" not in answer.body


@pytest.mark.parametrize(
    "host", [b"files.example.org", b"files.example.org:8080", b"10.0.0.1", b"[2001:db8::1]:80", b"a:65535", b"a_b", b""]
)
def test_ordinary_hosts(server: RunningServer, host: bytes) -> None:
    """Names, addresses, ports and an empty header are accepted, and so is HTTP/1.0 without the header."""
    assert 200 == asked(server, host).status
    assert 200 == asked(server, version="1.0").status


def test_the_links_of_others(server: RunningServer) -> None:
    """What a client calls the server is in no answer to another client."""
    hostile = {"Host": EVIL, "X-Forwarded-Host": EVIL, "X-Forwarded-Proto": "https", "Forwarded": f"host={EVIL};proto=https"}
    upload = PartsUpload(server, "x")
    part = json.dumps({**upload.ids, "part_num": 1}).encode()
    theirs = server.ask("POST", "/v4/files", form("x", b"y"), headers=FORM | hostile).json["url"]
    assert theirs.startswith(f"http://{EVIL}/signed/")
    server.ask("POST", f"{PARTS}/presigned-url", part, headers=hostile)
    ours = [
        server.ask("POST", "/v4/files", form("x", b"y"), headers=FORM).json["url"],
        server.ask("POST", f"{PARTS}/presigned-url", part).json["upload_url"],
    ]
    assert all(url.startswith(f"{server.url}/signed/") for url in ours)


@pytest.mark.slow
def test_the_headers_of_a_stranger_who_is_not_a_proxy(tmp_path: Path) -> None:
    """With a public URL, links begin with it, whatever a request says, also through a trusted proxy."""
    public_url = "https://files.example.org/store"
    with running_server(tmp_path / "root", public_url=public_url, trusted_proxies="127.0.0.1") as server:
        headers = FORM | {"Host": EVIL, "X-Forwarded-Host": EVIL, "X-Forwarded-Proto": "http"}
        url = server.ask("POST", "/v4/files", form("x", b"y"), headers=headers).json["url"]
        assert url.startswith(f"{public_url}/signed/")
        path = url.removeprefix(public_url)
        assert (200, b"y") == server.ask("GET", path, token=None)[::2]


class _Transport:
    """The transport of a request from an address."""

    def __init__(self, peer: str) -> None:
        self._names: dict[str, Any] = {"peername": (peer, 1), "sockname": ("10.0.0.9", 8080)}

    def get_extra_info(self, name: str) -> Any:
        return self._names[name]


class _Request:
    """What `Origin` looks at in a request."""

    scheme = "http"

    def __init__(self, peer: str, *headers: tuple[str, str]) -> None:
        self.headers = CIMultiDict(headers)
        self.transport = _Transport(peer)


def request(peer: str, *headers: tuple[str, str]) -> web.BaseRequest:
    """A request from an address, with these headers."""
    return cast("web.BaseRequest", _Request(peer, *headers))


PROXY = Origin(None, TrustedProxies(map(ip_network, ("10.0.0.0/8", "2001:db8::/32"))))


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("192.0.2.1", [("X-Forwarded-For", "198.51.100.1")], "192.0.2.1"),
        ("192.0.2.1", [("Forwarded", "for=198.51.100.1")], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("::ffff:10.0.0.1", [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "203.0.113.1, 198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "203.0.113.1"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1, 10.0.0.2, 10.0.0.3")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1, nonsense")], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1:1234")], "198.51.100.1"),
        ("10.0.0.1", [("Forwarded", 'for="[2001:db9::1]:80";proto=https, for=198.51.100.1')], "198.51.100.1"),
        ("10.0.0.1", [("Forwarded", 'for="[2001:db9::1]:80"')], "2001:db9::1"),
        ("10.0.0.1", [("Forwarded", "for=unknown")], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", ";;=,,")], "10.0.0.1"),
    ],
)
def test_who_a_client_says_to_be(peer: str, headers: list[tuple[str, str]], address: str) -> None:
    """Only a trusted proxy names a client, and only by an address; a client cannot put another one before it."""
    assert address == PROXY.client_address(request(peer, *headers))


@pytest.mark.parametrize(
    ("peer", "headers", "url"),
    [
        ("192.0.2.1", [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", EVIL)], "http://good.example"),
        ("10.0.0.1", [("X-Forwarded-Proto", "https")], "https://good.example"),
        ("10.0.0.1", [("X-Forwarded-Host", "files.example.org"), ("X-Forwarded-Proto", "https")], "https://files.example.org"),
        ("10.0.0.1", [("X-Forwarded-Host", "evil.example, files.example.org")], "http://files.example.org"),
        ("10.0.0.1", [("X-Forwarded-Host", "a b")], "http://good.example"),
        ("10.0.0.1", [("X-Forwarded-Host", "a:65536")], "http://good.example"),
        ("10.0.0.1", [("X-Forwarded-Proto", "javascript")], "http://good.example"),
        ("10.0.0.1", [("Forwarded", "proto=https;host=files.example.org")], "https://files.example.org"),
    ],
)
def test_what_a_client_calls_the_server(peer: str, headers: list[tuple[str, str]], url: str) -> None:
    """Only a trusted proxy says it in its own headers, and only a host and a scheme of the web."""
    assert url == PROXY.base_url(request(peer, ("Host", "good.example"), *headers))
    assert "https://x" == Origin("https://x", TrustedProxies()).base_url(request(peer, ("Host", "good.example"), *headers))
    assert "http://10.0.0.9:8080" == PROXY.base_url(request("192.0.2.1"))
