"""The files of a cache were written by another program, or replaced.

Each counts as absent or damaged: what is resolved has the right bytes, only errors of the library are raised, and nothing outside
of the cache is read, changed or removed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.cache import Cache, verify_cache
from filestore.cache.entries import FileEntry, TreeEntry, read_entry
from filestore.cache.inventory import CachedEntry, StagedEntry, discard, entries, staged, unfinished
from filestore.cache.leases import Leases
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, FileURL
from filestore.download.download import DownloadLimits
from filestore.errors import FilestoreError
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.generator import octets
from tests.support.origins import answers, running_origin, whole

CONTENT = octets(1, 300_000)
GIB = 1 << 30
BAD_TEXTS = [b"", b"null", b"[]", b"7", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"{}", b'{"files": 1}']
BAD_VALUES = [
    "1e400",
    "NaN",
    "-Infinity",
    "1" * 400,
    "-1",
    "true",
    "1.5",
    "null",
    "[]",
    "{}",
    '"x"',
    '"../../victim"',
    '"\\ud800"',
]


class Stand(NamedTuple):
    """A cache with a file, a tree and the content of a URL, and a folder that is none of its business."""

    root: Path
    repository: Repository
    file: Record
    tree: Record
    url: str
    victim: Path
    store: Path
    """The folder of the only namespace."""

    def entry(self, kind: str) -> Path:
        """The folder of the file or of the tree that was pushed."""
        digest = str((self.file if kind == "files" else self.tree).digest)
        return self.store / kind / digest[:2] / digest[2:4] / digest

    async def check(self) -> None:
        """Use everything that the cache has. The bytes are right, and the rest of the disk is as it was."""
        before = _snapshot(self.victim)
        limits = DownloadLimits(private_allowed=True)
        async with Cache(self.root, self.repository, size_limit=GIB, downloads=limits) as cache:
            for wanted in (File(id=self.file.id), Directory(id=self.tree.id), FileURL(self.url)):
                with suppress(FilestoreError):
                    await cache.cached(wanted)
                path = await cache.resolve(wanted)
                assert path.resolve().is_relative_to(self.root)
                assert (path / "inner.bin" if path.is_dir() else path).read_bytes() == CONTENT
        with suppress(FilestoreError):
            await verify_cache(self.root)
        await asyncio.to_thread(self._use)
        assert before == _snapshot(self.victim)

    def _use(self) -> None:
        leases = Leases(self.root)
        unfinished(self.root)
        items: list[CachedEntry | StagedEntry] = [*entries(self.root)]
        for item in [*items, *staged(self.root)]:
            assert 0 <= item.stored_size < GIB
            with suppress(FilestoreError):
                discard(leases, item)
        leases.close()


def _snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what a folder has: the mode and the mtime of each file, and its bytes."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
async def stand(tmp_path: Path, local_repository: Repository) -> AsyncIterator[Stand]:
    """A cache that has everything, and that no process uses."""
    source = tmp_path / "model"
    source.mkdir()
    for path in (source / "inner.bin", tmp_path / "model.bin"):
        path.write_bytes(CONTENT)
    victim = tmp_path / "victim"
    (victim / "content" / "model").mkdir(parents=True)
    for path in (
        victim / "entry.json",
        victim / "manifest",
        victim / "content" / "model.bin",
        victim / "content/model/inner.bin",
    ):
        path.write_bytes(b"precious")
    file = (await push(local_repository, tmp_path / "model.bin")).record
    tree = (await push(local_repository, source)).record
    identity = await local_repository.identity()
    store = tmp_path / "cache" / identity.id / identity.namespace
    async with running_origin(answers(*[whole(CONTENT)] * 200)) as origin:
        made = Stand(tmp_path / "cache", local_repository, file, tree, f"{origin.url}/model.bin", victim, store)
        limits = DownloadLimits(private_allowed=True)
        async with Cache(made.root, local_repository, downloads=limits) as cache:
            for wanted in (File(id=file.id), Directory(id=tree.id), FileURL(made.url)):
                await cache.resolve(wanted)
        yield made


def _json_files(stand: Stand) -> list[Path]:
    found = [path for path in stand.root.rglob("*.json") if path.is_file()]
    assert {"repositories", "records", "urls"} <= {path.parent.name for path in found}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("text", BAD_TEXTS, ids=range(len(BAD_TEXTS)))
async def test_files_that_are_no_json_objects(stand: Stand, text: bytes) -> None:
    """Empty, binary, nested without end, or of another shape: the file counts as absent."""
    for path in _json_files(stand):
        path.write_bytes(text)
    for kind in ("files", "trees"):
        (stand.entry(kind) / "manifest").write_bytes(text)
    (stand.entry("trees") / "tail").write_bytes(text)
    await stand.check()


@pytest.mark.slow
@pytest.mark.parametrize("value", BAD_VALUES)
async def test_values_that_no_cache_writes(stand: Stand, value: str) -> None:
    """A number that is none, a path, a time or a digest of another form: the file counts as absent."""
    for path in _json_files(stand):
        values = json.loads(path.read_bytes())
        for name in values:
            changed = json.dumps(values | {name: "@"}).replace('"@"', value)
            path.write_text(changed)
            for kind in Kind:
                read_entry(path.parent, kind)
        path.write_text(json.dumps(dict.fromkeys(values, "@")).replace('"@"', value))
    await stand.check()


@pytest.mark.parametrize("name", ["../victim/manifest", "/etc/passwd", "a//b", "a/../b", ".", "", "a\0b", "\ud800"], ids=range(8))
def test_watched_paths_that_lead_out_of_a_tree(tmp_path: Path, name: str) -> None:
    """Such an entry counts as absent: nothing is looked up outside of the tree."""
    values = {"mtime": 1, "size": 1, "stored_size": 1, "files": {name: [1, 1]}}
    (tmp_path / "entry.json").write_text(json.dumps(values))
    assert read_entry(tmp_path, Kind.DIRECTORY) is None


def test_entry_of_an_unknown_chunking_version(tmp_path: Path) -> None:
    """It counts as absent, because nobody here could verify it."""
    (tmp_path / "entry.json").write_text('{"size": 1, "mtime": 1, "cutting": 99}')
    assert read_entry(tmp_path, Kind.FILE) is None


async def test_unknown_chunking_version_that_was_remembered(stand: Stand) -> None:
    """The repository is asked again, so that a URL gets the digest that it has everywhere."""
    (remembered,) = (stand.root / "repositories").iterdir()
    remembered.write_text(json.dumps(json.loads(remembered.read_bytes()) | {"cutting": 99}))
    await stand.check()


LINKED = ["entry.json", "manifest", "tail", "content", "content/*", "."]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "trees"])
@pytest.mark.parametrize("inner", LINKED)
async def test_links_in_the_place_of_files_and_folders(stand: Stand, kind: str, inner: str) -> None:
    """What a link leads to is not read, not made read-only, not moved and not removed."""
    folder = stand.entry(kind)
    (path,) = [folder] if inner == "." else list(folder.glob(inner)) or [folder / inner]
    target = stand.victim if inner == "." else stand.victim / path.relative_to(folder)
    _replace(path)
    path.symlink_to(target)
    await stand.check()


@pytest.mark.parametrize("kind", ["files", "trees"])
async def test_link_to_content_that_looks_the_same(stand: Stand, kind: str) -> None:
    """Size and mtime of the target are those of the entry, and it is refused all the same: it is not in the cache."""
    (content,) = (stand.entry(kind) / "content").iterdir()
    outside = stand.victim.parent / "outside"
    outside.mkdir()
    target = outside / content.name
    shutil.copytree(content, target) if content.is_dir() else shutil.copy2(content, target)
    _replace(content)
    content.symlink_to(target)
    entry = read_entry(stand.entry(kind), Kind.FILE if kind == "files" else Kind.DIRECTORY)
    assert isinstance(entry, FileEntry | TreeEntry)
    assert not entry.is_intact(content)
    await stand.check()


@pytest.mark.parametrize("kind", ["files", "trees"])
async def test_link_in_the_place_of_a_staging_folder(stand: Stand, kind: str) -> None:
    """Nothing is staged behind it."""
    _replace(stand.entry(kind))
    (stand.store / "staging").mkdir(exist_ok=True)
    label = f"{(stand.file if kind == 'files' else stand.tree).digest}{'' if kind == 'files' else '-tree'}"
    for name in (label, f".{label}.{'0' * 32}"):
        _replace(stand.store / "staging" / name)
        (stand.store / "staging" / name).symlink_to(stand.victim)
    await stand.check()


async def test_links_in_the_place_of_locks(stand: Stand) -> None:
    """No lock file is made or opened behind a link. Locks only save work, so the cache can do without."""
    _replace(stand.entry("files"))
    links = [stand.store / "locks" / str(stand.file.digest), stand.root / "leases" / ".taking", stand.root / "leases" / ".room"]
    for link in links:
        link.parent.mkdir(exist_ok=True)
        _replace(link)
        link.symlink_to(stand.victim / "made")
    before = _snapshot(stand.victim)
    async with Cache(stand.root, stand.repository, size_limit=GIB) as cache:
        with suppress(FilestoreError):
            assert (await cache.resolve(File(id=stand.file.id))).read_bytes() == CONTENT
    await asyncio.to_thread(stand._use)
    assert before == _snapshot(stand.victim)


async def test_folders_of_no_repository(stand: Stand) -> None:
    """Folders with other names, and links to other folders, are no part of the cache and stay as they are."""
    inner = Path("files/ab/cd") / ("ab" * 32)
    for name in ("a.b/default", "x/y", f"{'0a' * 16}/..x", f"{'0a' * 16}/A", f"{'0A' * 16}/default"):
        (stand.root / name / inner).mkdir(parents=True)
    (stand.root / ("0c" * 16)).symlink_to(stand.victim)
    (stand.root / ("0d" * 16)).mkdir()
    (stand.root / ("0d" * 16) / "default").symlink_to(stand.victim)
    (stand.victim / inner).mkdir(parents=True)
    assert {str(entry.folder.parents[4]) for entry in entries(stand.root)} == {str(stand.store.parent)}
    await stand.check()
    assert (stand.root / "a.b/default" / inner).is_dir()


@pytest.mark.parametrize("name", ["entry.json", "manifest", "tail"])
async def test_pipes_in_the_place_of_files(stand: Stand, name: str) -> None:
    """A pipe that nobody writes to does not stop the cache."""
    for kind in ("files", "trees"):
        _replace(stand.entry(kind) / name)
        os.mkfifo(stand.entry(kind) / name)
    for path in _json_files(stand):
        if path.parent.name in {"repositories", "records", "urls"}:
            _replace(path)
            os.mkfifo(path)
    await stand.check()


_MEASURED = """
import asyncio, os, sys
from pathlib import Path
from filestore.backends import connect
from filestore.cache import Cache, verify_cache
from filestore.core.references import Directory, File
from tests.support.process_memory import memory

def peak():
    return memory(os.getpid(), "VmHWM")

async def main():
    root, repository, file_id, tree_id = sys.argv[1:]
    async with connect(repository) as opened, Cache(root, opened) as cache:
        await opened.record(file_id)
        before = peak()
        await cache.cached(File(id=file_id))
        await cache.cached(Directory(id=tree_id))
        await verify_cache(Path(root))
        print(peak() - before)

asyncio.run(main())
"""


async def test_files_of_a_gib(stand: Stand) -> None:
    """A small file that has become a large one is not read into memory."""
    for path in [*_json_files(stand), *(stand.entry(kind) / "manifest" for kind in ("files", "trees"))]:
        with path.open("r+b") as file:
            file.truncate(2 * GIB)
    with (stand.entry("trees") / "tail").open("r+b") as file:
        file.truncate(2 * GIB)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _MEASURED, str(stand.root), stand.repository.location, stand.file.id, stand.tree.id],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) < 160 << 20
    await stand.check()


@pytest.mark.parametrize(
    ("holder", "lease"),
    [
        ("0" * 32 + "-0-99999999999999999999-1-00000000", "key"),
        ("0" * 32 + "-0-0-1-00000000", "key"),
        ("0" * 32 + "-0-1-1-00000000", "key+" + "9" * 200),
        ("0" * 32 + "-0-1-1-00000000", "key+-1"),
        ("0" * 32 + "-0-1-1-00000000", "key+²"),
        ("0" * 32 + "-0-1-1-00000000", "../../x+1e400".replace("/", "")),
    ],
)
async def test_leases_that_no_process_writes(stand: Stand, holder: str, lease: str) -> None:
    """They end nothing and reserve nothing."""
    (stand.root / "leases" / holder).mkdir(parents=True)
    (stand.root / "leases" / holder / lease).touch()
    assert all(size == 0 for size in Leases(stand.root).held().values())
    await stand.check()


def _replace(path: Path) -> None:
    """Remove a path, so that something else can take its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        for folder in _folders(path):
            folder.chmod(0o755)
        shutil.rmtree(path)


def _folders(path: Path) -> Iterator[Path]:
    yield path
    yield from (each for each in path.rglob("*") if each.is_dir() and not each.is_symlink())
