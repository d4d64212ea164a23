"""A server that speaks TLS itself. Its authority is known to these tests only."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from filestore.backends import connect
from filestore.http.client.repository import RemoteRepository
from filestore.http.wire import API
from tests.support.authority import Authority, Pair, replace
from tests.support.commands import Home
from tests.support.frames import encoded, frames
from tests.support.generator import octets
from tests.support.server import FORM, TOKEN, RunningServer, batch, eventually, form, reply, running_server
from tests.support.tls import CERTIFICATE
from tests.support.trees import random_tree, standing
from tests.support.uploads import PartsUpload

SIZE = 12_000_000
"""More than the buffers of a connection hold, and more than one batch."""
CONTENT = octets(18, SIZE)
CONNECTIONS = 16
"""With so many new connections, one of two workers is missed once in 2**15 runs."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the server and of its clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers, of which nothing is read in the clear."""
    with authority.server(tmp_path_factory.mktemp("served") / "root", authority.pair("server"), workers=2) as server:
        yield server


def environ(server: RunningServer, authority: Authority) -> dict[str, str]:
    """What a user of the command line sets."""
    return {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": TOKEN, "SSL_CERT_FILE": str(authority.path)}


def test_the_url_of_the_server_begins_with_https(server: RunningServer) -> None:
    """Also that in links."""
    assert server.url.startswith("https://")
    signed = server.ask("POST", "/v4/files", form("linked.bin", b"content"), headers=FORM).json["url"]
    assert signed.startswith("https://127.0.0.1:"), signed
    assert (200, b"content") == server.ask("GET", urlsplit(signed).path, token=None)[::2]


@pytest.mark.slow
def test_a_file_and_a_directory_are_pushed_and_fetched(server: RunningServer, authority: Authority, home: Home) -> None:
    """By the command line, which trusts the authority by SSL_CERT_FILE."""
    source, tree = home.folder / "weights.bin", random_tree(home.folder / "model", 18)
    source.write_bytes(CONTENT)
    for path in (source, tree):
        home.result("push", path, environ=environ(server, authority))
    home.result("fetch", "weights.bin", "-o", home.folder / "back.bin", environ=environ(server, authority))
    home.result("fetch", "model.zip", "-o", home.folder / "back", environ=environ(server, authority))
    assert CONTENT == (home.folder / "back.bin").read_bytes()
    assert standing(tree) == standing(home.folder / "back")


def test_a_push_loads_no_http_library(server: RunningServer, authority: Authority, home: Home) -> None:
    """A client speaks HTTPS on connections of its own: aiohttp would take longer to load than the push does."""
    (home.folder / "small.bin").write_bytes(b"content")
    done = subprocess.run(
        [Path(sys.executable).with_name("filestore"), "push", home.folder / "small.bin", "--quiet"],
        # Python then writes the name of each module that it loads.
        env={**os.environ, "HOME": str(home.folder), "PYTHONPROFILEIMPORTTIME": "1", **environ(server, authority)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "filestore" in loaded
    assert set() == loaded & {"aiohttp", "certifi", "rich"}


@pytest.mark.parametrize("size", [1, 1000, 16 << 10, (16 << 10) + 1, (256 << 10) + 1, 3 << 20])
def test_requests_behind_a_batch_are_read_where_it_ends(server: RunningServer, size: int) -> None:
    """Several requests are sent at once, and a thread decrypts a part of them."""
    sent = [encoded(octets(size + number, size)) for number in range(3)]
    with server.connection() as connection:
        for number, frame in enumerate(sent):
            for path, body in (("chunks", batch([frame])), ("chunks/missing", bytes(frame.digest))):
                is_last = number == len(sent) - 1 and path == "chunks/missing"
                lines = [f"POST {API}/{path} HTTP/1.1", "Host: server", f"Authorization: Bearer {TOKEN}"]
                lines += [f"Content-Length: {len(body)}", *(["Connection: close"] if is_last else []), "", ""]
                connection.sendall("\r\n".join(lines).encode() + body)
        answers = b""
        while piece := connection.recv(1 << 16):
            answers += piece
    assert (6, 3) == (answers.count(b"HTTP/1.1 200 OK\r\n"), answers.count(b'{"kept": 1}'))
    assert [] == server.missing([frame.digest for frame in sent])


def test_a_batch_arrives_as_it_was_stored(server: RunningServer) -> None:
    """Frames of many sizes go through TLS instead of `sendfile`, and an empty place stays empty."""
    stored = [*frames(40, size=300_000, seed=7), *frames(40, size=10, seed=8)]
    absent = encoded(b"never sent").digest
    assert {"kept": 80} == server.put(stored).json
    asked = [frame.digest for frame in stored] + [absent]
    answer = server.ask("POST", f"{API}/chunks/get", b"".join(asked))
    assert 200 == answer.status
    assert answer.body.endswith(b"".join(bytes(frame.data) for frame in stored))


@pytest.mark.parametrize("range_", [range(1), range(5, 70_000), range(3_000_000, 9_000_001), range(SIZE - 1, SIZE)])
def test_a_range_of_a_file_is_read(server: RunningServer, range_: range) -> None:
    """A plain GET decodes the content and sends it through TLS."""
    record = server.upload("ranges.bin", CONTENT).json
    answer = server.ask("GET", f"/{record['path']}", headers={"Range": f"bytes={range_.start}-{range_.stop - 1}"})
    assert (206, CONTENT[range_.start : range_.stop]) == (answer.status, answer.body)


def test_a_file_is_uploaded_in_parts_by_signed_urls(server: RunningServer) -> None:
    """The URLs begin with https, and need no token."""
    upload = PartsUpload(server, "parts.bin")
    url = urlsplit(upload.url(1).json["upload_url"])
    assert ("https", f"127.0.0.1:{server.port}") == (url.scheme, url.netloc)
    sent = server.ask("PUT", url.path, CONTENT, token=None)
    assert 200 == sent.status
    parts = [{"ETag": sent.headers["ETag"], "PartNumber": 1}]
    record = upload.finish_with(parts).json
    assert CONTENT == server.ask("GET", f"/{record['path']}").body


def test_expect_100_continue_is_answered_before_the_body(server: RunningServer) -> None:
    """The interim answer goes through TLS too."""
    body = form("expected.bin", b"content")
    lines = [f"Content-Length: {len(body)}", f"Content-Type: {FORM['Content-Type']}", "Expect: 100-continue"]
    with server.begin("POST", "/v3/pipeline_files", *lines) as connection:
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(1 << 16)
        connection.sendall(body)
        assert 201 == reply(connection).status


def test_curl_checks_the_certificate(server: RunningServer, authority: Authority) -> None:
    """It trusts the file of the authority, and nothing without it."""
    known, unknown = (
        subprocess.run(["curl", "-sS", *option, f"{server.url}/healthz"], capture_output=True, text=True, check=False)
        for option in (["--cacert", str(authority.path)], [])
    )
    assert (0, "ok") == (known.returncode, json.loads(known.stdout)["status"])
    assert 60 == unknown.returncode


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(server: RunningServer, authority: Authority, version: ssl.TLSVersion) -> None:
    """Both move bodies in both directions. ALPN chooses HTTP/1.1."""
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    stored = frames(3, size=700_000, seed=version)
    server = server._replace(tls=context)
    with server.connection() as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert "http/1.1" == connection.selected_alpn_protocol()
    assert 200 == server.put(stored).status
    assert server.ask("POST", f"{API}/chunks/get", b"".join(frame.digest for frame in stored)).body.endswith(stored[-1].data)


def test_a_client_finds_out_that_a_server_speaks_tls(server: RunningServer, home: Home) -> None:
    """A request in the clear is answered by what to do, and the connection is closed."""
    url = server.url.replace("https://", "http://")
    told = home.failure("ls", environ={"FILESTORE_URL": url, "FILESTORE_TOKEN": TOKEN})
    assert "this port speaks TLS, and the request was sent without it; use a URL that begins with https://" in told


@pytest.mark.slow
def test_a_client_finds_out_that_a_server_does_not_speak_tls(tmp_path: Path, home: Home) -> None:
    """The error names the URL that is probably meant."""
    with running_server(tmp_path / "root") as plain:
        url = plain.url.replace("http://", "https://")
        told = home.failure("ls", environ={"FILESTORE_URL": url, "FILESTORE_TOKEN": TOKEN})
    assert "what answers there does not speak TLS; a URL that begins with http:// may be meant" in told


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Authority, Pair, Pair]:
    """An authority, a certificate, and another one that may take its place."""
    authority = Authority(tmp_path / "authority")
    return authority, authority.pair("server"), authority.pair("next")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_reads_the_certificate_again_in_all_processes(
    tmp_path: Path, pairs: tuple[Authority, Pair, Pair], workers: int
) -> None:
    """The server goes on, and a transfer on an older connection ends well."""
    authority, pair, following = pairs
    with authority.server(tmp_path / "root", pair, workers=workers) as server:
        path = server.upload("reload.bin", CONTENT).json["path"]
        with server.begin("GET", f"/{path}") as reading:
            begun = reading.recv(1000)
            replace(pair, following)
            os.kill(server.pid, signal.SIGHUP)
            wanted = pair.shown
            eventually(lambda: {authority.shown(server) for _ in range(CONNECTIONS)} == {wanted})
            assert begun.startswith(b"HTTP/1.1 200 OK\r\n")
            received = begun
            while len(received) < SIZE + begun.index(b"\r\n\r\n") + 4:
                received += reading.recv(1 << 20)
        assert received.endswith(CONTENT)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_certificate_is_read_by_itself(tmp_path: Path, pairs: tuple[Authority, Pair, Pair], workers: int) -> None:
    """Half of a new pair changes nothing but one line in the log; the whole pair reaches all processes."""
    authority, pair, following = pairs
    with authority.server(tmp_path / "root", pair, check=False, workers=workers) as server:
        before, key = pair.shown, pair.key.read_bytes()
        assert {before} == {authority.shown(server) for _ in range(CONNECTIONS)}
        following.cert.replace(pair.cert)
        assert server.process.stderr is not None
        assert "the certificate in use is kept" in server.process.stderr.readline()
        assert {before} == {authority.shown(server) for _ in range(CONNECTIONS)}
        following.key.replace(pair.key)
        assert key != pair.key.read_bytes()
        eventually(lambda: {authority.shown(server) for _ in range(CONNECTIONS)} == {pair.shown})
        shown = [line for line in server.ask("GET", "/metrics").body.decode().split("\n") if line.startswith("filestore_tls")]
        assert workers == len({line for line in shown if float(line.rsplit(" ", 1)[1]) > 1e9})
        status, log = server.stop()
    assert 0 == status
    assert 0 == log.count("is kept")
    assert 1 == log.count("new connections get the certificate in")


async def test_a_client_keeps_its_connection_when_the_certificate_is_renewed(
    tmp_path: Path, pairs: tuple[Authority, Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has begun goes on, and a new connection gets the new certificate."""
    authority, pair, following = pairs
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with authority.server(tmp_path / "root", pair) as server:
        async with connect(server.url, token=TOKEN) as repository:
            assert isinstance(repository, RemoteRepository)
            identity = await repository.identity()
            first = used_by(repository)
            shown = following.shown
            replace(pair, following)
            eventually(lambda: authority.shown(server) == shown)
            assert [] == await repository.missing([])
            frame = encoded(b"content")
            assert [frame.digest] == await repository.missing([frame.digest])
            assert first == used_by(repository)
        async with connect(server.url, token=TOKEN) as repository:
            assert identity == await repository.identity()


def used_by(repository: RemoteRepository) -> list[int]:
    """The connections that a client keeps."""
    transport = repository._requests.transport
    return list(map(id, transport._channels._idle))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_stops_a_server_without_tls(tmp_path: Path, workers: int) -> None:
    """It is the end of a terminal, as before."""
    with running_server(tmp_path / "root", check=False, workers=workers) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert 0 == server.process.wait(60)


@pytest.mark.slow
def test_a_client_certificate_is_needed_in_addition_to_the_token(tmp_path: Path, pairs: tuple[Authority, Pair, Pair]) -> None:
    """With it the token is asked for; a certificate of another authority is none."""
    authority, pair, own = pairs
    other = Authority(tmp_path / "other").pair("client")
    with authority.server(tmp_path / "root", pair, check=False, tls_client_ca=str(authority.path)) as server:
        known = authority.trusted(server, own)
        assert 200 == known.ask("GET", f"{API}/repository").status
        assert 401 == known.ask("GET", f"{API}/repository", token=None).status
        for client in (server, authority.trusted(server, other)):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                client.ask("GET", f"{API}/repository")
        assert 200 == known.ask("GET", "/healthz", token=None).status
        _, log = server.stop()
    assert 1 == log.count("its client certificate is refused")


@pytest.fixture
def own_environ(tmp_path: Path, pairs: tuple[Authority, Pair, Pair]) -> dict[str, str]:
    """What a user sets who trusts the authority of `pairs`."""
    return {"SSL_CERT_FILE": str(pairs[0].path), "FILESTORE_TOKEN": "a-token-for-this-test"}


@pytest.mark.slow
def test_the_command_line_shows_a_client_certificate(
    home: Home, tmp_path: Path, pairs: tuple[Authority, Pair, Pair], own_environ: dict[str, str]
) -> None:
    """The error says what is missing without one, and which file is wrong."""
    authority, pair, own = pairs
    tls = ("--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-client-ca", authority.path)
    shown = {"FILESTORE_TLS_CLIENT_CERT": str(own.cert), "FILESTORE_TLS_CLIENT_KEY": str(own.key)}
    with home.server(*tls, root=tmp_path / "root", environ=own_environ) as server:
        url = {**own_environ, "FILESTORE_URL": server.url}
        assert [] == home.result("ls", environ=url | shown)["files"]
        told = home.failure("ls", environ=url | {"FILESTORE_RETRY_SECONDS": "0.1"})
        assert "it asks for a certificate of the client; the setting tls_client_cert names its file" in told
        told = home.failure("ls", environ=url | shown | {"FILESTORE_TLS_CLIENT_KEY": str(pair.key)})
        assert told.startswith(f"tls_client_key cannot be used: the key in {pair.key} does not belong")


@pytest.mark.slow
def test_only_the_proxy_can_connect_to_a_server_that_leaves_tls_to_it(home: Home, tmp_path: Path) -> None:
    """Its headers count. Another address gets no byte, and the log counts its connections."""
    token = {"FILESTORE_TOKEN": "a-token-for-this-test"}
    listening = ("--host", "0.0.0.0", "--tls-by-proxy", "127.0.0.2,127.0.0.4", "--tls-by-proxy", "10.0.0.0/8")
    with home.server(*listening, root=tmp_path / "root", environ=token, complains=None) as server:
        port = urlsplit(server.url).port
        asked = ["curl", "-sS", "-H", "X-Forwarded-Proto: https", "-H", f"Authorization: Bearer {token['FILESTORE_TOKEN']}"]
        form_ = ["-F", f"pfile=@{__file__}", f"http://127.0.0.1:{port}/v4/files"]
        # curl is cut while it sends (55) or reads (56).
        for address, ends in (("127.0.0.2", {0}), ("127.0.0.4", {0}), ("127.0.0.3", {55, 56})):
            done = subprocess.run([*asked, "--interface", address, *form_], capture_output=True, text=True, check=False)
            assert done.returncode in ends, done.stderr
            assert done.stdout == "" if done.returncode else json.loads(done.stdout)["url"].startswith("https://127.0.0.1:")
        assert server.process.stderr is not None
        told = "INFO 1 connection was closed because the setting tls_by_proxy names other addresses; the last one is of 127.0.0.3"
        assert told in server.process.stderr.readline()


@pytest.mark.slow
def test_the_url_to_type_has_a_name_of_the_certificate(home: Home, tmp_path: Path) -> None:
    """A client would refuse the certificate under another name of this machine."""
    listening = ("--host", "0.0.0.0", "--tls-cert", CERTIFICATE)
    with home.server(*listening, root=tmp_path / "root", complains=None) as server:
        found = re.search(r"^  export FILESTORE_URL=(https://localhost:\d+)$", server.said, re.MULTILINE)
        assert found is not None
        environ = {**server.environ, "FILESTORE_URL": found[1], "SSL_CERT_FILE": str(CERTIFICATE)}
        assert [] == home.result("ls", environ=environ)["files"]


@pytest.mark.slow
def test_an_expired_certificate_is_refused(home: Home, tmp_path: Path, pairs: tuple[Authority, Pair, Pair]) -> None:
    """The error says who can mend it."""
    pair = pairs[0].pair("expired", expires_in=timedelta(days=-1))
    with home.server("--tls-cert", pair.cert, "--tls-key", pair.key, root=tmp_path / "root", complains=None) as server:
        environ = {**server.environ, "SSL_CERT_FILE": str(pairs[0].path), "FILESTORE_RETRY_SECONDS": "0.1"}
        told = home.failure("ls", environ=environ)
    assert "its certificate is refused, certificate has expired; whoever runs the server must replace it, " in told


@pytest.mark.slow
def test_a_certificate_that_signs_itself_is_named(home: Home, tmp_path: Path) -> None:
    """The server prints what a client needs. The key is in the same file."""
    with home.server("--tls-cert", CERTIFICATE, root=tmp_path / "root", complains=None) as server:
        line = f"export SSL_CERT_FILE={CERTIFICATE}"
        assert line in server.said
        environ = {**server.environ, "SSL_CERT_FILE": str(CERTIFICATE), "FILESTORE_RETRY_SECONDS": "0.1"}
        told = home.failure("ls", environ=environ)
        assert "certificate is not valid for '127.0.0.1'; give a URL with a name that is in the certificate; " in told
        environ["FILESTORE_URL"] = environ["FILESTORE_URL"].replace("127.0.0.1", "localhost")
        assert [] == home.result("ls", environ=environ)["files"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tls-cert", "absent.pem"], "tls_cert cannot be used: {home}/absent.pem: No such file or directory"),
        (["--tls-key", "key.pem"], "the setting tls_key needs a certificate; name its file by --tls-cert"),
        (["--tls-cert", "a.pem", "--tls-by-proxy", "10.0.0.1"], "the settings tls_cert and tls_by_proxy exclude each other: "),
    ],
)
def test_a_server_says_what_is_wrong_with_its_settings(home: Home, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """Nothing is made before that."""
    told = home.failure("serve", "--root", tmp_path / "root", "--create", *arguments)
    assert told.startswith(sentence.format(home=home.folder))
    assert not (tmp_path / "root").exists()
