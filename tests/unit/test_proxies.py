from __future__ import annotations

import asyncio
import os
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import ForeignAnswer, InvalidSetting, ProxyUnreachable
from filestore.system.proxies import parse_proxy, proxy_for
from tests.support.daemons import lasting_port
from tests.support.forwarding import running_forwarding
from tests.support.generator import octets
from tests.support.nginx import running_proxy
from tests.support.server import TOKEN, running_server

CERTIFICATE = Path(__file__).parents[1] / "support" / "localhost.pem"
FILESTORE = Path(sys.executable).with_name("filestore")
PROXY = "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "http://store.test", None),
        ({"HTTP_PROXY": PROXY}, "http://store.test", PROXY),
        ({"http_proxy": PROXY}, "http://store.test", PROXY),
        ({"HTTP_PROXY": "http://other.test", "http_proxy": PROXY}, "http://store.test", PROXY),
        ({"HTTP_PROXY": PROXY, "http_proxy": ""}, "http://store.test", None),
        ({"HTTP_PROXY": PROXY}, "https://store.test", None),
        ({"HTTPS_PROXY": PROXY}, "https://store.test", PROXY),
        ({"ALL_PROXY": PROXY}, "https://store.test", PROXY),
        ({"HTTP_PROXY": "proxy.test:3128"}, "http://store.test", PROXY),
        ({"HTTP_PROXY": PROXY}, "http://127.0.0.1:8080", PROXY),
        ({"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, "http://store.test", None),
        ({"http_proxy": PROXY, "REQUEST_METHOD": "GET"}, "http://store.test", PROXY),
    ],
)
def test_which_variable_names_the_proxy(environ: dict[str, str], url: str, expected: str | None) -> None:
    """The scheme's own variable before ALL_PROXY, lower case before upper case, an empty one for none, loopback included."""
    found = proxy_for(environ, url)

    assert expected == (found.url if found is not None else None)


@pytest.mark.parametrize(
    ("exempt", "url", "is_direct"),
    [
        ("*", "http://store.test", True),
        ("store.test", "http://store.test", True),
        ("other.test, STORE.test", "http://store.test", True),
        (".test", "http://store.test", True),
        ("test", "http://a.store.test", True),
        ("ore.test", "http://store.test", False),
        ("store.test:8080", "http://store.test:8080", True),
        ("store.test:8080", "http://store.test", False),
        ("store.test:80", "http://store.test", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("127.0.0.1", "http://127.0.0.1:8080", True),
        ("::1", "http://[::1]:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("[::1]:8080", "http://[::1]:8081", False),
        ("", "http://store.test", False),
        (",", "http://store.test", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_which_hosts_no_proxy_names(name: str, exempt: str, url: str, *, is_direct: bool) -> None:
    """NO_PROXY has hosts, domains with their subdomains, addresses and networks, each also with a port."""
    assert is_direct is (proxy_for({"HTTP_PROXY": PROXY, name: exempt}, url) is None)


@pytest.mark.parametrize(
    "text", ["socks5://u:secret@proxy.test", "https://u:secret@proxy.test", "http://u:secret@", "http://u:secret@h:x"]
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(text: str) -> None:
    """The error names the variable, and never the value."""
    with pytest.raises(InvalidSetting, match="HTTP_PROXY cannot be used: ") as raised:
        parse_proxy(text, source="HTTP_PROXY")

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "SOCKS5h://u:secret@127.0.0.1:1080", "socks4a://[::1"])
@pytest.mark.parametrize("url", ["http://store.test", "https://store.test"])
def test_all_proxy_of_another_protocol_is_ignored(name: str, value: str, url: str) -> None:
    """It is set for all programs of a machine, of which some use such a proxy: it does not keep this one from its servers."""
    assert None is proxy_for({name: value}, url)
    found = proxy_for({name: value, "HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY}, url)
    assert PROXY == (found.url if found is not None else None)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_socks_proxy_that_is_set_for_the_protocol_is_refused(name: str) -> None:
    """There must be no direct connection; the error names the variable, and says what to do."""
    with pytest.raises(InvalidSetting) as raised:
        proxy_for({name: "socks5h://u:secret@127.0.0.1:1080"}, "https://store.test")

    expected = (
        f"{name} cannot be used: its scheme is socks5h, and only a proxy that is reached by http:// can be used; "
        "name such a proxy (http://HOST:PORT), or name the host in NO_PROXY"
    )
    assert expected == str(raised.value)


@pytest.mark.parametrize("value", ["https://proxy.test", "http://proxy.test:x"])
def test_all_proxy_that_names_a_web_proxy_is_not_passed_by(value: str) -> None:
    """One that is meant for these servers and cannot be used is an error, and not a direct connection."""
    with pytest.raises(InvalidSetting, match="ALL_PROXY cannot be used: "):
        proxy_for({"ALL_PROXY": value}, "https://store.test")


@pytest.mark.slow
async def test_a_server_is_reached_in_spite_of_a_socks_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a tunnel has set ALL_PROXY for browsers and curl."""
    monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{lasting_port()}")
    with running_server(tmp_path / "root") as server:
        async with connect(server.url, token=TOKEN) as repository:
            assert await repository.identity()


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["http", "https"])
async def test_a_server_is_reached_through_the_proxy_of_the_environment(tmp_path: Path, plane: str) -> None:
    """Plain HTTP by whole URLs, TLS by CONNECT, which shows the proxy no token; the password of the URL is sent."""
    authorization = f"Basic {b64encode(b'me:p@ss').decode()}"
    port = lasting_port()
    source = tmp_path / "weights.bin"
    source.write_bytes(octets(5, 4_000_000))
    with running_server(tmp_path / "root") as server:
        block = f"""server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {CERTIFICATE}; ssl_certificate_key {CERTIFICATE};
            client_max_body_size 0; location / {{ proxy_pass {server.url}; }} }}"""
        url = server.url if plane == "http" else f"https://localhost:{port}"
        with running_proxy(tmp_path / "nginx", port, block):
            async with running_forwarding(authorization=authorization) as forwarding:
                environ = {
                    **os.environ,
                    "HOME": str(tmp_path),
                    "FILESTORE_TOKEN": TOKEN,
                    # Read once in a process, when TLS is first used.
                    "SSL_CERT_FILE": str(CERTIFICATE),
                    f"{plane}_proxy".upper(): f"http://me:p%40ss@127.0.0.1:{forwarding.port}",
                }
                push = await asyncio.create_subprocess_exec(
                    FILESTORE, "push", source, "--url", url, "--quiet", env=environ, stderr=asyncio.subprocess.PIPE
                )
                _, errors = await push.communicate()
                assert (0, b"") == (push.returncode, errors)

    assert forwarding.asked
    if plane == "http":
        assert {url} == {line.split()[1][: len(url)] for line, _ in forwarding.asked}
    else:
        assert {f"CONNECT localhost:{port} HTTP/1.1"} == {line for line, _ in forwarding.asked}
        assert [] == [headers for _, headers in forwarding.asked if "authorization" in headers]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_wants_a_password_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """407 is the proxy's answer: the error names the proxy, the variable, and how its URL has a password."""
    async with running_forwarding(authorization="Basic other") as forwarding:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{forwarding.port}")
        async with connect(f"{scheme}://store.test", token=TOKEN) as repository:
            with pytest.raises(ForeignAnswer) as raised:
                await repository.identity()

    assert 407 == raised.value.status_code
    assert "'proxy-of-tests': it is a proxy that wants a user name and a password" in str(raised.value)
    assert f"went through the proxy http://127.0.0.1:{forwarding.port}, which {scheme}_proxy names" in str(raised.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """The error names the proxy and the variable, and not the server alone."""
    port = lasting_port()
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")
    async with connect(f"{scheme}://store.test", token=TOKEN) as repository:
        with pytest.raises(ProxyUnreachable, match=rf"the proxy http://127\.0\.0\.1:{port}, which ALL_PROXY names, gave no"):
            await repository.identity()


@pytest.mark.slow
async def test_an_argument_counts_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty text, a program uses no proxy."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{lasting_port()}")
    with running_server(tmp_path / "root") as server:
        async with connect(server.url, token=TOKEN, proxy="") as repository:
            assert [] == await repository.missing([])
            assert await repository.identity()
