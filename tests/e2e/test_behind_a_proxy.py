"""A server behind the real nginx: what a client says where nginx answers, and the example of docs/behind-a-proxy.md.

The example is docs/deploy/nginx.conf.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.references import Reference
from filestore.errors import ForeignAnswer, NotFound
from filestore.format.codec import Codec
from filestore.http import wire
from filestore.http.client.foreign import SETTINGS_OF_A_PROXY
from filestore.http.client.repository import RemoteRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.daemons import lasting_port
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.nginx import running_proxy
from tests.support.server import TOKEN, RunningServer, running_server
from tests.support.tls import trusting

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/behind-a-proxy.md").read_text()
FILESTORE = Path(sys.executable).with_name("filestore")
CERTIFICATE = REPOSITORY / "tests/support/localhost.pem"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server to which nginx passes requests."""
    with running_server(tmp_path / "root") as running:
        yield running


def example() -> str:
    """The configuration that the page offers to copy."""
    return (REPOSITORY / "docs/deploy/nginx.conf").read_text()


def replaced(text: str, old: str, new: str) -> str:
    """`text` with one place changed, which must be there."""
    assert old in text
    return text.replace(old, new)


async def pushed(url: str, size: int) -> str:
    """Put a batch of `size` bytes, and return the sentence of the error, if there is one."""
    async with connect(url, token=TOKEN) as repository:
        try:
            await repository.put([encoded(octets(7, size), codec=Codec.RAW)])
        except ForeignAnswer as error:
            return str(error)
        return ""


@pytest.mark.slow
def test_a_413_of_nginx_names_nginx_the_size_and_the_settings(tmp_path: Path, server: RunningServer) -> None:
    """With its defaults, nginx refuses a batch; the error names nginx, the size, and the settings."""
    port = lasting_port()
    block = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {server.url}; }} }}"
    with running_proxy(tmp_path / "nginx", port, block):
        told = asyncio.run(pushed(f"http://127.0.0.1:{port}", 2_000_000))

    assert re.match(
        rf"http://127\.0\.0\.1:{port} answered 413, and this answer was not made by filestore but by a server that calls itself"
        r" 'nginx/[0-9.]+[^']*': it does not take a request of 20[0-9]{5} bytes, and filestore sends up to ",
        told,
    ), told
    assert f"{wire.BATCH_LIMIT} bytes in one; if it is nginx, set {SETTINGS_OF_A_PROXY}" in told


@pytest.mark.parametrize(
    ("rule", "status", "advice"),
    [
        ("return 308 https://elsewhere.test$request_uri;", 308, "it redirects to 'https://elsewhere.test', and a redirect"),
        ("return 404;", 404, "it does not pass this path on to filestore"),
        ("return 401;", 401, "it refuses this client before filestore sees the request"),
        ("return 502;", 502, "it had no answer from filestore in time"),
        ("default_type text/html; return 200 '<html>Log in</html>';", 200, "check the URL and its port"),
    ],
    ids=["308", "404", "401", "502", "page"],
)
async def test_an_answer_of_another_server_is_told_from_one_of_filestore(
    tmp_path: Path, rule: str, status: int, advice: str
) -> None:
    """The error names the server that answered, and never says that a token or a file is wrong."""
    port = lasting_port()
    with running_proxy(tmp_path / "nginx", port, f"server {{ listen 127.0.0.1:{port}; location / {{ {rule} }} }}"):
        repository = RemoteRepository(f"http://127.0.0.1:{port}", token=TOKEN, retry_seconds=0.1, first_pause_seconds=0.001)
        with pytest.raises(ForeignAnswer) as raised:
            await repository.identity()
        await repository.close()

    assert status == raised.value.status_code
    assert "by a server that calls itself 'nginx/" in str(raised.value)
    assert advice in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_compresses_what_it_can_changes_nothing(tmp_path: Path, server: RunningServer, scheme: str) -> None:
    """A client does not ask for compressed answers, so such a proxy sends it plain ones."""
    port = lasting_port()
    tls = f"ssl; ssl_certificate {CERTIFICATE}; ssl_certificate_key {CERTIFICATE}" if scheme == "https" else ""
    rules = f"proxy_pass {server.url}; gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;"
    with running_proxy(tmp_path / "nginx", port, f"server {{ listen 127.0.0.1:{port} {tls}; location / {{ {rules} }} }}"):
        repository = RemoteRepository(f"{scheme}://localhost:{port}", token=TOKEN)
        if scheme == "https":
            trusting(repository)
        try:
            assert "default" == (await repository.identity()).namespace
        finally:
            await repository.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_sends_answers_in_chunks_changes_nothing(tmp_path: Path, server: RunningServer, scheme: str) -> None:
    """A proxy that may change what it passes on cannot announce a length. Documents, problems and batches arrive all the same."""
    port = lasting_port()
    tls = f"ssl; ssl_certificate {CERTIFICATE}; ssl_certificate_key {CERTIFICATE}" if scheme == "https" else ""
    rules = f"proxy_pass {server.url}; client_max_body_size 0; sub_filter_types *; sub_filter no-such-text-{'x' * 50} y;"
    source, target = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(octets(1, 12 << 20))
    with running_proxy(tmp_path / "nginx", port, f"server {{ listen 127.0.0.1:{port} {tls}; location / {{ {rules} }} }}"):
        repository = RemoteRepository(f"{scheme}://localhost:{port}", token=TOKEN)
        if scheme == "https":
            trusting(repository)
        try:
            result = await push(repository, source)
            with pytest.raises(NotFound):
                await repository.record(Reference(name="b.bin"))
            assert result.record == await repository.record(Reference(name="a.bin"))
            await fetch(repository, "a.bin", target=target)
        finally:
            await repository.close()
        url = f"{scheme}://localhost:{port}{wire.API}/repository"
        head = curl("--dump-header", "-", "--header", f"Authorization: Bearer {TOKEN}", url)
    assert b"transfer-encoding: chunked" in head.lower()
    assert source.read_bytes() == target.read_bytes()


@pytest.mark.slow
def test_the_example_of_the_page_takes_pushes_over_tls(tmp_path: Path, server: RunningServer) -> None:
    """The configuration of the page, with this machine's port and certificate, takes and gives a file of many batches."""
    port = lasting_port()
    block = replaced(example(), "listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    block = replaced(block, "http://127.0.0.1:8080", server.url)
    for name in ("files.example.org.pem", "files.example.org.key"):
        block = replaced(block, f"/etc/nginx/{name}", str(CERTIFICATE))
    source, target = tmp_path / "weights.bin", tmp_path / "back.bin"
    source.write_bytes(octets(11, 12_000_000))
    environ = {**os.environ, "SSL_CERT_FILE": str(CERTIFICATE), "FILESTORE_TOKEN": TOKEN, "HOME": str(tmp_path)}
    url = f"https://localhost:{port}"
    with running_proxy(tmp_path / "nginx", port, block):
        for command in (["push", str(source)], ["fetch", "weights.bin", "-o", str(target)]):
            done = subprocess.run(
                [FILESTORE, *command, "--url", url, "--quiet"],
                env=environ,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (0, "") == (done.returncode, done.stderr)

    assert source.read_bytes() == target.read_bytes()


@pytest.mark.slow
def test_the_settings_of_the_page_give_links_that_work(tmp_path: Path) -> None:
    """With the public URL, a signed URL leads through the proxy; with the trusted proxy alone, it says what nginx says."""
    port = lasting_port()
    public_url = f"https://localhost:{port}"
    for name, settings, expected in (
        ("public", {"public_url": public_url, "trusted_proxies": "127.0.0.1"}, public_url),
        ("trusted", {"trusted_proxies": "127.0.0.1"}, "https://localhost"),
        ("neither", {}, "http://localhost"),
    ):
        with running_server(tmp_path / name, **settings) as server:  # type: ignore[arg-type]  # these are texts
            block = replaced(example(), "listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
            block = replaced(block, "http://127.0.0.1:8080", server.url)
            for file in ("files.example.org.pem", "files.example.org.key"):
                block = replaced(block, f"/etc/nginx/{file}", str(CERTIFICATE))
            with running_proxy(tmp_path / f"nginx-{name}", port, block):
                send = ["-H", f"Authorization: Bearer {TOKEN}", "-F", f"pfile=@{__file__}", f"{public_url}/v4/files"]
                url = json.loads(curl(*send))["url"]
                assert url.startswith(f"{expected}/signed/")
                if name == "public":
                    assert Path(__file__).read_bytes() == curl(url)


def curl(*arguments: str) -> bytes:
    """Return what curl receives, by TLS with the certificate of the tests."""
    command = ["curl", "--silent", "--fail", "--noproxy", "*", "--cacert", str(CERTIFICATE), *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_the_settings_in_an_error_are_those_of_the_page() -> None:
    """The settings in an error are lines of the example, and the size on the page is that of a batch."""
    lines = [f"{setting};" for setting in SETTINGS_OF_A_PROXY.rstrip(";").split("; ")]

    assert [line for line in lines if line not in example()] == []
    assert f"up to {wire.BATCH_LIMIT >> 20} MiB in one request" in PAGE
