"""Somebody forges JSON Web Tokens, uses those that have ended, or stands in the way of the keys. The server has two workers."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import token_digest
from filestore.core.signing import SigningKeys
from filestore.errors import Unauthorized
from filestore.http.server.jwt_sources import SIZE_LIMIT, FetchedKeys
from filestore.http.server.jwt_tokens import JwtOptions, JwtTokens
from filestore.http.wire import API
from tests.support.changed_tokens import ASKED, ends, is_closing, statuses
from tests.support.clock import Clock
from tests.support.generator import octets
from tests.support.jwts import AUDIENCE, ISSUER, Signer, jwks, part, save, signer
from tests.support.origins import Answer, Asked, answers, head, running_origin, whole
from tests.support.server import TOKEN, Reply, RunningServer, eventually, running_server
from tests.support.tls import CERTIFICATE, server_tls
from tests.support.uploads import PartsUpload, put

PATH = f"{API}/repository"
SIZE = 24 << 20
"""More than the buffers of a connection hold."""
RSA, EC = signer("rsa", "RS256"), signer("ec", "ES256")
STRANGER = Signer("rsa", signer("of nobody", "EdDSA").key, "EdDSA")
SIGNING = SigningKeys.first(bytes(32))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JWKS that the server reads."""
    return save(tmp_path_factory.mktemp("keys") / "keys.json", jwks(RSA, EC))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[RunningServer]:
    """Two workers, and a large file in the namespace `team`."""
    settings: dict[str, Any] = {"workers": 2, "stall_seconds": 60, "guesses_limit": 100_000}
    with running_server(tmp_path_factory.mktemp("served") / "root", jwt_keys=str(keys), **settings) as server:
        upload = PartsUpload(server, "large.bin", token=RSA.token())
        assert 201 == upload.finish([upload.put(1, octets(1, SIZE))]).status
        yield server


def hmac_token(secret: bytes, algorithm: str = "HS256") -> str:
    """Return a token that is signed with a secret, as a library signs that takes any key for any algorithm."""
    body = f"{part({'alg': algorithm, 'kid': 'rsa', 'typ': 'JWT'})}.{RSA.token().split('.')[1]}"
    return f"{body}.{part(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def with_header(token: str, **changes: object) -> str:
    """Return a token with another header, and the signature that it had."""
    _, payload, signature = token.split(".")
    return f"{part({'alg': 'RS256', 'kid': 'rsa'} | changes)}.{payload}.{signature}"


def forged() -> Iterator[str]:
    """Tokens that nobody has signed who may."""
    good = RSA.token()
    header, payload, signature = good.split(".")
    for name in ("none", "None", "NONE", "nOnE", "", "HS256", "RS1", "RSA-OAEP"):
        yield with_header(good, alg=name)
        yield f"{part({'alg': name})}.{payload}.{part(b'x')}"
    jwk = RSA.jwk
    for secret in (RSA.pem, RSA.pem.strip(), json.dumps(jwk).encode(), jwk["n"].encode(), b"", bytes(32)):
        yield hmac_token(secret)
    for key_id in ("../../../dev/null", "/dev/null", "file:///dev/null", "' OR 1=1 --", "rsa\0", "rsa ", "RSA", "", "third"):
        yield STRANGER.token(headers={"kid": key_id})
    # A key that the token itself brings is not used.
    for brings in ({"jwk": STRANGER.jwk}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/"}, {"x5c": ["AAAA"]}):
        yield STRANGER.token(headers={"kid": "rsa", **brings})
    yield STRANGER.token()
    yield f"{header}.{part({'iss': ISSUER, 'aud': AUDIENCE, 'filestore_namespace': 'default'})}.{signature}"
    yield f"{header}.{payload}.{EC.token().split('.')[2]}"
    yield with_header(good, alg="PS256")
    yield EC.token(headers={"kid": "rsa"})
    yield EC.token(headers={"kid": "ec", "crit": ["exp"]})
    yield EC.token(headers={"kid": "ec", "b64": False, "crit": ["b64"]})


def malformed() -> Iterator[str]:
    """Tokens whose parts are not what they should be."""
    header, payload, signature = EC.token().split(".")
    # The last letter of a signature of 64 bytes has 4 bits that do not count: only one form is accepted.
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    yield f"{header}.{payload}.{signature[:-1]}{last[last.index(signature[-1]) ^ 1]}"
    yield f"{header}.{payload}.{signature}=="
    yield f"{header}.{payload}.{signature[:40]} {signature[40:]}"
    yield f"{header}.{payload}.{signature}."
    yield f"{header}.{payload}."
    yield f"{header}.{payload}"
    yield f"{header}.{payload}.{signature}.{payload}.{signature}"
    yield f"{part(b'[' * 4000)}.{payload}.{signature}"
    yield f"{part(bytes(4000))}.{payload}.{signature}"
    yield f"{header}.{part(b'{' * 4000)}.{signature}"
    yield EC.token(padding="x" * 8000)
    yield EC.token(headers={"kid": "ec", "cty": "JWT"}, iss=EC.token())


def expired() -> Iterator[str]:
    """Tokens that were right."""
    now = int(time.time())
    yield EC.token(exp=now - 1)
    yield EC.token(exp=now)
    yield EC.token(exp=1)


def misplaced() -> Iterator[str]:
    """Tokens that the right key has signed, and that are not for now or not for this server."""
    now = int(time.time())
    yield EC.token(exp=now - 1, aud="another-service")
    yield EC.token(nbf=now + 3600)
    yield EC.token(iat=now + 3600)
    yield EC.token(without=("exp",))
    yield EC.token(without=("aud",))
    yield EC.token(aud="another-service")
    yield EC.token(aud=[])
    yield EC.token(iss="https://login.example.com/realms/models")
    yield EC.token(filestore_namespace="Team")
    yield EC.token(without=("filestore_namespace",))
    yield EC.token(scope="openid profile")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [forged, malformed, expired, misplaced])
def test_tokens_that_are_refused(server: RunningServer, wrong: Callable[[], Iterator[str]]) -> None:
    """Each gets 401 as any wrong token does. The answer does not say why, unless only the time is wrong."""
    for token in wrong():
        answer = server.ask("GET", PATH, token=token)
        assert (401, wrong is expired) == (answer.status, answer.slug == "token-expired"), token
    assert {200} == statuses(server, "GET", PATH, token=RSA.token()) | statuses(server, "GET", PATH, token=EC.token())
    assert 200 == server.ask("GET", PATH, token=TOKEN).status


def test_a_token_of_one_namespace_reads_another(server: RunningServer) -> None:
    """It sees only its own namespace, and does only what its scope permits."""
    reader, other = EC.token(scope="filestore:read"), EC.token(filestore_namespace="other")
    found = {token: server.ask("GET", f"{API}/files", token=token).json["files"] for token in (reader, other, TOKEN)}
    assert [1, 0, 0] == [len(files) for files in found.values()]
    file_id = found[reader][0]["id"]
    assert 404 == server.ask("GET", f"{API}/files/{file_id}", token=other).status
    refused = server.ask("DELETE", f"{API}/files/{file_id}", token=reader)
    assert (403, "scope-missing", "delete", "read") == (
        *(refused.status, refused.slug),
        *(refused.json["needed"], refused.json["scope"]),
    )


def signed(server: RunningServer, token: str) -> str:
    """The path that the server signs for the large file."""
    (record,) = server.ask("GET", f"{API}/files", token=token).json["files"]
    answer = server.ask("POST", f"{API}/files/{record['id']}/sign", token=token)
    assert 200 == answer.status
    return f"/{answer.json['path']}"


def downloading(server: RunningServer, *, token: str | None = None, path: str = "") -> Any:
    """Return a connection on which the large file has begun to arrive."""
    if not path:
        (record,) = server.ask("GET", f"{API}/files", token=token).json["files"]
        path = f"/{record['path']}"
    connection = server.connection()
    header = f"Authorization: Bearer {token}\r\n" if token else ""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: server\r\n{header}Connection: close\r\n\r\n".encode())
    assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200 ")
    return connection


@pytest.mark.slow
def test_tokens_and_urls_of_a_key_that_is_removed(server: RunningServer, keys: Path) -> None:
    """Both workers refuse them, and cut the downloads under way. Those of another key go on."""
    stolen, kept = RSA.token(), EC.token()
    urls = {token: signed(server, token) for token in (stolen, kept)}
    assert {200} == {status for url in urls.values() for status in statuses(server, "HEAD", url, token=None)}
    going = {token: [downloading(server, token=token), downloading(server, path=urls[token])] for token in (stolen, kept)}
    save(keys, jwks(EC))
    eventually(lambda: {401} == statuses(server, "GET", PATH, token=stolen))
    eventually(lambda: {403} == statuses(server, "HEAD", urls[stolen], token=None))
    assert {200} == statuses(server, "GET", PATH, token=kept) | statuses(server, "HEAD", urls[kept], token=None)
    eventually(lambda: all(is_closing(connection) for connection in going[stolen]))
    assert all(ends(connection) < SIZE for connection in going[stolen])
    assert all(ends(connection) > SIZE - (1 << 13) for connection in going[kept])
    for connection in (*going[stolen], *going[kept]):
        connection.close()
    save(keys, jwks(RSA, EC))
    eventually(lambda: {200} == statuses(server, "GET", PATH, token=stolen))


@pytest.mark.slow
def test_what_a_token_began_before_it_expires(server: RunningServer) -> None:
    """Its downloads are cut at its expiry. Its URLs and part URLs end with it, and not a day later."""
    # Until then, all that it begins must have begun.
    expires_at = int(time.time()) + 8
    token = RSA.token(exp=expires_at)
    connection, url = downloading(server, token=token), signed(server, token)
    part_url = PartsUpload(server, "parts.bin", token=token).url(1).json["upload_url"]
    assert {expires_at} == {int(re.findall(r"/signed/team/([0-9]+)/", each)[0]) for each in (url, part_url)}
    assert int(time.time()) >= expires_at or 200 == server.ask("HEAD", url, token=None).status
    eventually(lambda: is_closing(connection))
    assert int(time.time()) >= expires_at
    assert ends(connection) < SIZE
    connection.close()
    assert {401} == statuses(server, "GET", PATH, token=token)
    assert {403} == statuses(server, "HEAD", url, token=None)
    assert 403 == put(part_url, b"content").status


@pytest.mark.slow
def test_a_signed_url_at_a_process_that_has_not_seen_the_token(server: RunningServer, keys: Path) -> None:
    """It is valid at each process that trusts the key, and at no other."""
    url = signed(server, RSA.token())
    with running_server(server.root, jwt_keys=str(keys)) as again:
        assert 200 == again.ask("HEAD", url, token=None).status
        # A URL is bound to its namespace.
        assert 403 == again.ask("HEAD", url.replace("/team/", "/default/"), token=None).status
    with running_server(server.root) as without:
        assert 403 == without.ask("HEAD", url, token=None).status


@pytest.mark.slow
def test_json_web_tokens_are_guessed(tmp_path: Path, keys: Path) -> None:
    """They count as wrong tokens do. The log says why, in few lines, and has no token."""
    with running_server(tmp_path / "root", guesses_limit=3, check=False, jwt_keys=str(keys)) as server:
        wrong = [EC.token(aud="another", jti=str(number)) for number in range(5)]
        assert [401] * 3 + [429] * 2 == [server.ask("GET", PATH, token=token).status for token in wrong]
        assert 200 == server.ask("GET", PATH, token=EC.token()).status
        status, log = server.stop()
    assert 0 == status
    assert 1 == log.count("it is for another audience")
    assert "eyJ" not in log
    assert all(token.split(".")[2] not in log for token in wrong)


# The keys come from a URL.


def tokens_of(url: str, **options: Any) -> JwtTokens:
    """Return what accepts the tokens of the keys at a URL."""
    return JwtTokens(JwtOptions(keys=url, issuer=ISSUER, audience=AUDIENCE), keys=FetchedKeys(url, **options))


async def accepted(tokens: JwtTokens, token: str) -> bool:
    """Return whether a token is accepted."""
    try:
        await tokens.access(token, token_digest(token), SIGNING)
    except Unauthorized:
        return False
    return True


def bomb() -> bytes:
    """An answer that becomes very large if one decompresses it."""
    content = gzip.compress(jwks(RSA) + b" " * (100 << 20))
    return head("200 OK", f"Content-Length: {len(content)}", "Content-Encoding: gzip", "Connection: close") + content


async def endless(_: Asked, writer: asyncio.StreamWriter) -> None:
    """Send more and more of one answer."""
    writer.write(head("200 OK", "Connection: close"))
    while True:
        writer.write(b" " * (1 << 16))
        await writer.drain()


async def silent(asked: Asked, _: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await asked.until_gone()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (endless, f"more than {SIZE_LIMIT} bytes"),
        pytest.param(silent, "no whole answer in 1 seconds", marks=pytest.mark.slow),
        (answers(bomb()), "not a JWKS"),
        (answers(b"not HTTP"), ""),
        (answers(b""), ""),
        (answers(head("500 Broken", "Content-Length: 0", "Connection: close")), "the status 500"),
        (answers(whole(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', "Connection: close")), "private or secret key"),
        (answers(whole(b"<html>", "Connection: close")), "not a JWKS"),
    ],
    ids=["endless", "silent", "bomb", "not HTTP", "closed", "broken", "secret", "page"],
)
async def test_a_provider_that_fails(answer: Answer, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The keys that came before stay valid, and the log says once what is wrong."""
    good = True

    async def first_good(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (answers(whole(jwks(RSA), "Connection: close")) if good else answer)(asked, writer)

    async with running_origin(first_good) as origin:
        tokens = tokens_of(origin.url, fetch_seconds=1 if answer is silent else 10, asked_seconds=0)
        async with tokens.running():
            assert await accepted(tokens, RSA.token())
            good = False
            for _ in range(2):
                assert not await accepted(tokens, EC.token())
            assert await accepted(tokens, RSA.token(sub="other"))
            # The library asks twice if a connection ends before an answer.
            assert 3 <= len(origin.asked) <= 5
            errors = [message for message in caplog.messages if "cannot be used" in message]
            assert (1, True) == (len(errors), reason in errors[0])
            good = True
            assert not await accepted(tokens, EC.token())
            assert await accepted(tokens, RSA.token())


async def test_a_redirect_to_the_keys_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """It is not followed."""
    async with running_origin(answers(whole(jwks(RSA), "Connection: close"))) as other:
        lines = (f"Location: {other.url}/keys", "Content-Length: 0", "Connection: close")
        async with running_origin(answers(head("302 Found", *lines))) as origin:
            tokens = tokens_of(origin.url)
            async with tokens.running():
                assert not await accepted(tokens, RSA.token())
    assert [1, 0] == [len(origin.asked), len(other.asked)]
    assert "the status 302" in caplog.text


async def test_many_tokens_name_unknown_keys() -> None:
    """They are answered by one fetch in a minute, also if they come at once. A key that is new works after it."""
    known = [RSA]
    clock = Clock()

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await answers(whole(jwks(*known), "Connection: close"))(asked, writer)

    async with running_origin(answer) as origin:
        tokens = tokens_of(origin.url, clock=clock)
        async with tokens.running():
            assert await accepted(tokens, RSA.token())
            wrong = [signer(f"key-{number}").token() for number in range(20)]
            assert [False] * 20 == await asyncio.gather(*(accepted(tokens, token) for token in wrong))
            assert not any([await accepted(tokens, token) for token in wrong])
            assert 2 == len(origin.asked)
            known.append(EC)
            assert not await accepted(tokens, EC.token())
            clock.now += 60
            assert await accepted(tokens, EC.token())
            assert 3 == len(origin.asked)


@pytest.mark.slow
async def test_the_certificate_of_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that signs itself is refused, and accepted by a server that is told to trust it."""
    async with running_origin(answers(whole(jwks(RSA), "Connection: close")), tls=server_tls()) as origin:
        url = origin.url.replace("127.0.0.1", "localhost")
        for trusted in (False, True):
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
            async with serving(tmp_path / f"root-{trusted}", url, check=trusted) as server:
                answer = await asyncio.to_thread(server.ask, "GET", PATH, token=RSA.token())
                assert (200 if trusted else 401) == answer.status


@pytest.mark.slow
async def test_a_provider_that_is_not_trusted() -> None:
    """No request is sent to it."""
    async with running_origin(answers(whole(jwks(RSA), "Connection: close")), tls=server_tls()) as origin:
        tokens = tokens_of(origin.url.replace("127.0.0.1", "localhost"))
        async with tokens.running():
            assert not await accepted(tokens, RSA.token())
    assert [] == origin.asked


@asynccontextmanager
async def serving(root: Path, url: str, *, check: bool = True) -> AsyncIterator[RunningServer]:
    """Run a server with two workers that fetch keys, while the loop of the test answers them."""
    block = running_server(root, workers=2, check=check, jwt_keys=url, guesses_limit=100_000)
    server = await asyncio.to_thread(block.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


@pytest.mark.slow
async def test_a_server_is_flooded_with_unknown_keys(tmp_path: Path) -> None:
    """Each worker fetches the keys at its start, and once more. The right token passes all the time."""
    async with (
        running_origin(answers(whole(jwks(RSA), "Connection: close"))) as origin,
        serving(tmp_path / "root", origin.url) as server,
    ):

        def ask(token: str) -> Reply:
            return server.ask("GET", PATH, token=token)

        for _ in range(ASKED):
            assert 401 == (await asyncio.to_thread(ask, EC.token())).status
            assert 200 == (await asyncio.to_thread(ask, RSA.token())).status
    assert len(origin.asked) <= 4


@pytest.mark.slow
async def test_the_provider_is_down_at_the_start(tmp_path: Path) -> None:
    """The server starts, and other tokens work."""
    async with serving(tmp_path / "root", "http://127.0.0.1:1/keys", check=False) as server:
        for token, expected in ((RSA.token(), 401), (TOKEN, 200)):
            # Each worker answers to the first token after it has asked the provider.
            assert {expected} == await asyncio.to_thread(statuses, server, "GET", PATH, token=token)
        status, log = await asyncio.to_thread(server.stop)
    assert 0 == status
    # Each worker says it once.
    assert 2 == log.count("cannot be used")
