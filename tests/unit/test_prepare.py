from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.digest import Digest
from filestore.core.records import Record
from filestore.core.references import Directory, File, FileURL
from filestore.download.download import DownloadLimits
from filestore.errors import InvalidReference, NotFound, Unreachable
from filestore.repository.protocol import Repository
from filestore.runtime import Adapter
from filestore.runtime.prepare import prepare
from filestore.transfer.push import push
from tests.support import sdk_values
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.nginx import running_nginx
from tests.support.server import running_server
from tests.support.watched import WatchedRepository

MIB = 1 << 20


class Ordered(WatchedRepository):
    """A repository that records in which order files were asked for."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.fetched: list[Digest] = []

    async def manifest(self, digest: Digest) -> bytes:
        self.fetched.append(digest)
        return await super().manifest(digest)


@pytest.fixture
def ordered(local_repository: Repository) -> Ordered:
    """Return a repository that counts what it is asked for."""
    return Ordered(local_repository)


async def stored(repository: Repository, tmp_path: Path, sizes: Sequence[int]) -> list[Record]:
    """Files of those sizes, each of its own content."""
    records = []
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.bin").write_bytes(octets(number, size))
        records.append((await push(repository, tmp_path / f"{number}.bin")).record)
    return records


async def test_a_start_says_what_it_took(ordered: Ordered, tmp_path: Path) -> None:
    """Bytes over the network the first time, from the cache the second; paths in the order asked, the same file once."""
    small, large = await stored(ordered, tmp_path, [MIB, 3 * MIB])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/weights").write_bytes(octets(9, 100_000))
    folder = (await push(ordered, tmp_path / "folder")).record
    files = [File(id=small.id), File(id=large.id), Directory(folder.run_path), File(id=small.id)]

    cold = await Adapter(Cache(tmp_path / "cache", ordered), ordered).prepare(files)
    assert ["0.bin", "1.bin", "folder", "0.bin"] == [path.name for path in cold.paths]
    assert octets(1, 3 * MIB) == cold.paths[1].read_bytes()
    assert 4 * MIB + folder.size <= cold.bytes_received < 4 * MIB + folder.size + 10_000
    assert (0, 0) == (cold.bytes_cached, cold.bytes_reused)

    ordered.calls.clear()
    warm = await Adapter(Cache(tmp_path / "cache", ordered), ordered).prepare(files)
    assert cold.paths == warm.paths
    assert (0, 4 * MIB + folder.size, 0) == (warm.bytes_received, warm.bytes_cached, warm.bytes_reused)
    assert [] == ordered.calls


async def test_the_largest_comes_first(ordered: Ordered, tmp_path: Path) -> None:
    """This holds for every order of the arguments. Cached files are not asked for."""
    records = await stored(ordered, tmp_path, [1000, 300_000, 20_000, 100_000])
    cache = Cache(tmp_path / "cache", ordered)
    await cache.resolve(File(id=records[3].id))
    ordered.fetched.clear()
    await prepare(cache, ordered, [File(id=record.id) for record in records], files_at_once=1)
    assert [records[place].digest for place in (1, 2, 0)] == ordered.fetched


@pytest.mark.slow
async def test_another_version_gives_what_it_has(ordered: Ordered, tmp_path: Path) -> None:
    """Chunks that a tuned model shares with a cached one are not received."""
    content = octets(1, 8 * MIB)
    (tmp_path / "base.bin").write_bytes(content)
    (tmp_path / "tuned.bin").write_bytes(content[: 6 * MIB] + octets(2, 2 * MIB))
    base, tuned = [(await push(ordered, tmp_path / f"{name}.bin")).record for name in ("base", "tuned")]
    adapter = Adapter(Cache(tmp_path / "cache", ordered), ordered)
    await adapter.prepare([File(id=base.id)])
    prepared = await adapter.prepare([File(id=tuned.id), File(id=base.id)])
    assert 2 * MIB <= prepared.bytes_received < 7 * MIB
    assert (8 * MIB, True) == (prepared.bytes_cached, prepared.bytes_reused > 2 * MIB)


@pytest.mark.slow
async def test_a_second_start_touches_no_network(tmp_path: Path) -> None:
    """The server is down by then: files named by id, digest or path are there, one that was never fetched is not."""
    with running_server(tmp_path / "root", port=lasting_port()) as server:
        async with connect(server.url, token=server.token) as repository:
            first, second, third = await stored(repository, tmp_path, [MIB, 1000, 2000])
            files = [File(id=first.id), File(digest=str(second.digest)), File(second.path)]
            cold = await Adapter(Cache(tmp_path / "cache", repository), repository).prepare(files)
    async with connect(server.url, token=server.token) as repository:
        adapter = Adapter(Cache(tmp_path / "cache", repository), repository)
        warm = await adapter.prepare(files)
        assert (cold.paths, 0) == (warm.paths, warm.bytes_received)
        with pytest.raises(Unreachable):
            await adapter.prepare([*files, File(id=third.id)])


async def test_values_of_the_sdk(ordered: Ordered, tmp_path: Path) -> None:
    """Values of a graph have a `remote_id` or a remote path. Their URLs are resolved too, which the SDK does not do."""
    (record,) = await stored(ordered, tmp_path, [1000])
    with running_nginx(tmp_path / "nginx") as nginx:
        url = nginx.put("labels.json", b"[]")
        cache = Cache(tmp_path / "cache", ordered, downloads=DownloadLimits(private_allowed=True))
        prepared = await Adapter(cache, ordered).prepare(
            [
                sdk_values.File(remote_id=record.id, path=Path("/somewhere/else")),
                sdk_values.File(path=Path(f"/{record.path}")),
                sdk_values.File(url=url),
                sdk_values.FileURL(url),
                FileURL(url),
            ]
        )
    assert ["0.bin"] * 2 + ["labels.json"] * 3 == [path.name for path in prepared.paths]
    assert b"[]" == prepared.paths[3].read_bytes()
    assert ["GET /labels.json 200"] == [" ".join(line.split()[:3]) for line in nginx.asked(1)]


@pytest.mark.parametrize(
    "value", ["path", 3, None, sdk_values.File(), sdk_values.File(path=Path("weights.bin")), File("weights.bin")]
)
async def test_what_names_nothing(ordered: Ordered, tmp_path: Path, value: object) -> None:
    """Is an error before anything is fetched; a file that was never uploaded is one, too."""
    (record,) = await stored(ordered, tmp_path, [1000])
    with pytest.raises(InvalidReference):
        await Adapter(Cache(tmp_path / "cache", ordered), ordered).prepare([File(id=record.id), value])
    assert [] == ordered.fetched


async def test_one_that_is_gone_stops_the_start(ordered: Ordered, tmp_path: Path) -> None:
    """It is named; nothing is fetched in vain."""
    kept, gone = await stored(ordered, tmp_path, [1000, 2000])
    await ordered.remove(gone.id)
    with pytest.raises(NotFound, match=gone.id):
        await Adapter(Cache(tmp_path / "cache", ordered), ordered).prepare([File(id=kept.id), File(id=gone.id)])
    assert [] == ordered.fetched


async def test_nothing_to_prepare(ordered: Ordered, tmp_path: Path) -> None:
    """Takes nothing."""
    prepared = await Adapter(Cache(tmp_path / "cache", ordered), ordered).prepare([])
    assert ((), 0, 0, 0) == (prepared.paths, prepared.bytes_received, prepared.bytes_cached, prepared.bytes_reused)
