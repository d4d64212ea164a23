from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from filestore.cache import Cache, CachedPath
from filestore.cache.options import CacheOptions
from filestore.core.references import Directory, File, FileURL
from filestore.download.download import DownloadLimits
from filestore.errors import LimitExceeded, NotAnArchive, OriginUnreachable, ServerError, UnexpectedContent
from filestore.repository.protocol import Repository
from filestore.transfer.push import manifest_of, push
from tests.support.generator import octets, prose
from tests.support.nginx import Nginx
from tests.support.origins import answers, head, options_without_pause, running_origin, whole
from tests.support.watched import WatchedRepository

LOOPBACK = DownloadLimits(private_allowed=True)
CONTENT = octets(1, 3_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def cache(watched: WatchedRepository, tmp_path: Path) -> Cache:
    """An empty cache, which may ask servers on this machine."""
    return Cache(tmp_path / "cache", watched, downloads=LOOPBACK)


def entries(tmp_path: Path, kind: str = "files") -> list[Path]:
    """The entries of the cache."""
    return sorted((tmp_path / "cache").glob(f"*/*/{kind}/??/??/*"))


def staged(tmp_path: Path) -> list[Path]:
    """Return the staging of downloads."""
    return [path for path in (tmp_path / "cache").glob("*/*/staging/**/*") if path.is_file()]


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip file as other programs make it: its entries deflated, with folders of their own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


async def test_a_url_becomes_a_read_only_file_with_its_plain_name(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """As a file of a repository does, and the repository is asked for none of it."""
    resolved = await cache.resolved(FileURL(nginx.put("my model.bin", CONTENT).replace(" ", "%20") + "?token=x"))

    assert ("my model.bin", CONTENT) == (resolved.path.name, resolved.path.read_bytes())
    assert 0o444 == resolved.path.stat().st_mode & 0o777
    assert (3_000_000, 0, False) == (resolved.bytes_received, resolved.bytes_reused, resolved.was_cached)
    assert [] == staged(tmp_path)


async def test_an_origin_is_asked_each_time_and_sends_once(cache: Cache, nginx: Nginx) -> None:
    """Unchanged content is not sent again: the answer is 304, and the path is the same."""
    url = nginx.put("model.bin", CONTENT)
    first = await cache.resolve(FileURL(url))
    second = await cache.resolved(File(url=url))

    assert (first, 0, True) == (second.path, second.bytes_received, second.was_cached)
    assert ["GET /model.bin 200", "GET /model.bin 304"] == [line.partition(" range")[0] for line in nginx.asked(2)]


async def test_a_file_that_has_changed_is_another_path(cache: Cache, nginx: Nginx) -> None:
    """A process that uses the older version keeps it: nothing is overwritten."""
    url = nginx.put("model.bin", CONTENT)
    first = await cache.resolve(FileURL(url))
    nginx.put("model.bin", CONTENT[1:])
    second = await cache.resolve(FileURL(url))

    assert (CONTENT, CONTENT[1:]) == (first.read_bytes(), second.read_bytes())
    assert first.name == second.name


async def test_nobody_is_asked_within_the_maximal_age(watched: WatchedRepository, tmp_path: Path, nginx: Nginx) -> None:
    """After it, and where the clock was set back, the origin is."""
    url = nginx.put("model.bin", CONTENT)
    now = 1_000_000.0
    cache = Cache(tmp_path / "cache", watched, downloads=LOOPBACK, options=CacheOptions(clock=lambda: now))
    for seconds, asked in [(0, 1), (59, 1), (61, 2), (119, 2), (122, 3), (-10, 4)]:
        now = 1_000_000.0 + seconds
        await cache.resolve(FileURL(url, max_age_seconds=60))
        assert asked == len(nginx.asked(asked))


@pytest.mark.parametrize("of", ["publisher", "us"])
async def test_nobody_is_asked_for_an_expected_digest_that_is_here(cache: Cache, nginx: Nginx, tmp_path: Path, of: str) -> None:
    """Whichever URL the bytes came from first."""
    url = nginx.put("model.bin", CONTENT)
    digest = SHA256 if of == "publisher" else str((await manifest_of(nginx.files / "model.bin")).digest)
    first = await cache.resolve(FileURL(url, digest=digest))
    (nginx.files / "model.bin").unlink()

    assert first == await cache.resolve(FileURL(url, digest=digest))
    assert "b.bin" == (await cache.resolve(FileURL(f"{nginx.url}/b.bin", digest=digest))).name
    assert 1 == len(nginx.asked(1))
    assert 1 == len(entries(tmp_path))


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "0" * 64])
async def test_bytes_with_another_digest_are_not_kept(cache: Cache, nginx: Nginx, tmp_path: Path, digest: str) -> None:
    """Neither as an entry nor in staging, and the sentence names both digests."""
    with pytest.raises(UnexpectedContent) as caught:
        await cache.resolve(FileURL(nginx.put("model.bin", CONTENT), digest=digest))

    assert digest.removeprefix("sha256:") in str(caught.value)
    assert ([], []) == (entries(tmp_path), staged(tmp_path))


async def test_a_digest_is_compared_with_what_is_here_already(cache: Cache, nginx: Nginx) -> None:
    """Content that was fetched without an expected digest is hashed, and not sent again."""
    url = nginx.put("model.bin", CONTENT)
    first = await cache.resolve(FileURL(url))

    assert first == await cache.resolve(FileURL(url, digest=SHA256))
    assert "304" == nginx.asked(2)[1].split()[2]
    for digest in ("sha256:" + "0" * 64, "0" * 64):
        with pytest.raises(UnexpectedContent):
            await cache.resolve(FileURL(url, digest=digest))
    await cache.resolve(FileURL(url, digest=SHA256))
    assert 4 == len(nginx.asked(4))


async def test_the_same_bytes_are_one_entry(cache: Cache, nginx: Nginx, watched: WatchedRepository, tmp_path: Path) -> None:
    """Two URLs and a repository have the same content: each has its name, and the disk has it once."""
    path = nginx.files / "pushed.bin"
    nginx.put("a.bin", CONTENT)
    nginx.put("pushed.bin", CONTENT)
    record = (await push(watched, path)).record

    a = await cache.resolve(FileURL(f"{nginx.url}/a.bin"))
    pushed = await cache.resolve(FileURL(f"{nginx.url}/pushed.bin"))
    watched.calls.clear()

    assert {a, pushed} == {await cache.resolve(File(digest=str(record.digest))), await cache.resolve(File(id=record.id))}
    assert a.stat().st_ino == pushed.stat().st_ino
    assert "get" not in watched.calls
    assert 1 == len(entries(tmp_path))


@pytest.mark.slow
async def test_a_zip_file_behind_a_url_is_a_directory(
    cache: Cache, nginx: Nginx, watched: WatchedRepository, tmp_path: Path
) -> None:
    """It is unpacked from the download, without `.zip` in its name. The repository is asked only for its identity."""
    files = {"a/x": prose(1, 2_000_000), "b/x": octets(2, 1_000_000), "run.sh": b"#!/bin/sh\n"}
    url = nginx.put("my_model.zip", zipped(files))

    resolved = await cache.resolved(Directory(url=url))

    assert files == {name: (resolved.path / name).read_bytes() for name in files}
    assert (resolved.path / "empty").is_dir()
    assert ("my_model", (nginx.files / "my_model.zip").stat().st_size) == (resolved.path.name, resolved.bytes_received)
    assert resolved.path == await cache.resolve(Directory(url=url))
    assert ["200", "304"] == [line.split()[2] for line in nginx.asked(2)]
    assert {"identity"} == set(watched.calls)


async def test_a_directory_needs_its_zip_file_no_more(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """After the tree is made, the zip is downloaded again only for a caller that wants the file."""
    url = nginx.put("model.zip", zipped({"a": b"a"}))
    tree = await cache.resolve(Directory(url=url))
    (entry,) = entries(tmp_path)
    entry.rename(tmp_path / "evicted")

    assert tree == await cache.resolve(Directory(url=url))
    assert ["200", "304"] == [line.split()[2] for line in nginx.asked(2)]
    assert (tmp_path / "evicted/content/model.zip").read_bytes() == (await cache.resolve(FileURL(url))).read_bytes()


async def test_what_is_not_a_zip_file_is_not_a_directory(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """It is said so, and nothing is unpacked."""
    with pytest.raises(NotAnArchive, match=r"'model.bin' cannot be unpacked"):
        await cache.resolve(Directory(url=nginx.put("model.bin", CONTENT)))

    assert ([], []) == (entries(tmp_path, "trees"), staged(tmp_path))


async def test_a_damaged_file_is_downloaded_again(cache: Cache, nginx: Nginx) -> None:
    """A file that was written to is a miss, for any answer of the origin."""
    url = nginx.put("model.bin", CONTENT)
    path = await cache.resolve(FileURL(url))
    path.chmod(0o644)
    path.write_bytes(b"damage")

    assert CONTENT == (await cache.resolve(FileURL(url))).read_bytes()
    assert ["200", "200"] == [line.split()[2] for line in nginx.asked(2)]


@pytest.mark.parametrize("how", ["gone", "busy"])
async def test_a_stale_copy_where_it_is_allowed(watched: WatchedRepository, tmp_path: Path, how: str) -> None:
    """If the origin cannot be reached, the last copy is used where that is allowed. Without a copy it is an error."""
    options = CacheOptions(download=options_without_pause())
    cache = Cache(tmp_path / "cache", watched, downloads=LOOPBACK, options=options)
    busy = head("503 Service Unavailable", "Content-Length: 0")
    async with running_origin(answers(whole(CONTENT), busy)) as origin:
        url = f"{origin.url}/model.bin"
        path = await cache.resolve(FileURL(url))
        if how == "busy":
            await expect_stale(cache, url, path, ServerError)
    if how == "gone":
        await expect_stale(cache, url, path, OriginUnreachable)


async def test_a_stale_copy_is_used_soon(watched: WatchedRepository, tmp_path: Path) -> None:
    """With a copy that may be used, a busy origin is not tried for minutes."""
    options = CacheOptions(download=options_without_pause(attempt_seconds=4))
    cache = Cache(tmp_path / "cache", watched, downloads=LOOPBACK, options=options)
    busy = head("503 Service Unavailable", "Content-Length: 0")
    async with running_origin(answers(whole(CONTENT), busy)) as origin:
        url = f"{origin.url}/model.bin"
        path = await cache.resolve(FileURL(url))
        assert path == await cache.resolve(FileURL(url, stale_ok=True))
        assert 1 + 4 == len(origin.asked)


async def expect_stale(cache: Cache, url: str, path: Path, error: type[Exception]) -> None:
    """Check that a stale copy needs permission, and the same URL and digest."""
    assert path == await cache.resolve(FileURL(url, stale_ok=True))
    for origin in (FileURL(url), FileURL(url + "2", stale_ok=True), FileURL(url, digest="0" * 64, stale_ok=True)):
        with pytest.raises(error):
            await cache.resolve(origin)


async def test_a_file_that_is_gone_is_not_a_stale_one(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """An origin that answers 404 was reached. The old copy stays for callers that expect its digest."""
    url = nginx.put("model.bin", CONTENT)
    await cache.resolve(FileURL(url, digest=SHA256))
    (nginx.files / "model.bin").unlink()

    with pytest.raises(ServerError, match="answered 404: Not Found"):
        await cache.resolve(FileURL(url, stale_ok=True))
    await cache.resolve(FileURL(url, digest=SHA256))
    assert [] == staged(tmp_path)


async def test_those_who_ask_at_once_share_one_download(cache: Cache, nginx: Nginx) -> None:
    """The origin is asked once, and only one caller gets the cost."""
    url = nginx.put("model.bin", CONTENT)

    resolved = await asyncio.gather(*(cache.resolved(FileURL(url)) for _ in range(16)))

    assert 1 == len({each.path for each in resolved})
    assert [3_000_000] == [each.bytes_received for each in resolved if not each.was_cached]
    assert 1 == len(nginx.asked(1))


@pytest.mark.slow
async def test_the_same_bytes_that_come_at_once_are_one_entry(local_repository: Repository, nginx: Nginx, tmp_path: Path) -> None:
    """Several URLs, as file and as directory, for two users of one folder, do not disturb each other."""
    content = zipped({"a": CONTENT})
    urls = [nginx.put(f"{name}.zip", content) for name in "abcd"]
    caches = [Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK) for _ in range(2)]

    async with asyncio.TaskGroup() as group:
        files = [group.create_task(cache.resolve(FileURL(url))) for url in urls for cache in caches]
        trees = [group.create_task(cache.resolve(Directory(url=url))) for url in urls for cache in caches]

    assert {content} == {task.result().read_bytes() for task in files}
    assert {CONTENT} == {(task.result() / "a").read_bytes() for task in trees}
    assert (1, 1) == (len(entries(tmp_path)), len(entries(tmp_path, "trees")))
    assert 4 == sum(line.split()[2] == "200" for line in nginx.asked(4))
    assert [] == staged(tmp_path)


async def test_a_file_that_is_too_large_leaves_nothing(local_repository: Repository, nginx: Nginx, tmp_path: Path) -> None:
    """The sentence says which setting allows more."""
    cache = Cache(tmp_path / "cache", local_repository, downloads=DownloadLimits(private_allowed=True, size=2_999_999))

    with pytest.raises(LimitExceeded, match=r"3000000, more than the limit of 2999999; .*raise the setting url_size_limit"):
        await cache.resolve(FileURL(nginx.put("model.bin", CONTENT)))

    assert ([], []) == (entries(tmp_path), staged(tmp_path))


async def test_no_secret_of_a_url_is_kept(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """Nothing in the cache says which query a URL had."""
    await cache.resolve(FileURL(nginx.put("model.bin", b"small") + "?signature=secret"))

    kept = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"secret" in content for content in kept)


async def test_what_is_cached_is_told_without_asking(cache: Cache, nginx: Nginx) -> None:
    """Only content counts for which no origin must be asked: with an expected digest, or asked for lately."""
    url = nginx.put("model.zip", zipped({"a": CONTENT}))
    path = await cache.resolve(FileURL(url))

    assert await cache.cached(FileURL(url)) is None
    assert await cache.cached(File(url=url, digest=SHA256)) is None
    assert await cache.cached(Directory(url=url, max_age_seconds=3600)) is None
    assert CachedPath(path, path.stat().st_size) == await cache.cached(FileURL(url, max_age_seconds=3600))
    assert 1 == len(nginx.asked(1))


@pytest.mark.slow
async def test_what_is_known_of_a_url_may_be_rubbish(cache: Cache, nginx: Nginx, tmp_path: Path) -> None:
    """Then nothing is known, and the origin sends it again."""
    url = nginx.put("model.bin", CONTENT)
    for rubbish in (b"", b"[]", b"{}", b'{"digest": 3}', b'{"digest": "x", "validators": 1, "asked_at": null}'):
        path = await cache.resolve(FileURL(url, digest=SHA256))
        for kept in [*(tmp_path / "cache").glob("*/*/urls/*"), *(tmp_path / "cache").glob("*/*/sha256/*")]:
            kept.write_bytes(rubbish)
        assert path == await cache.resolve(FileURL(url))


@pytest.mark.slow
async def test_a_tree_keeps_each_of_its_names(local_repository: Repository, nginx: Nginx, tmp_path: Path) -> None:
    """A name may lead to a name that leads to the tree, as where the second name comes first in the alphabet."""
    content = zipped({"a": CONTENT})
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK)
    urls = [nginx.put(f"{name}.zip", content) for name in "bac"]
    paths = [await cache.resolve(Directory(url=url)) for url in urls]
    again = [await cache.resolved(Directory(url=url)) for url in urls]
    assert paths == [each.path for each in again]
    assert [True] * 3 == [each.was_cached for each in again]
    assert {CONTENT} == {(path / "a").read_bytes() for path in paths}
