from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from filestore.cache import Cache
from filestore.cache.options import CacheOptions
from filestore.core.references import Directory, FileURL
from filestore.download import download as downloads
from filestore.download.addresses import is_public
from filestore.download.download import DownloadLimits, DownloadOptions, PartialDownload, _Downloader
from filestore.errors import (
    DownloadRefused,
    FilestoreError,
    Interrupted,
    InvalidArchive,
    InvalidReference,
    InvalidSetting,
    LimitExceeded,
    OriginUnreachable,
    ServerError,
    Stalled,
)
from filestore.repository.protocol import Repository
from tests.support.archives import Forged, forged
from tests.support.generator import octets
from tests.support.nginx import running_nginx
from tests.support.origins import ATTEMPTS, Asked, Origin, answers, hanging, head, options_without_pause, running_origin, whole

LOOPBACK = DownloadLimits(private_allowed=True, size=10 << 20)
IMPATIENT = DownloadLimits(private_allowed=True, size=10 << 20, stall_seconds=1)
"""What arrives whole must not stall on a busy machine."""
NO_PAUSE = options_without_pause()
CACHE_OPTIONS = CacheOptions(download=NO_PAUSE)
download = partial(downloads.download, options=NO_PAUSE)
ONE_PUBLIC = options_without_pause(is_public=lambda address: address == "127.0.0.1")
"""Make 127.0.0.1 the only public address."""
CONTENT = octets(1, 3_000_000)

# A self-signed certificate for 127.0.0.1.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg27apm/xp7LE/hG/R
vseErfMNVaT3aCIL4tJHI2rdFKOhRANCAASyBtJTb5recqD0vrVYiLPSYGq85SFG
dvR1hbP45Vn/KidWuLL+0He3ud1Qs6zHpeixvPbrS76BG/6h5FN0PO9z
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBkTCCATagAwIBAgIUcwOFWvYRHqmyASNl6oDjTqvR7bgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyNDEyMzA0N1oYDzIxMjYxMDMx
MTIzMDQ3WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASyBtJTb5recqD0vrVYiLPSYGq85SFGdvR1hbP45Vn/KidWuLL+0He3
ud1Qs6zHpeixvPbrS76BG/6h5FN0PO9zo2QwYjAdBgNVHQ4EFgQUFozs/EayUtgT
JKdXBMp7EkOjfzMwHwYDVR0jBBgwFoAUFozs/EayUtgTJKdXBMp7EkOjfzMwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0kAMEYC
IQCqSuQBzVGH9gIAhqwi8pQ1Fnl9WJtnOhdxAsQhi3eSegIhAJ/FKSEte4FtOmrz
/ukPS6eb1G9/Oc3HOlypFfvXv4Do
-----END CERTIFICATE-----
"""

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:a00:1",
    "::ffff:169.254.169.254",
    "::ffff:192.0.0.9",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:a00:1:0:0:f7f7:f7f7",
    "2001:0:808:808:0:0:80ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:c0a8:101::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "localhost",
    "",
    "/run/socket",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.1",
    "192.167.255.255",
    "192.169.0.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2002:808:808::1",
    "2606:4700:4700::1111",
]


def port_of(origin: Origin) -> int:
    """Return the port on which it listens."""
    return int(origin.url.rpartition(":")[2])


async def refused(
    url: str,
    folder: Path,
    limits: DownloadLimits = DownloadLimits(),  # noqa: B008  # it is frozen
    options: DownloadOptions = NO_PAUSE,
) -> str:
    """Return the sentence with which a download fails."""
    with pytest.raises(DownloadRefused) as caught:
        await download(FileURL(url), folder, limits=limits, options=options)
    return str(caught.value)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public(address: str) -> None:
    """One of each special family, those that contain such an IPv4 address, and texts that are not addresses."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_that_is_public(address: str) -> None:
    """The neighbours of special ranges are public, and so are forms of a public IPv4 address."""
    assert is_public(address)


@pytest.mark.parametrize("address", [each for each in NOT_PUBLIC if each and "/" not in each and "%" not in each])
async def test_a_literal_address_is_judged_too(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused without a resolver and without a socket."""
    made: list[object] = []
    monkeypatch.setattr(socket, "socket", lambda *given: made.append(given))

    sentence = await refused(f"http://[{address}]/" if ":" in address else f"http://{address}/", folder)

    assert "is not a public address" in sentence
    assert [] == made


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "017700000001", "0", "localhost", "LOCALHOST"])
async def test_loopback_by_another_spelling(folder: Path, host: str) -> None:
    """The address of the connection counts, in whatever way the URL spells it."""
    async with running_origin(answers(whole(CONTENT))) as origin:
        sentence = await refused(f"http://{host}:{port_of(origin)}/", folder)

        assert "is not a public address" in sentence or "its host is malformed" in sentence
        assert [] == origin.asked


async def test_a_name_that_resolves_to_loopback_the_second_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: each connection is checked by its own address, not by an earlier answer for the name."""
    addresses = chain(["127.0.0.1"], ["127.0.0.2"] * 10)
    monkeypatch.setattr("socket.getaddrinfo", lambda _, port, *__, **___: [_resolved(next(addresses), port)])
    cut = head("200 OK", f"Content-Length: {len(CONTENT)}", 'ETag: "a"') + CONTENT[:2_000_000]

    async with (
        running_origin(answers(cut)) as public,
        running_origin(answers(whole(CONTENT)), host="127.0.0.2", port=port_of(public)) as private,
    ):
        sentence = await refused(f"http://rebinding.example:{port_of(public)}/", folder, options=ONE_PUBLIC)

        assert "it leads to 127.0.0.2, which is not a public address" in sentence
        assert (1, 0) == (len(public.asked), len(private.asked))


async def test_a_name_that_has_a_private_address_beside_a_public_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the public one is used, in any order."""
    both = ["127.0.0.2", "127.0.0.1"]
    monkeypatch.setattr("socket.getaddrinfo", lambda _, port, *__, **___: [_resolved(each, port) for each in both])

    async with (
        running_origin(answers(whole(CONTENT))) as public,
        running_origin(answers(whole(CONTENT)), host="127.0.0.2", port=port_of(public)) as private,
    ):
        await download(FileURL(f"http://both.example:{port_of(public)}/"), folder, options=ONE_PUBLIC)

        assert (1, 0) == (len(public.asked), len(private.asked))


def _resolved(address: str, port: int) -> tuple[int, int, int, str, tuple[str, int]]:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


async def test_a_redirect_to_loopback(folder: Path) -> None:
    """It is checked like the URL itself."""
    async with running_origin(answers(whole(CONTENT)), host="127.0.0.2") as private:
        redirect = head("302 Found", f"Location: {private.url}/secret", "Content-Length: 0")
        async with running_origin(answers(redirect)) as public:
            assert "it leads to 127.0.0.2, which is not a public address" in await refused(
                f"{public.url}/a", folder, options=ONE_PUBLIC
            )
        assert [] == private.asked


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "http://user:secret@127.0.0.1/",
        "//user:secret@127.0.0.1/",
        "http://[::1/",
        "http://127.0.0.1:99999/",
        "http:\\\\127.0.0.1\\",
        "javascript:alert(1)",
    ],
)
async def test_a_redirect_to_what_is_not_a_url_to_download_from(folder: Path, location: str) -> None:
    """It is refused like such a URL, and a password in it is not printed."""
    async with running_origin(answers(head("302 Found", f"Location: {location}", "Content-Length: 0"))) as origin:
        sentence = await refused(f"{origin.url}/a", folder, LOOPBACK)

        assert "it redirects to a URL that cannot be downloaded from" in sentence
        assert "secret" not in sentence
        assert 1 == len(origin.asked)


def test_a_redirect_from_https_to_http(folder: Path) -> None:
    """It is refused, because anyone between could change the file."""
    origin = FileURL("https://a.example/")
    downloading = _Downloader(origin, PartialDownload(folder), limits=LOOPBACK, known=None, report=None, reserve=None)

    assert "https://b.example/" == downloading._next("https://a.example/", "//b.example/")
    with pytest.raises(DownloadRefused, match="from https to http://b"):
        downloading._next("https://a.example/", "http://b.example/")


async def test_redirects_in_a_circle(folder: Path) -> None:
    """The download ends when it comes to the same place again."""
    back = head("302 Found", "Location: /a", "Content-Length: 0")
    forth = head("301 Moved Permanently", "Location: /b", "Content-Length: 0")

    async with running_origin(answers(forth, back)) as origin:
        assert "it redirects in a circle" in await refused(f"{origin.url}/a", folder, LOOPBACK)
        assert 2 == len(origin.asked)


async def test_redirects_without_end(folder: Path) -> None:
    """A limit ends them."""

    async def further(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head("302 Found", f"Location: /{asked.number}", "Content-Length: 0"))

    async with running_origin(further) as origin:
        assert "it redirects more than 10 times" in await refused(f"{origin.url}/a", folder, LOOPBACK)
        assert 11 == len(origin.asked)


async def test_an_answer_without_end(folder: Path) -> None:
    """A size limit ends it. Memory holds only one piece."""

    async def stream(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", "Transfer-Encoding: chunked"))
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()

    async with running_origin(stream) as origin:
        with pytest.raises(LimitExceeded, match="url_size_limit"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)
        assert 1 == len(origin.asked)


async def test_an_answer_that_says_to_be_too_large(folder: Path) -> None:
    """None of it is read."""
    async with running_origin(answers(head("200 OK", f"Content-Length: {11 << 20}"))) as origin:
        with pytest.raises(LimitExceeded, match=f"is {11 << 20}, more than the limit of {10 << 20}"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)


@pytest.mark.slow
async def test_a_part_that_says_to_be_of_something_too_large(folder: Path) -> None:
    """The limit applies to the whole file, not to each part."""
    begun = head("200 OK", "Transfer-Encoding: chunked", 'ETag: "a"') + b"5\r\nhello\r\n"
    part = head("206 Partial Content", 'ETag: "a"', f"Content-Range: bytes 5-9/{11 << 20}", "Content-Length: 5") + b"world"

    async with running_origin(hanging(begun, part)) as origin:
        with pytest.raises(LimitExceeded):
            await download(FileURL(f"{origin.url}/a"), folder, limits=IMPATIENT)


@pytest.mark.parametrize(
    "answer",
    [
        head("200 OK", "Content-Length: 3000000") + CONTENT[:-1],
        head("200 OK", "Content-Length: 3000001") + CONTENT,
        head("200 OK", "Transfer-Encoding: chunked") + b"5\r\nhel",
        head("200 OK", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n",
        head("200 OK", "Content-Length: -1") + CONTENT,
        head("200 OK", "Content-Length: 1", "Content-Length: 2") + CONTENT,
        head("200 OK", "Content-Length: 5", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        head("206 Partial Content", "Content-Range: bytes 0-4/5", "Content-Length: 5") + b"hello",
        head("206 Partial Content", "Content-Length: 5") + b"hello",
        head("416 Range Not Satisfiable", "Content-Length: 0"),
    ],
)
async def test_an_answer_that_lies(folder: Path, answer: bytes) -> None:
    """The length, the part or the whole answer is wrong. It is requested again, and given up in the end."""
    async with running_origin(answers(answer)) as origin:
        with pytest.raises(Interrupted):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)
        # The count doubles where aiohttp itself asks again. An attempt that brings one MiB more has not failed.
        assert 6 <= len(origin.asked) <= 12


async def test_an_answer_whose_end_could_be_a_cut(folder: Path) -> None:
    """An answer without a length is accepted only if a digest is expected."""
    async with running_origin(answers(b"HTTP/1.0 200 OK\r\n\r\nhello")) as origin:
        assert "its answer has no length" in await refused(f"{origin.url}/a", folder, LOOPBACK)
        done = await download(FileURL(f"{origin.url}/a", digest="0" * 64), folder, limits=LOOPBACK)

    assert done is not None
    assert b"hello" == done.path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("etag", "content_range", "size"),
    [
        ('"b"', "bytes 2000000-2999999/3000000", 1_000_000),
        ('W/"a"', "bytes 2000000-2999999/3000000", 1_000_000),
        ('"a"', "bytes 2000000-2999998/2999999", 999_999),
        ('"a"', "bytes 2000001-2999999/3000000", 999_999),
        ('"a"', "bytes 0-2999999/3000000", 3_000_000),
        ('"a"', "bytes 2999999-2000000/3000000", 1_000_000),
        ('"a"', "bytes 2000000-2999999/*", 1_000_001),
        ('"a"', "bytes 2000000-2999990/3000000", 1_000_000),
        ('"a"', "bytes */3000000", 1_000_000),
        ('"a"', "", 1_000_000),
    ],
)
async def test_a_part_that_is_of_something_else(folder: Path, etag: str, content_range: str, size: int) -> None:
    """The file changes between two range requests, or the range is wrong: the whole file is requested again."""
    other = octets(2, 3_000_000)
    begun = head("200 OK", "Content-Length: 3000000", 'ETag: "a"') + CONTENT[:2_000_000]
    part = head("206 Partial Content", f"ETag: {etag}", f"Content-Range: {content_range}", f"Content-Length: {size}")

    async with running_origin(hanging(begun, part + other[:size], whole(other, 'ETag: "b"'))) as origin:
        done = await download(FileURL(f"{origin.url}/a"), folder, limits=IMPATIENT)

        *_, resumed, restarted = origin.asked
        assert ["bytes=2000000-", '"a"'] == [resumed.headers[name] for name in ("range", "if-range")]
        assert "range" not in restarted.headers
    assert done is not None
    assert (other, 0, '"b"') == (done.path.read_bytes(), done.bytes_resumed, done.validators.etag)


@pytest.mark.slow
@pytest.mark.parametrize("etag", [b"\xff", b'"\xc3\xa9"', b'"\x1b[2J"'])
async def test_a_validator_that_cannot_be_sent_back(folder: Path, etag: bytes) -> None:
    """It is ignored. A cut download begins again, without an error."""
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: " + etag + b"\r\n\r\nhel"

    async with running_origin(answers(begun, whole(b"hello"))) as origin:
        done = await download(FileURL(f"{origin.url}/a"), folder, limits=IMPATIENT)

    assert done is not None
    assert (b"hello", None) == (done.path.read_bytes(), done.validators.etag)


async def test_an_explanation_that_a_terminal_would_obey(folder: Path) -> None:
    """The sentence comes from filestore. The text of the server is not printed."""
    async with running_origin(answers(b"HTTP/1.1 404 \x1b[2J\r\nContent-Length: 0\r\n\r\n")) as origin:
        with pytest.raises(ServerError, match="answered 404: Not Found"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)


async def test_a_file_that_changes_all_the_time(folder: Path) -> None:
    """Each answer is cut, and the next one has another version. The download ends with an error."""

    async def changing(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", "Content-Length: 3000000", f'ETag: "{asked.number}"') + CONTENT[:2_000_000])
        await writer.drain()

    async with running_origin(changing) as origin:
        with pytest.raises(Interrupted):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)
        # The bytes before a cut vary. A MiB of progress begins a new series of attempts, and aiohttp repeats some
        # requests.
        assert ATTEMPTS <= len(origin.asked) <= 4 * ATTEMPTS


@pytest.mark.parametrize("dripped", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX-A: b\r\n"])
async def test_a_head_that_never_comes(folder: Path, dripped: bytes) -> None:
    """One limit covers everything before the first byte, however the server delays it."""
    limits = DownloadLimits(private_allowed=True, first_byte_seconds=0.05)

    async def drip(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(dripped)
        while True:
            writer.write(b"X-A: b\r\n" if dripped else b"")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with running_origin(drip) as origin:
        with pytest.raises((Stalled, Interrupted)):
            await download(FileURL(f"{origin.url}/a"), folder, limits=limits)


async def test_a_server_that_nobody_vouches_for(folder: Path, tmp_path: Path) -> None:
    """A certificate that cannot be verified is refused, and the file is not requested."""
    (tmp_path / "pem").write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    async with running_origin(answers(whole(CONTENT)), tls=context) as origin:
        with pytest.raises(OriginUnreachable, match="its certificate is refused"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK)
        assert [] == origin.asked


@pytest.mark.parametrize("name", ["%2e%2e", "..%2f..%2f..%2fescaped", "%2fescaped", "a%00b", "%0a", "x" * 3000])
async def test_a_url_whose_name_escapes(local_repository: Repository, tmp_path: Path, name: str) -> None:
    """The file is in its entry, under a safe name."""
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)

    async with running_origin(answers(whole(CONTENT))) as origin:
        path = await cache.resolve(FileURL(f"{origin.url}/{name}"))

    assert path == path.resolve()
    assert "content" == path.parent.name
    assert path.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("path", ["../escaped", "/escaped", "a/../../escaped"])
async def test_a_zip_file_behind_a_url_whose_entry_escapes(local_repository: Repository, tmp_path: Path, path: str) -> None:
    """It is refused like any other, and nothing of its tree is left."""
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)

    async with running_origin(answers(whole(forged([Forged(path, b"content")])))) as origin:
        with pytest.raises(InvalidArchive):
            await cache.resolve(Directory(url=f"{origin.url}/a.zip"))

    assert [] == [*tmp_path.rglob("escaped")]
    assert [] == [*(tmp_path / "cache").glob("*/*/trees/??/??/*"), *(tmp_path / "cache").glob("*/*/staging/*")]


@pytest.fixture
def no_leak(tmp_path: Path) -> Iterator[None]:
    """Check that no stored file and no printed error contains the secret."""
    yield
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "302 Found"])
async def test_no_error_shows_a_signature(local_repository: Repository, tmp_path: Path, no_leak: None, status: str) -> None:
    """No sentence contains the query of a URL, or that of a redirect."""
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
    answer = head(status, "Content-Length: 0", "Location: ftp://a/?secret")

    async with running_origin(answers(answer)) as origin:
        with pytest.raises(FilestoreError) as caught:
            await cache.resolve(FileURL(f"{origin.url}/a?signature=secret#secret"))

    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value)


async def test_a_server_of_another_make_behind_an_address_that_is_not_public(folder: Path, tmp_path: Path) -> None:
    """The setting is off by default, and the sentence names it."""
    with running_nginx(tmp_path / "nginx") as nginx:
        sentence = await refused(nginx.put("model.bin", CONTENT), folder)

    assert "the setting url_private_allowed allows it" in sentence
    with pytest.raises(InvalidReference):
        FileURL("file:///etc/passwd")


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1", " 127.0.0.1/32 ", "::ffff:127.0.0.1/128", "0.0.0.0/0"])
async def test_a_refused_network_is_never_connected_to(folder: Path, network: str) -> None:
    """It is refused also where private addresses are allowed, and the sentence names the setting."""
    limits = replace(LOOPBACK, networks_refused=("203.0.113.0/24", network))
    asked: list[Asked] = []

    async def answer(request: Asked, writer: asyncio.StreamWriter) -> None:
        asked.append(request)
        writer.write(whole(CONTENT))

    async with running_origin(answer) as origin:
        with pytest.raises(DownloadRefused, match="url_networks_refused"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=limits)
    assert not asked


async def test_a_redirect_into_a_refused_network(folder: Path) -> None:
    """Each connection is checked, also that of a redirect."""
    limits = replace(LOOPBACK, networks_refused=("127.0.0.2/32",))
    paths = []

    async def answer(request: Asked, writer: asyncio.StreamWriter) -> None:
        paths.append(request.path)
        location = origin.url.replace("127.0.0.1", "127.0.0.2")
        writer.write(head("302 Found", "Content-Length: 0", f"Location: {location}/b"))

    async with running_origin(answer) as origin:
        with pytest.raises(DownloadRefused, match=r"127\.0\.0\.2, which is in 127\.0\.0\.2/32"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=limits)
    assert ["/a"] == paths


@pytest.mark.parametrize("networks", ["127.0.0.0/8", ("127.0.0",), ("10.0.0.0/33",), ("host",), ("",), (7,)])
def test_refused_networks_that_are_none(networks: object) -> None:
    """A mistake is an error, and does not allow an address."""
    with pytest.raises(InvalidSetting):
        DownloadLimits(networks_refused=networks)  # type: ignore[arg-type]
