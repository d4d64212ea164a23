from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import threading
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from filestore.cache import Cache, verify_cache
from filestore.cache.options import CacheOptions
from filestore.core.progress import Progress
from filestore.core.records import Kind
from filestore.core.references import FileURL
from filestore.download import download as downloads
from filestore.download.download import DownloadLimits, DownloadResult, PartialDownload, Validators
from filestore.errors import (
    CacheFull,
    Interrupted,
    LimitExceeded,
    ServerError,
    Stalled,
    StorageError,
    StorageFull,
    TransferError,
    UnexpectedContent,
)
from filestore.repository.protocol import Repository
from filestore.system.threads import DISK_THREADS, thread_pool
from tests.support.cancels import cancelled_at_every_await
from tests.support.commands import start_module
from tests.support.disks import small_disk
from tests.support.downloads import ResolveResult
from tests.support.generator import octets
from tests.support.nginx import Nginx
from tests.support.origins import ATTEMPTS, Answer, Asked, answers, hanging, head, options_without_pause, running_origin, whole

MIB = 1 << 20
CONTENT = octets(1, 4 * MIB)
LOOPBACK = DownloadLimits(private_allowed=True)
IMPATIENT = DownloadLimits(private_allowed=True, stall_seconds=1, first_byte_seconds=60)
NO_PAUSE = options_without_pause()
CACHE_OPTIONS = CacheOptions(download=NO_PAUSE)
download = partial(downloads.download, options=NO_PAUSE)
BEGUN = head("200 OK", f"Content-Length: {len(CONTENT)}", 'ETag: "a"', "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT")


def start(tmp_path: Path, cache: str, url: str, *options: str) -> subprocess.Popen[str]:
    """Start a process that resolves a URL."""
    return start_module("tests.support.downloads", tmp_path / "repository", tmp_path / cache, url, *options)


def result(process: subprocess.Popen[str]) -> ResolveResult:
    """Return the result that it prints at its end."""
    said, errors = process.communicate()
    assert (0, "") == (process.returncode, errors)
    return ResolveResult(*json.loads(said))


def part(start: int) -> bytes:
    """Return the answer to a request for the rest, with only the required headers. Source: RFC 9110, section 15.3.7."""
    return (
        head(
            "206 Partial Content",
            'ETag: "a"',
            f"Content-Range: bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}",
            f"Content-Length: {len(CONTENT) - start}",
        )
        + CONTENT[start:]
    )


async def downloaded(url: str, folder: Path, limits: DownloadLimits) -> DownloadResult:
    """Download a file of which nothing is known."""
    done = await download(FileURL(url), folder, limits=limits)
    assert done is not None
    return done


@pytest.mark.slow
async def test_an_origin_that_stalls_is_asked_for_the_rest(folder: Path) -> None:
    """Bytes that have arrived are not requested again."""
    async with running_origin(hanging(BEGUN + CONTENT[: 3 * MIB], part(3 * MIB))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)

        assert [None, f"bytes={3 * MIB}-"] == [asked.headers.get("range") for asked in origin.asked]
    assert (CONTENT, len(CONTENT)) == (done.path.read_bytes(), done.bytes_received)


@pytest.mark.slow
async def test_an_origin_that_always_stalls(folder: Path) -> None:
    """The download fails with a sentence that says how long nothing came. What has arrived is kept for the next time."""

    async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(BEGUN + CONTENT[:MIB] if "range" not in asked.headers else part(MIB)[: -3 * MIB])
        await writer.drain()
        await asked.until_gone()

    async with running_origin(stall) as origin:
        with pytest.raises(Stalled, match=r"moved no byte for 1 seconds"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=IMPATIENT)
    async with running_origin(hanging(b"", part(MIB))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)
    assert (CONTENT, MIB) == (done.path.read_bytes(), done.bytes_resumed)


async def test_an_origin_that_hangs_up_without_an_answer_is_asked_once_for_each_attempt(folder: Path) -> None:
    """No library below asks a second time: retry is in one place."""
    async with running_origin(answers(b"")) as origin:
        with pytest.raises(Interrupted):
            await download(FileURL(f"{origin.url}/file"), folder, limits=LOOPBACK)
        assert ATTEMPTS == len(origin.asked)


async def test_an_origin_that_is_away_for_minutes(folder: Path) -> None:
    """Attempts are not counted. An origin that has answered is tried for the time of the setting since its last MiB."""
    away = head("503 Service Unavailable", "Content-Length: 0")
    options = options_without_pause(attempt_seconds=30)

    async def twice_away(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.number not in {10, 20}:
            writer.write(away)
        elif asked.number == 10:
            writer.write(BEGUN + CONTENT[: 3 * MIB])
        else:
            writer.write(part(int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))))
        await writer.drain()

    async with running_origin(twice_away) as origin:
        done = await downloads.download(FileURL(f"{origin.url}/a"), folder, limits=LOOPBACK, options=options)
    assert done is not None
    assert CONTENT == done.path.read_bytes()
    async with running_origin(answers(away)) as origin:
        with pytest.raises(ServerError):
            await downloads.download(FileURL(f"{origin.url}/b"), folder, limits=LOOPBACK, options=options)
        assert 11 == len(origin.asked)


async def test_an_origin_that_never_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the time to the first byte ends the request, and no second one is sent."""
    limits = DownloadLimits(private_allowed=True, first_byte_seconds=60)
    loop = asyncio.get_running_loop()
    now = loop.time

    async def silence(asked: Asked, _: asyncio.StreamWriter) -> None:
        # The time passes once the request is here, however long that takes.
        monkeypatch.setattr(loop, "time", lambda: now() + 60)
        await asked.until_gone()

    async with running_origin(silence) as origin:
        with pytest.raises(Stalled, match=r"moved no byte for 60 seconds"):
            await download(FileURL(f"{origin.url}/a"), folder, limits=limits)
        assert 1 == len(origin.asked)


async def test_a_throttled_origin_is_left_and_continued(nginx: Nginx, folder: Path) -> None:
    """A download that was cut continues at the same byte of the same version."""
    nginx.put("model.bin", CONTENT)
    received = 0

    async def until_throttled() -> None:
        def tell(progress: Progress) -> None:
            nonlocal received
            received = progress.moved
            if received >= 3 * MIB:
                asyncio.get_running_loop().call_soon(task.cancel)

        await download(FileURL(f"{nginx.url}/throttled/model.bin"), folder, limits=LOOPBACK, report=tell)

    task = asyncio.create_task(until_throttled())
    with pytest.raises(asyncio.CancelledError):
        await task
    done = await downloaded(f"{nginx.url}/model.bin", folder, LOOPBACK)

    assert CONTENT == done.path.read_bytes()
    assert (len(CONTENT) - received, received) == (done.bytes_received, done.bytes_resumed)


async def test_what_has_come_is_kept_by_a_cancel_while_the_disk_is_busy(nginx: Nginx, folder: Path) -> None:
    """The bytes of a write that waits for the disk are not requested again."""
    nginx.put("model.bin", CONTENT)
    disk_is_free = threading.Event()
    received = 0

    async def free_disk() -> None:
        for _ in range(20):
            await asyncio.sleep(0)  # the cancel is heard
        disk_is_free.set()

    async def until_busy() -> None:
        def tell(progress: Progress) -> None:
            nonlocal received
            received = progress.moved
            if received >= MIB and not busy:
                pool = thread_pool("disk", DISK_THREADS)
                busy.extend(pool.submit(disk_is_free.wait) for _ in range(DISK_THREADS))
                loop.call_soon(task.cancel)
                freeing.append(loop.create_task(free_disk()))

        await download(FileURL(f"{nginx.url}/throttled/model.bin"), folder, limits=LOOPBACK, report=tell)

    loop = asyncio.get_running_loop()
    busy: list[Future[bool]] = []
    freeing: list[asyncio.Task[None]] = []
    task = loop.create_task(until_busy())
    with pytest.raises(asyncio.CancelledError):
        await task
    await freeing[0]
    done = await downloaded(f"{nginx.url}/model.bin", folder, LOOPBACK)

    assert CONTENT == done.path.read_bytes()
    assert (len(CONTENT) - received, received) == (done.bytes_received, done.bytes_resumed)


@pytest.mark.parametrize("place", ["", "undated/"])
async def test_what_is_whole_already_is_hardly_asked_for(nginx: Nginx, folder: Path, place: str) -> None:
    """A process died after the last byte, before the entry was made. One byte tells whether the file is still current."""
    nginx.put("model.bin", CONTENT)
    os.utime(nginx.files / "model.bin", (1_700_000_000, 1_700_000_000))
    await downloaded(f"{nginx.url}/{place}model.bin", folder, LOOPBACK)
    done = await downloaded(f"{nginx.url}/{place}model.bin", folder, LOOPBACK)

    assert CONTENT == done.path.read_bytes()
    assert (1, len(CONTENT) - 1) == (done.bytes_received, done.bytes_resumed)
    assert f"range=bytes={len(CONTENT) - 1}-" in nginx.asked(2)[1]


async def test_a_file_that_changed_since_is_downloaded_again(nginx: Nginx, folder: Path) -> None:
    """The origin answers with all of it. Two versions are never mixed."""
    url = nginx.put("model.bin", CONTENT)
    await downloaded(url, folder, LOOPBACK)
    other = octets(2, len(CONTENT))
    (nginx.files / "model.bin").unlink()
    nginx.put("model.bin", other)
    os.utime(nginx.files / "model.bin", (1, 1))

    done = await downloaded(url, folder, LOOPBACK)

    assert (other, len(other), 0) == (done.path.read_bytes(), done.bytes_received, done.bytes_resumed)


async def test_without_a_validator_a_download_begins_again(nginx: Nginx, folder: Path) -> None:
    """Without a validator, the rest may be of another version. A date of just now is not a validator either."""
    nginx.put("model.bin", CONTENT)
    for place in ("untagged/", "undated/"):
        await downloaded(f"{nginx.url}/{place}model.bin", folder, LOOPBACK)
        assert 0 == (await downloaded(f"{nginx.url}/{place}model.bin", folder, LOOPBACK)).bytes_resumed


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"size": 99999999, "total": 4194304, "validators": ["x", null, false]}'])
async def test_what_is_said_of_a_partial_file_may_be_rubbish(nginx: Nginx, folder: Path, state: bytes) -> None:
    """If the state of a partial file is damaged, the download begins again."""
    url = nginx.put("model.bin", CONTENT)
    (await downloaded(url, folder, LOOPBACK)).path.write_bytes(octets(3, len(CONTENT)))
    (folder / "state.json").write_bytes(state)

    assert CONTENT == (await downloaded(url, folder, LOOPBACK)).path.read_bytes()


async def test_a_damaged_partial_file_is_found_by_the_digest(nginx: Nginx, local_repository: Repository, tmp_path: Path) -> None:
    """If a digest is expected and differs, the download begins again, and the damaged file is not kept."""
    url = nginx.put("model.bin", CONTENT)
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
    sha256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    with pytest.raises(UnexpectedContent):
        await cache.resolve(FileURL(url, digest="0" * 64))
    entry_store = await cache._open_entry_store()
    (staging,) = [entry_store.root / "staging" / lock.name for lock in (entry_store.root / "locks").iterdir()]
    staging.mkdir()
    (await downloaded(url, staging, LOOPBACK)).path.write_bytes(b"damage" + CONTENT[6:])

    assert CONTENT == (await cache.resolve(FileURL(url, digest=sha256))).read_bytes()
    assert not staging.exists()


@pytest.mark.slow
async def test_a_process_that_is_killed_in_the_middle_is_continued(
    nginx: Nginx, local_repository: Repository, tmp_path: Path
) -> None:
    """Durable bytes are not downloaded again, and nothing that it left is taken for the file."""
    url = nginx.put("model.bin", CONTENT)
    killed = start(tmp_path, "cache", url, "--kill-at", str(3 * MIB))
    killed.communicate()
    assert -signal.SIGKILL == killed.returncode
    assert [] == list((tmp_path / "cache").glob("*/*/files"))

    resolved = result(start(tmp_path, "cache", url))

    assert CONTENT == Path(resolved.path).read_bytes()
    assert len(CONTENT) == resolved.bytes_received + resolved.bytes_reused
    assert MIB <= resolved.bytes_reused
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_resolve_that_is_killed_at_any_call_is_continued(
    nginx: Nginx, local_repository: Repository, tmp_path: Path
) -> None:
    """After a kill at any system call, the next resolve gives the whole file, and leaves no other files."""
    url = nginx.put("model.bin", CONTENT[:600_000])
    said, errors = start(tmp_path, "caches", url, "--kill-at-every-call").communicate()
    assert "" == errors
    assert 20 < int(said)
    for place in range(1, int(said) + 1):
        cache = tmp_path / "caches" / str(place)
        path = await Cache(cache, local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS).resolve(FileURL(url))
        assert CONTENT[:600_000] == path.read_bytes()
        assert [] == list(cache.glob("*/*/staging/*"))
        assert [] == await verify_cache(cache)


@pytest.mark.slow
async def test_a_resolve_that_is_cancelled_at_any_await_is_continued(
    nginx: Nginx, local_repository: Repository, tmp_path: Path
) -> None:
    """After a cancel at any await, the next resolve gives the whole file, and leaves no other files."""
    origin = FileURL(nginx.put("model.bin", CONTENT[:MIB]))
    caches = (tmp_path / "caches" / str(number) for number in count())
    used: list[Path] = []

    async def resolve_again() -> None:
        used.append(next(caches))
        cache = Cache(used[-1], local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
        # `resolve` runs this in its own task. Here the cancelled task must be the one that waits.
        await cache._urls(await cache._open_entry_store()).obtain(origin, Kind.FILE)

    places = [place async for place in cancelled_at_every_await(resolve_again)]
    assert 15 < len(places)
    for cache in used:
        path = await Cache(cache, local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS).resolve(origin)
        assert CONTENT[:MIB] == path.read_bytes()
        assert [] == list(cache.glob("*/*/staging/*"))


@pytest.mark.slow
async def test_processes_that_resolve_at_once_download_once(nginx: Nginx, local_repository: Repository, tmp_path: Path) -> None:
    """The other processes wait, or learn that nothing has changed. Nobody overwrites data that another one uses."""
    url = nginx.put("model.bin", CONTENT)

    found = [result(process) for process in [start(tmp_path, "cache", url) for _ in range(3)]]

    assert 1 == len({each.path for each in found})
    assert CONTENT == Path(found[0].path).read_bytes()
    assert len(CONTENT) == sum(each.bytes_received for each in found)


async def test_who_seems_to_be_gone_is_passed_by(nginx: Nginx, local_repository: Repository, tmp_path: Path) -> None:
    """A holder of the lock was not seen for a minute. Another process continues its download elsewhere."""
    url = nginx.put("model.bin", CONTENT)
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
    entry_store = await cache._open_entry_store()
    await cache.resolve(FileURL(nginx.put("other.bin", b"")))
    (label,) = [path.name for path in (entry_store.root / "locks").glob("url-*")]
    held = entry_store.root / "locks" / label
    (staging := entry_store.root / "staging" / label).mkdir()
    await downloaded(url, staging, LOOPBACK)
    nginx.put("other.bin", CONTENT)
    with held.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(held, (1, 1))
        resolved = await cache.resolved(FileURL(f"{nginx.url}/other.bin"))

    assert CONTENT == resolved.path.read_bytes()
    assert [] == list((entry_store.root / "staging").iterdir())


@pytest.mark.slow
async def test_a_disk_that_is_too_small(nginx: Nginx, local_repository: Repository, tmp_path: Path) -> None:
    """The error comes before anything is downloaded, and nothing is left."""
    with small_disk(tmp_path / "disk", "size=2m"):
        cache = Cache(tmp_path / "disk/cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
        with pytest.raises(CacheFull, match=r"bytes are needed, its|bytes are needed, \d+ are free"):
            await cache.resolve(FileURL(nginx.put("model.bin", CONTENT)))
        assert [] == [*(tmp_path / "disk/cache").glob("*/*/files/*"), *(tmp_path / "disk/cache").glob("*/*/staging/*")]


async def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """An answer of unknown length shows its size only during the download. With more space it is continued."""
    chunk = b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n0\r\n\r\n"
    answer = head("200 OK", "Transfer-Encoding: chunked", 'ETag: "a"') + chunk
    with small_disk(tmp_path / "disk", "size=2m") as change:
        async with running_origin(answers(answer)) as origin:
            with pytest.raises(StorageFull):
                await download(FileURL(f"{origin.url}/a"), tmp_path / "disk", limits=LOOPBACK)
            change("size=20m")
            done = await downloaded(f"{origin.url}/a", tmp_path / "disk", LOOPBACK)
            assert CONTENT == done.path.read_bytes()
            assert ['"a"', "bytes="] == [origin.asked[1].headers["if-range"], origin.asked[1].headers["range"][:6]]


def test_a_piece_that_fills_the_disk_is_kept_in_part(tmp_path: Path) -> None:
    """What the disk took of it is not asked for again."""
    with small_disk(tmp_path / "disk", "size=2m"):
        begun, later = PartialDownload(tmp_path / "disk"), PartialDownload(tmp_path / "disk")
        begun.open()
        begun.begin(Validators(etag='"a"'), None)
        with pytest.raises(StorageFull):
            begun.write([CONTENT])
        begun.close()
        later.open()
        later.close()
        assert 1 * MIB < later.size < 2 * MIB
        assert CONTENT[: later.size] == later.path.read_bytes()


@pytest.mark.slow
async def test_a_limit_holds_during_a_download(nginx: Nginx, local_repository: Repository, tmp_path: Path) -> None:
    """The least recently used entry is evicted.

    A file that is larger than the limit is refused before it is downloaded.
    """
    cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS, size_limit=7 * MIB)
    async with cache.lease(FileURL(nginx.put("a.bin", CONTENT))) as first:
        with pytest.raises(CacheFull):
            await cache.resolve(FileURL(nginx.put("b.bin", CONTENT[1:])))
        assert first.exists()

    assert CONTENT[1:] == (await cache.resolve(FileURL(f"{nginx.url}/b.bin"))).read_bytes()
    assert not first.exists()
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


async def test_a_cache_that_is_read_only(local_repository: Repository, tmp_path: Path) -> None:
    """Content that needs no request is a hit. Everything else fails with one sentence."""
    with small_disk(tmp_path / "disk", "size=20m") as change:
        cache = Cache(tmp_path / "disk/cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
        async with running_origin(answers(whole(CONTENT))) as origin:
            path = await cache.resolve(FileURL(f"{origin.url}/a"))
            change("ro")
            assert path == await cache.resolve(FileURL(f"{origin.url}/a", max_age_seconds=3600))
            with pytest.raises(StorageError, match="Read-only file system"):
                await cache.resolve(FileURL(f"{origin.url}/b"))


def tail_as_whole(start: int, stop: int | None = None, *, status: str = "200 OK", total: int | str = len(CONTENT)) -> bytes:
    """Answer with a part of the file under any status, as some origins answer a range."""
    stop = len(CONTENT) if stop is None else stop
    content_range = f"Content-Range: bytes {start}-{stop - 1}/{total}"
    return head(status, 'ETag: "a"', content_range, f"Content-Length: {stop - start}") + CONTENT[start:stop]


@pytest.mark.slow
@pytest.mark.parametrize("total", [len(CONTENT), "*"])
async def test_tail_under_status_200_is_not_taken_for_the_whole(folder: Path, total: int | str) -> None:
    """The range of an answer counts, not its status. After a cut, the rest is appended to the partial file."""
    async with running_origin(hanging(BEGUN + CONTENT[: 3 * MIB], tail_as_whole(3 * MIB, total=total))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)

        assert [None, f"bytes={3 * MIB}-"] == [asked.headers.get("range") for asked in origin.asked]
    assert (CONTENT, len(CONTENT)) == (done.path.read_bytes(), done.bytes_received)


async def test_whole_under_status_200_with_its_range_is_taken(folder: Path) -> None:
    """An origin may state the range of a whole file too."""
    async with running_origin(answers(tail_as_whole(0))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, LOOPBACK)

    assert CONTENT == done.path.read_bytes()


@pytest.mark.slow
async def test_another_size_of_the_same_version_is_never_taken(folder: Path) -> None:
    """The tail comes as if it were the whole file, with the same version and without a range. It is refused each time."""
    lie = head("200 OK", f"Content-Length: {MIB}", 'ETag: "a"') + CONTENT[3 * MIB :]
    async with running_origin(hanging(BEGUN + CONTENT[: 3 * MIB], lie, part(0), lie, BEGUN + CONTENT)) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)

    assert CONTENT == done.path.read_bytes()


async def test_another_size_of_an_unknown_version_must_be_said_twice(folder: Path) -> None:
    """Without a version, the file may have changed, or its tail may have come. One answer alone does not tell which."""
    begun = head("200 OK", f"Content-Length: {len(CONTENT)}") + CONTENT[:MIB]
    tail = whole(CONTENT[MIB:])
    async with running_origin(answers(begun, tail, whole(CONTENT), whole(CONTENT))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, LOOPBACK)
        assert 4 == len(origin.asked)
    assert CONTENT == done.path.read_bytes()


@pytest.mark.slow
async def test_size_that_is_known_is_not_forgotten_by_an_answer_without_one(folder: Path) -> None:
    """A chunked answer that ends too early is not a whole file, if the same version had a size before."""
    packed = head("200 OK", 'ETag: "a"', "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (MIB, CONTENT[:MIB])
    async with running_origin(hanging(BEGUN + CONTENT[: 3 * MIB], packed, part(MIB))) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)

    assert CONTENT == done.path.read_bytes()


async def test_small_slices_that_close_cleanly_are_all_asked_for(folder: Path) -> None:
    """Any number of slices is requested. The origin chose their size, so they are not failures."""
    size = 100 << 10

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = "206 Partial Content" if "range" in asked.headers else "200 OK"
        writer.write(tail_as_whole(start, min(start + size, len(CONTENT)), status=status))
        await writer.drain()

    async with running_origin(answer) as origin:
        done = await downloaded(f"{origin.url}/a", folder, LOOPBACK)

        assert -(-len(CONTENT) // size) == len(origin.asked)
    assert CONTENT == done.path.read_bytes()


async def test_first_part_that_comes_again_and_again_ends(folder: Path) -> None:
    """An origin that only ever sends the beginning is given up."""
    async with running_origin(answers(tail_as_whole(0, MIB))) as origin:
        with pytest.raises(Interrupted):
            await downloaded(f"{origin.url}/a", folder, LOOPBACK)


CHUNKED = head("200 OK", "Transfer-Encoding: chunked", 'ETag: "a"') + b"%x\r\n%b\r\n" % (MIB, CONTENT[:MIB])


async def given_up(url: str, folder: Path, limits: DownloadLimits = LOOPBACK) -> None:
    """Download, and expect an error and no file."""
    with pytest.raises(TransferError):
        await downloaded(url, folder, limits)


@pytest.mark.slow
@pytest.mark.parametrize("start", [2 * MIB, 3 * MIB - 1])
async def test_part_that_does_not_go_on_ends(folder: Path, start: int) -> None:
    """An origin that sends only bytes that have arrived already is given up."""
    async with running_origin(
        hanging(BEGUN + CONTENT[: 3 * MIB], tail_as_whole(start, start + 1, status="206 Partial Content"))
    ) as origin:
        await given_up(f"{origin.url}/a", folder, IMPATIENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        answers(tail_as_whole(0, MIB, total="*")),
        hanging(CHUNKED, tail_as_whole(MIB, 2 * MIB, status="206 Partial Content", total="*")),
    ],
)
async def test_part_of_a_file_of_unknown_size_is_not_taken_for_the_whole(folder: Path, answer: Answer) -> None:
    """Nothing says that there are no more bytes."""
    async with running_origin(answer) as origin:
        await given_up(f"{origin.url}/a", folder, IMPATIENT)


async def test_part_that_is_shorter_than_its_range_is_not_taken_for_the_whole(folder: Path) -> None:
    """All bytes of a range must come."""
    lie = head("200 OK", 'ETag: "a"', f"Content-Range: bytes 0-{len(CONTENT) - 1}/*", f"Content-Length: {MIB}") + CONTENT[:MIB]
    async with running_origin(answers(lie)) as origin:
        await given_up(f"{origin.url}/a", folder)


@pytest.mark.slow
async def test_file_of_unknown_size_ends_where_no_range_exists(folder: Path) -> None:
    """Parts of an unknown total are requested until the origin says that no byte is left."""
    end = head("416 Range Not Satisfiable", f"Content-Range: bytes */{len(CONTENT)}", "Content-Length: 0")
    parts = [tail_as_whole(start, start + MIB, status="206 Partial Content", total="*") for start in range(MIB, 4 * MIB, MIB)]
    async with running_origin(hanging(CHUNKED, *parts, end)) as origin:
        done = await downloaded(f"{origin.url}/a", folder, IMPATIENT)
    assert CONTENT == done.path.read_bytes()


SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def slices(*last: bytes, size: int = MIB) -> Answer:
    """Return an origin that sends one slice at a time without a total, and `last` at the end, one by one."""
    ends = iter(last)

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = "206 Partial Content" if "range" in asked.headers else "200 OK"
        more = start < len(CONTENT)
        writer.write(tail_as_whole(start, min(start + size, len(CONTENT)), status=status, total="*") if more else next(ends))
        await writer.drain()

    return answer


NO_MORE = [
    head("416 Range Not Satisfiable", f"Content-Range: bytes */{len(CONTENT)}", "Content-Length: 0"),
    head("416 Range Not Satisfiable", "Content-Length: 0"),
    whole(CONTENT, 'ETag: "a"'),
    head("200 OK", "Transfer-Encoding: chunked", 'ETag: "a"') + b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT),
]
"""The ways to say that there are no bytes after the last one."""


@pytest.mark.parametrize("digest", [SHA256, "0" * 64])
@pytest.mark.parametrize("last", NO_MORE, ids=["416", "416 without a size", "all", "all in chunks"])
async def test_slices_of_a_file_of_unknown_size_are_all_taken_where_a_digest_is_expected(
    folder: Path, last: bytes, digest: str
) -> None:
    """The digest tells whether the bytes are right. It does not tell that the first slice is the whole file."""
    async with running_origin(slices(last)) as origin:
        done = await download(FileURL(f"{origin.url}/a", digest=digest), folder, limits=LOOPBACK)

        ranges = [None, *(f"bytes={start}-" for start in range(MIB, 5 * MIB, MIB))]
        assert ranges == [asked.headers.get("range") for asked in origin.asked]
    assert done is not None
    assert CONTENT == done.path.read_bytes()


@pytest.mark.parametrize("size", [MIB, len(CONTENT)])
async def test_slices_of_a_file_of_unknown_size_end_where_a_total_appears(folder: Path, size: int) -> None:
    """The total comes with the last slice, or with one that has arrived in part before."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = "206 Partial Content" if start else "200 OK"
        stop = min(start + size, len(CONTENT)) if start else MIB
        writer.write(tail_as_whole(start, stop, status=status, total=len(CONTENT) if stop == len(CONTENT) else "*"))
        await writer.drain()

    async with running_origin(answer) as origin:
        done = await download(FileURL(f"{origin.url}/a", digest=SHA256), folder, limits=LOOPBACK)

        assert 1 + 3 * MIB // min(size, 3 * MIB) == len(origin.asked)
    assert done is not None
    assert CONTENT == done.path.read_bytes()


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "0" * 64])
async def test_slices_of_a_file_of_unknown_size_with_another_digest_are_not_kept(
    local_repository: Repository, tmp_path: Path, digest: str
) -> None:
    """The error is that of unexpected content, after all of it has arrived."""
    async with running_origin(slices(*NO_MORE[:1])) as origin:
        cache = Cache(tmp_path / "cache", local_repository, downloads=LOOPBACK, options=CACHE_OPTIONS)
        with pytest.raises(UnexpectedContent):
            await cache.resolve(FileURL(f"{origin.url}/a", digest=digest))
        assert 5 == len(origin.asked)
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


async def test_slices_without_end_end_at_the_limit(folder: Path) -> None:
    """An origin that always has one more slice is stopped by the limit."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        writer.write(
            head("206 Partial Content" if start else "200 OK", 'ETag: "a"', f"Content-Range: bytes {start}-{start + 9}/*")
        )
        writer.write(b"0123456789")
        await writer.drain()

    limits = DownloadLimits(private_allowed=True, size=95)
    async with running_origin(answer) as origin:
        with pytest.raises(LimitExceeded):
            await download(FileURL(f"{origin.url}/a", digest=SHA256), folder, limits=limits)
        assert 10 == len(origin.asked)


async def test_slice_of_a_file_of_unknown_size_that_comes_again_and_again_ends(folder: Path) -> None:
    """A slice must bring new bytes, also if a digest is expected."""
    parts = [tail_as_whole(0, MIB, total="*"), tail_as_whole(MIB - 9, MIB, status="206 Partial Content", total="*")]
    async with running_origin(answers(*parts)) as origin:
        with pytest.raises(Interrupted):
            await download(FileURL(f"{origin.url}/a", digest=SHA256), folder, limits=LOOPBACK)


@pytest.mark.parametrize("content", [CONTENT, b""])
async def test_range_without_bytes_beside_the_whole_does_not_count(folder: Path, content: bytes) -> None:
    """Some origins state the size of the file in that way."""
    async with running_origin(answers(whole(content, f"Content-Range: bytes */{len(content)}"))) as origin:
        assert content == (await downloaded(f"{origin.url}/a", folder, LOOPBACK)).path.read_bytes()


async def test_file_that_became_shorter_and_states_no_size_any_more(folder: Path) -> None:
    """Without a version, the missing size must come twice. Then the old size is forgotten."""
    begun = head("200 OK", f"Content-Length: {len(CONTENT)}") + CONTENT[:MIB]
    chunked = head("200 OK", "Transfer-Encoding: chunked") + b"5\r\n01234\r\n0\r\n\r\n"
    async with running_origin(answers(begun, chunked)) as origin:
        assert b"01234" == (await downloaded(f"{origin.url}/a", folder, LOOPBACK)).path.read_bytes()


@pytest.mark.parametrize(
    "changed", [{"validators": [7, None, False]}, {"validators": ['"a"\r\nX: y', None, False]}, {"total": "20"}, {"size": None}]
)
async def test_damaged_state_of_a_download_is_none(folder: Path, changed: dict[str, object]) -> None:
    """Saved state is checked when it is read. If it is damaged, the download begins with the first byte."""
    (folder / "partial").write_bytes(CONTENT[:10])
    state = {"size": 10, "total": 20, "validators": ['"a"', None, False]} | changed
    (folder / "state.json").write_text(json.dumps(state))
    async with running_origin(answers(whole(CONTENT))) as origin:
        assert CONTENT == (await downloaded(f"{origin.url}/a", folder, LOOPBACK)).path.read_bytes()
