from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from filestore.core.progress import Progress
from filestore.core.references import FileURL
from filestore.download.download import DownloadLimits, DownloadOptions, DownloadResult, download
from filestore.errors import DownloadRefused, FilestoreError, OriginUnreachable, ServerError
from tests.support.generator import octets
from tests.support.nginx import Nginx
from tests.support.origins import answers, head, options_without_pause, running_origin

LOOPBACK = DownloadLimits(private_allowed=True)
CONTENT = octets(1, 5_000_000)


async def downloaded(url: str, folder: Path) -> DownloadResult:
    """Download a file without a known state."""
    done = await download(FileURL(url), folder, limits=LOOPBACK)
    assert done is not None
    return done


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
async def test_what_is_behind_a_url_is_downloaded(nginx: Nginx, folder: Path, size: int) -> None:
    """The whole file is downloaded, with its validators, and no secret is sent."""
    done = await downloaded(nginx.put("model.bin", CONTENT[:size]), folder)

    assert CONTENT[:size] == done.path.read_bytes()
    assert (size, size, 0) == (done.size, done.bytes_received, done.bytes_resumed)
    assert done.validators.etag is not None


@pytest.mark.parametrize("place", ["moved", "twice"])
async def test_redirects_are_followed(nginx: Nginx, folder: Path, place: str) -> None:
    """Also one that leads to another."""
    nginx.put("model.bin", CONTENT)

    done = await downloaded(f"{nginx.url}/{place}/model.bin", folder)

    assert CONTENT == done.path.read_bytes()


async def test_a_url_is_asked_for_as_it_is_written(folder: Path) -> None:
    """A signature may cover each letter of it, whether anybody would need to encode that or not; a fragment stays here."""
    async with running_origin(answers(head("200 OK", "Content-Length: 0"))) as origin:
        await downloaded(f"{origin.url}/a%2Fb/%7e+~(x)?X=%20a+b&empty=&a=%c3%A9#part", folder)

        assert ["/a%2Fb/%7e+~(x)?X=%20a+b&empty=&a=%c3%A9"] == [asked.path for asked in origin.asked]


async def test_what_no_url_can_hold_is_encoded(nginx: Nginx, folder: Path) -> None:
    """As browsers do: blanks, and letters beyond ASCII."""
    nginx.put("mein modell é.bin", CONTENT)

    assert CONTENT == (await downloaded(f"{nginx.url}/mein modell é.bin", folder)).path.read_bytes()


async def test_no_secret_of_this_machine_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy and no netrc of the environment is used, and no cookie is sent back."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    redirect = head("302 Found", "Location: /b", "Set-Cookie: a=b", "Content-Length: 0")

    async with running_origin(answers(redirect, head("200 OK", "Content-Length: 0"))) as origin:
        await downloaded(f"{origin.url}/a", folder)

        assert [{"host", "accept", "accept-encoding", "user-agent"}] * 2 == [
            set(asked.headers) - {"connection"} for asked in origin.asked
        ]


async def test_content_that_comes_compressed_unasked_is_refused(nginx: Nginx, folder: Path) -> None:
    """It would be stored compressed under the file's name. nginx compresses nothing, as nothing compressed is asked for."""
    packed = gzip.compress(CONTENT)
    answer = head("200 OK", "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed

    async with running_origin(answers(answer)) as origin:
        with pytest.raises(DownloadRefused, match="'gzip'"):
            await downloaded(f"{origin.url}/a", folder)
    nginx.put("words.txt", b"words " * 1000)
    assert 6000 == (await downloaded(f"{nginx.url}/compressed/words.txt", folder)).size


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Encoding: identity", "Content-Encoding: gzip"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Content-Encoding: x-gzip"],
    ],
)
async def test_content_that_is_said_to_be_compressed_in_another_way_is_refused(folder: Path, fields: list[str]) -> None:
    """By a second header, or as a transfer coding."""
    packed = gzip.compress(CONTENT)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed) if "Transfer" in fields[0] else packed
    length = [] if "Transfer" in fields[0] else [f"Content-Length: {len(packed)}"]
    async with running_origin(answers(head("200 OK", *fields, *length) + body)) as origin:
        with pytest.raises(FilestoreError):
            await downloaded(f"{origin.url}/a", folder)


async def test_content_that_comes_compressed_is_taken_under_its_own_digest(folder: Path) -> None:
    """The expected digest may be that of the bytes as they are sent."""
    packed = gzip.compress(CONTENT)
    answer = head("200 OK", "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed

    async with running_origin(answers(answer)) as origin:
        url = FileURL(f"{origin.url}/a", digest=f"sha256:{hashlib.sha256(packed).hexdigest()}")
        done = await download(url, folder, limits=LOOPBACK)
    assert done is not None
    assert packed == done.path.read_bytes()


async def test_a_file_that_has_not_changed_is_not_sent_again(nginx: Nginx, folder: Path) -> None:
    """It is known again by its ETag, or where there is none by its time."""
    for url in (nginx.put("model.bin", CONTENT), f"{nginx.url}/undated/model.bin"):
        done = await downloaded(url, folder)
        assert await download(FileURL(url), folder, limits=LOOPBACK, known=done.validators) is None

    os.utime(nginx.files / "model.bin", (1, 1))
    assert await download(FileURL(url), folder, limits=LOOPBACK, known=done.validators) is not None


async def test_chunks_without_a_length(folder: Path) -> None:
    """An answer that ends with its last chunk is whole."""
    answer = head("200 OK", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"

    async with running_origin(answers(answer)) as origin:
        assert b"hello world" == (await downloaded(f"{origin.url}/a", folder)).path.read_bytes()


@pytest.mark.parametrize(
    ("status", "asked"), [("404 Not Found", 1), ("403 Forbidden", 1), ("204 No Content", 1), ("302 Found", 1)]
)
async def test_an_answer_that_is_not_a_file(folder: Path, status: str, asked: int) -> None:
    """Its body is not used, and the error has the status. A redirect without a target is such an answer."""
    async with running_origin(answers(head(status, "Content-Length: 0"))) as origin:
        with pytest.raises(ServerError) as caught:
            await downloaded(f"{origin.url}/a?token=secret", folder)

        assert f"{origin.url}/a?... answered {status.replace(' ', ': ', 1)}" == str(caught.value)
        assert asked == len(origin.asked)


async def test_a_server_that_is_busy_is_asked_again(folder: Path) -> None:
    """An answer that says so is not the last word."""
    options = options_without_pause()
    busy = head("503 Service Unavailable", "Content-Length: 0")

    async with running_origin(answers(busy, busy, head("200 OK", "Content-Length: 0"))) as origin:
        await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK, options=options)

        assert 3 == len(origin.asked)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "name.invalid"])
async def test_a_server_that_is_not_there(folder: Path, host: str) -> None:
    """It is said at once."""
    with pytest.raises(OriginUnreachable, match=f"http://{host}/a cannot be reached: "):
        await downloaded(f"http://{host}/a", folder)


async def test_progress_is_told(nginx: Nginx, folder: Path) -> None:
    """It never moves back, and ends with the whole."""
    told: list[Progress] = []

    await download(FileURL(nginx.put("model.bin", CONTENT)), folder, limits=LOOPBACK, report=told.append)

    assert {len(CONTENT)} == {progress.total for progress in told}
    assert sorted(told, key=lambda progress: progress.done) == told
    assert (len(CONTENT), len(CONTENT)) == (told[-1].done, told[-1].moved)


async def test_space_is_reserved_before_anything_is_written(nginx: Nginx, folder: Path) -> None:
    """All of it is reserved at once if the size is known. Without space, nothing is written."""
    reserved: list[int] = []

    async def reserve(size: int) -> None:
        assert 0 == (folder / "partial").stat().st_size
        reserved.append(size)

    await download(FileURL(nginx.put("model.bin", CONTENT)), folder, limits=LOOPBACK, reserve=reserve)

    assert [len(CONTENT)] == reserved


async def test_space_for_what_has_no_stated_size(folder: Path) -> None:
    """Space is reserved as the file grows, before it is written."""
    options = DownloadOptions(reserved_size=2 << 20)
    reserved = 0

    async def reserve(size: int) -> None:
        nonlocal reserved
        assert (folder / "partial").stat().st_size <= reserved < size
        reserved = size

    answer = head("200 OK", "Transfer-Encoding: chunked") + b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n0\r\n\r\n"
    async with running_origin(answers(answer)) as origin:
        await download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK, reserve=reserve, options=options)

    assert len(CONTENT) <= reserved <= len(CONTENT) + (3 << 20)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_a_host_that_no_name_can_be(folder: Path, host: str) -> None:
    """It is refused in a sentence."""
    with pytest.raises(DownloadRefused, match="its host is malformed"):
        await downloaded(f"http://{host}/a", folder)
