"""URLs of the repository's own server, as static files and as inputs of a run: they mean the stored file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from filestore.cache import Cache
from filestore.core.records import Record
from filestore.core.references import Directory, File, FileURL
from filestore.core.signing import SigningKeys, signed_path
from filestore.download.download import DownloadLimits
from filestore.errors import DownloadRefused, InvalidReference, NotFound
from filestore.runtime import Adapter
from filestore.runtime.errors import InvalidRun
from filestore.transfer.push import push
from tests.support import sdk_values
from tests.support.watched import WatchedRepository

URL = "http://models.example:8080"
CONTENT = b"what is in the file"


@pytest.fixture
async def file(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A file in the repository."""
    (tmp_path / "my file?.txt").write_bytes(CONTENT)
    return (await push(watched, tmp_path / "my file?.txt")).record


def adapter_of(watched: WatchedRepository, folder: Path, url: str = URL) -> Adapter:
    """An adapter of a server at `url`, with an empty cache."""
    # No address can be downloaded from, so only the stored file can be the answer.
    return Adapter(Cache(folder, watched, downloads=DownloadLimits(private_allowed=False)), watched, url=url)


async def both(adapter: Adapter, url: str, *, kind: Any = File) -> list[bytes]:
    """What a pipeline reads that has `url` as a static file, and as an input."""
    declared = {File: sdk_values.FileURL, Directory: sdk_values.Directory}[kind]
    static = FileURL(url) if kind is File else Directory(url=url)
    prepared = await adapter.prepare([static])
    async with adapter.inputs([{"type": "file", "value": None, "file_path": url}], [declared]) as (path,):
        assert isinstance(path, Path)
        return [each.read_bytes() if each.is_file() else b"a folder" for each in (*prepared.paths, path)]


@pytest.mark.slow
@pytest.mark.parametrize("base", [URL, "https://models.example:8080", "HTTP://Models.Example:8080", f"{URL}/"])
async def test_every_form_of_a_url(watched: WatchedRepository, tmp_path: Path, file: Record, base: str) -> None:
    """Signed, expired, with a signature that is not ours, plain, by content or by record: the file, fetched once."""
    expired = signed_path(
        SigningKeys.first(b"s" * 32), "GET", f"/{file.run_path}", namespace="default", expires_at=int(time.time()) - 9
    )
    quoted = file.path.replace(" ", "%20").replace("?", "%3F")
    paths = [await watched.sign(file.id), expired, quoted, f"{quoted}?a=b#c", f"v3/pipeline_files/download/{file.id}"]
    paths.append(f"storage/{file.run_path.replace(' ', '%20').replace('?', '%3F')}")
    for number, path in enumerate(paths):
        adapter = adapter_of(watched, tmp_path / f"cache-{number}")
        assert [CONTENT, CONTENT] == await both(adapter, f"{base}/{path.lstrip('/')}"), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080", "https://proxy.example/store", "http://10.0.0.5"],
)
async def test_a_server_has_more_than_one_name(watched: WatchedRepository, tmp_path: Path, file: Record, base: str) -> None:
    """Also below a folder of a proxy: the path names a record of this repository."""
    adapter = adapter_of(watched, tmp_path / "cache", "http://127.0.0.1:8080")
    quoted = file.path.replace(" ", "%20").replace("?", "%3F")
    for path in (await watched.sign(file.id), quoted):
        assert [CONTENT, CONTENT] == await both(adapter, f"{base}/{path}")


async def test_a_url_of_a_stored_directory_is_unpacked(watched: WatchedRepository, tmp_path: Path) -> None:
    """As a `Directory`, it is the tree."""
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model/weights").write_bytes(CONTENT)
    record = (await push(watched, tmp_path / "my_model")).record

    assert [b"a folder"] * 2 == await both(
        adapter_of(watched, tmp_path / "cache"), f"{URL}/{await watched.sign(record.id)}", kind=Directory
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/my_file.txt",
        f"http://127.0.0.1:9/pipeline_files/{'ab/cd/abcd' + '0' * 60}/a",
        "http://127.0.0.1:9/run_files/31/7e/317e304d-e816-4036-86b2-7ad82b208b70/a",
        "http://127.0.0.1:9/run_files/31/7e/nothing/a",
        f"http://127.0.0.1:9/v3/pipeline_files/download/file_{'0' * 32}",
        "http://127.0.0.1:9/v3/pipeline_files/download/nothing",
    ],
)
async def test_any_other_url_is_downloaded(watched: WatchedRepository, tmp_path: Path, url: str) -> None:
    """Also one of the same form whose path does not name a record here: it may be of another filestore server."""
    with pytest.raises(DownloadRefused, match="url_private_allowed"):
        await both(adapter_of(watched, tmp_path / "cache"), url)


async def test_a_url_of_ours_for_a_removed_file(watched: WatchedRepository, tmp_path: Path, file: Record) -> None:
    """It is not downloaded from ourselves: the error says that the file is not there."""
    url = f"{URL}/{await watched.sign(file.id)}"
    await watched.remove(file.id)

    with pytest.raises(NotFound):
        await adapter_of(watched, tmp_path / "cache").prepare([FileURL(url)])


async def test_a_url_of_ours_that_is_not_of_a_file(watched: WatchedRepository, tmp_path: Path) -> None:
    """It is refused in one sentence, without its query."""
    adapter = adapter_of(watched, tmp_path / "cache")

    with pytest.raises(InvalidReference, match="it is a URL of this server, but not that of a stored file") as refused:
        await adapter.prepare([FileURL(f"{URL}/healthz?secret")])
    assert "secret" not in str(refused.value)
    with pytest.raises(InvalidRun, match="it is a URL of this server, but not that of a stored file"):
        async with adapter.inputs([{"type": "file", "file_path": f"{URL}/healthz"}]):
            pass


async def test_an_expected_digest_still_counts(watched: WatchedRepository, tmp_path: Path, file: Record) -> None:
    """The file that is used has the digest; without such a file, nothing is used in its place."""
    adapter = adapter_of(watched, tmp_path / "cache")
    url = f"{URL}/{await watched.sign(file.id)}"

    (path,) = (await adapter.prepare([FileURL(url, digest=str(file.digest))])).paths
    assert CONTENT == path.read_bytes()
    with pytest.raises(NotFound):
        await adapter.prepare([FileURL(url, digest="0" * 64)])


async def test_a_cached_file_needs_no_repository(watched: WatchedRepository, tmp_path: Path, file: Record) -> None:
    """Also where the host of its URL is not known: a second start works while the server is stopped."""
    adapter = adapter_of(watched, tmp_path / "cache")
    url = f"https://proxy.example/{file.path.replace(' ', '%20').replace('?', '%3F')}"
    await adapter.prepare([FileURL(url)])
    before = len(watched.calls)
    await adapter.prepare([FileURL(url)])

    assert before == len(watched.calls)
