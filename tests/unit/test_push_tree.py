from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.progress import Progress
from filestore.core.records import Kind
from filestore.errors import InvalidName, SourceChanged, SourceRefused
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository, TransferLimits
from filestore.transfer import push as push_module
from filestore.transfer.parallelism import Parallelism, push_parallelism
from filestore.transfer.push import PushResult, manifest_of, plan_push, push
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from tests.support.cancels import cancelled_at_every_await
from tests.support.chunking import scan
from tests.support.generator import octets
from tests.support.golden import weights
from tests.support.models import safetensors_file, torch_file
from tests.support.trees import Folder, Link, Planted, Script, plant, random_tree
from tests.support.watched import WatchedRepository

KIB = 1 << 10
LATER = 3_000_000_000
"""Nanoseconds after which a file that was just written counts as settled."""

THINGS: dict[str, Planted] = {
    "a/first.txt": octets(1, 5 * KIB),
    "a/second.txt": octets(2, 7 * KIB),
    "b.safetensors": octets(3, 700 * KIB),
    "c/third.txt": octets(4, 3 * KIB),
    "c/run.sh": Script(b"#!/bin/sh\n"),
    "d.safetensors": octets(5, 900 * KIB),
    "empty": Folder(),
    "z.txt": octets(6, 2 * KIB),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files and two large ones, in three runs."""
    return plant(tmp_path / "my_model", THINGS)


@pytest.fixture
async def push_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PushCache]:
    """A push cache to which everything looks settled, as it is some seconds later."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + LATER)
    with PushCache(tmp_path / "push_cache") as push_cache:
        yield push_cache


def _zip_of(root: Path) -> bytes:
    with TreeSource(walk(root)) as source:
        scan(source)
        content = bytearray(source.size)
        source.read_into(memoryview(content), 0)
    return bytes(content)


async def _digests(repository: Repository, pushed: PushResult) -> set[Digest]:
    manifest = Manifest.parse(await repository.manifest(pushed.record.digest))
    return {chunk.digest for chunk in manifest.chunks}


def _read_size(*names: str) -> int:
    size = 0
    for name in names:
        match THINGS[name]:
            case Script(content):
                size += len(content)
            case bytes(content):
                size += len(content)
    return size


async def test_a_directory_is_a_record_of_its_kind(watched: WatchedRepository, tree: Path) -> None:
    """It has the name that the SDK gives it and the size of its zip; folders do not count as files."""
    pushed = await push(watched, tree)
    record = pushed.record
    assert (Kind.DIRECTORY, "my_model.zip", len(_zip_of(tree))) == (record.kind, record.name, record.size)
    assert 7 == pushed.file_count
    assert _read_size(*(name for name in THINGS if name != "empty")) == pushed.bytes_read


@pytest.mark.parametrize("ending", [".", "a/.."])
async def test_a_directory_has_the_name_of_the_folder_that_is_meant(watched: WatchedRepository, tree: Path, ending: str) -> None:
    """`filestore push .` uses the name of the current folder."""
    pushed = await push(watched, Path(f"{tree}/{ending}"))
    assert "my_model.zip" == pushed.record.name


async def test_a_name_that_is_given_is_kept(watched: WatchedRepository, tree: Path) -> None:
    """As for a file; and one that cannot be kept is refused before anything is read."""
    assert "v2.zip" == (await push(watched, tree, name="v2.zip")).record.name
    calls = len(watched.calls)
    with pytest.raises(InvalidName):
        await push(watched, tree, name="a/b/c")
    assert calls == len(watched.calls)


async def test_the_content_is_a_zip_that_other_tools_read(tree: Path) -> None:
    """Every file with its bytes, its executable bit, and empty folders."""
    with zipfile.ZipFile(io.BytesIO(_zip_of(tree))) as archive:
        assert None is archive.testzip()
        assert {name + "/" * isinstance(thing, Folder) for name, thing in THINGS.items()} == set(archive.namelist())
        assert 0o755 == archive.getinfo("c/run.sh").external_attr >> 16 & 0o777


async def test_equal_trees_have_equal_digests(tmp_path: Path) -> None:
    """Times, other permissions and the order in which files were made do not matter."""
    first = plant(tmp_path / "first", THINGS)
    second = plant(tmp_path / "second", dict(reversed(THINGS.items())))
    for path in second.rglob("*.txt"):
        path.chmod(0o400)
        os.utime(path, (0, 0))
    assert await manifest_of(first) == await manifest_of(second)
    (second / "z.txt").chmod(0o700)
    assert await manifest_of(first) != await manifest_of(second)


async def test_large_files_share_their_chunks_with_the_same_files_alone(watched: WatchedRepository, tmp_path: Path) -> None:
    """A file of 256 KiB and more, and the files inside it, are not sent again."""
    things: dict[str, Planted] = {
        "exactly.bin": octets(1, SEGMENT_MIN),
        "model.safetensors": safetensors_file(weights()),
        "model.pt": torch_file(weights()),
    }
    tree = plant(tmp_path / "tree", things)
    fingerprint = set()
    for name in things:
        fingerprint |= await _digests(watched, await push(watched, tree / name))
    pushed = await push(watched, tree)
    new = await _digests(watched, pushed) - fingerprint
    assert pushed.bytes_sent < 2 * KIB
    assert 4 == len(new)  # the runs before, between and behind them


async def test_an_unchanged_directory_is_not_read(watched: WatchedRepository, tree: Path, push_cache: PushCache) -> None:
    """The same record again, without a byte of content."""
    first = await push(watched, tree, push_cache=push_cache)
    again = await push(watched, tree, push_cache=push_cache)
    assert (first.record.id, 0, 0, first.record.size) == (
        again.record.id,
        again.bytes_read,
        again.bytes_sent,
        again.bytes_shared,
    )


async def test_worker_processes_are_for_large_files_that_are_read(
    watched: WatchedRepository, tmp_path: Path, push_cache: PushCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many start is decided neither by small files nor by what has not changed."""
    tree = plant(tmp_path / "tree", {"a": octets(1, 5 << 20), "b": octets(2, 6 << 20), "c": octets(3, 3 << 20), "d": b"small"})
    sizes: list[int] = []

    def parallelism(size: int, limits: TransferLimits, *, file_count: int) -> Parallelism:
        sizes.append(size)
        return push_parallelism(size, limits, file_count=file_count)

    monkeypatch.setattr(push_module, "push_parallelism", parallelism)
    for changed in ("d", "a", "d", "c"):
        await push(watched, tree, push_cache=push_cache)
        (tree / changed).write_bytes((tree / changed).read_bytes()[::-1])
    await push(watched, tree, push_cache=push_cache)
    assert sizes == [11 << 20, 0, 5 << 20, 0, 0]


async def test_rehash_reads_it_all_the_same(watched: WatchedRepository, tree: Path, push_cache: PushCache) -> None:
    """`rehash` is for users who do not trust file times."""
    first = await push(watched, tree, push_cache=push_cache)
    again = await push(watched, tree, push_cache=push_cache, rehash=True)
    assert (first.bytes_read, 0) == (again.bytes_read, again.bytes_sent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "read"),
    [
        ("a/second.txt", ["a/first.txt", "a/second.txt", "z.txt"]),
        ("c/third.txt", ["c/third.txt", "c/run.sh", "z.txt"]),
        ("z.txt", ["z.txt"]),
        ("d.safetensors", ["c/third.txt", "c/run.sh", "d.safetensors", "z.txt"]),
    ],
)
async def test_runs_and_files_in_which_nothing_changed_are_not_read(
    watched: WatchedRepository, tree: Path, push_cache: PushCache, changed: str, read: list[str]
) -> None:
    """Only changed files are read. A header segment also changes with the header of the file after it."""
    await push(watched, tree, push_cache=push_cache)
    content = (tree / changed).read_bytes()
    (tree / changed).write_bytes(content[::-1])
    again = await push(watched, tree, push_cache=push_cache)
    assert _read_size(*read) == again.bytes_read
    assert (await manifest_of(tree)).digest == again.record.digest


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rename", "chmod", "remove", "add", "empty"])
async def test_changes_of_names_and_modes_are_seen(
    watched: WatchedRepository, tree: Path, push_cache: PushCache, change: str
) -> None:
    """A push with the push cache gives the same digest as a push that reads everything."""
    await push(watched, tree, push_cache=push_cache)
    match change:
        case "rename":
            (tree / "a" / "first.txt").rename(tree / "c" / "moved.txt")
        case "chmod":
            (tree / "b.safetensors").chmod(0o755)
        case "remove":
            (tree / "c" / "run.sh").unlink()
        case "add":
            (tree / "e.bin").write_bytes(octets(9, 300 * KIB))
        case _:
            (tree / "empty").rmdir()
    again = await push(watched, tree, push_cache=push_cache)
    assert (await manifest_of(tree)).digest == again.record.digest


async def test_a_file_that_changed_just_before_is_read_again(
    watched: WatchedRepository, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 2 s of its last change a file may change again without its times showing it."""
    planted_at = min(path.stat().st_ctime_ns for path in tree.rglob("*"))
    monkeypatch.setattr(time, "time_ns", lambda: planted_at + 1_000_000_000)
    with PushCache(tmp_path / "push_cache") as push_cache:
        first = await push(watched, tree, push_cache=push_cache)
        again = await push(watched, tree, push_cache=push_cache)
    assert first.bytes_read == again.bytes_read


@pytest.mark.slow
@pytest.mark.parametrize("fingerprint", [b"", b"tree1", b"tree1" + b"\xff" * 40, b"another"])
async def test_a_damaged_push_cache_entry_is_as_good_as_none(
    watched: WatchedRepository, tree: Path, push_cache: PushCache, fingerprint: bytes
) -> None:
    """It only saves work."""
    first = await push(watched, tree, push_cache=push_cache)
    manifest = Manifest.parse(await watched.manifest(first.record.digest))
    push_cache.record(await watched.identity(), tree, manifest, fingerprint)
    again = await push(watched, tree, push_cache=push_cache)
    assert (first.bytes_read, first.record.id) == (again.bytes_read, again.record.id)


async def test_what_the_repository_lost_is_sent_again(
    local_repository: LocalRepository, tree: Path, push_cache: PushCache
) -> None:
    """Chunks of headers too, which are nowhere on disk: the zip is put together at their offsets."""
    first = await push(local_repository, tree, push_cache=push_cache)
    lost = list(await _digests(local_repository, first))
    async with local_repository._index.transaction() as transaction:
        await transaction.forget_chunks(DEFAULT_NAMESPACE, lost)
    again = await push(local_repository, tree, push_cache=push_cache)
    assert (first.record.id, first.bytes_sent, first.record.size) == (again.record.id, again.bytes_sent, again.bytes_read)


@pytest.mark.parametrize("damage", ["truncate", "grow", "touch", "remove", "replace"])
@pytest.mark.parametrize("name", ["a/first.txt", "d.safetensors"])
async def test_a_file_that_changes_while_it_is_pushed_fails_the_push(
    local_repository: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch, damage: str, name: str
) -> None:
    """Between the walk and its reading; nothing is recorded."""
    path = tree / name

    def walk_then_damage(root: Path, **arguments: object) -> object:
        walked = walk(root, **arguments)  # type: ignore[arg-type]  # passed on
        match damage:
            case "truncate":
                os.truncate(path, 10)
            case "grow":
                path.write_bytes(path.read_bytes() + b"x")
            case "touch":
                os.utime(path, (0, 0))
            case "remove":
                path.unlink()
            case _:
                path.rename(path.with_name("old"))
                path.symlink_to("old")
        return walked

    monkeypatch.setattr(push_module, "walk", walk_then_damage)
    with pytest.raises(SourceChanged, match=path.name):
        await push(local_repository, tree)
    assert [] == await local_repository.records()


async def test_a_directory_without_files_can_be_pushed(watched: WatchedRepository, tmp_path: Path) -> None:
    """An empty one, and one that holds empty folders only."""
    (tmp_path / "empty").mkdir()
    first = await push(watched, tmp_path / "empty")
    second = await push(watched, plant(tmp_path / "folders", {"a/b": Folder(), "c": Folder()}))
    assert (22, 0, 0) == (first.record.size, first.file_count, second.file_count)
    with zipfile.ZipFile(io.BytesIO(_zip_of(tmp_path / "folders"))) as archive:
        assert ["a/b/", "c/"] == archive.namelist()


async def test_links_are_kept_where_that_is_asked(watched: WatchedRepository, tmp_path: Path) -> None:
    """A link's content is where it leads; one that leads out of the tree is refused by name."""
    tree = plant(tmp_path / "tree", {"file": b"x", "link": Link("file")})
    kept = await push(watched, tree, symlinks=Symlinks.KEEP)
    followed = await push(watched, tree)
    assert kept.record.digest != followed.record.digest
    (tree / "out").symlink_to("../../etc")
    with pytest.raises(SourceRefused, match=r"/out was refused: .*leads out of the directory"):
        await push(watched, tree, symlinks=Symlinks.KEEP)


async def test_progress_counts_files_and_bytes(watched: WatchedRepository, tree: Path) -> None:
    """Both reach the end, and never go back."""
    seen: list[Progress] = []
    pushed = await push(watched, tree, report=seen.append)
    assert (pushed.record.size, 7, 7) == (seen[-1].done, seen[-1].file_count, seen[-1].files_done)
    for before, after in pairwise(seen):
        assert before.done <= after.done
        assert before.files_done <= after.files_done


async def test_a_plan_tells_what_a_push_would_send(watched: WatchedRepository, tree: Path) -> None:
    """By entry, in decoded bytes; it sends and records nothing."""
    first = await plan_push(watched, tree)
    assert {"identity", "missing"} == set(watched.calls)
    assert (first.size, first.size, 0) == (len(_zip_of(tree)), first.bytes_new, first.bytes_shared)
    assert all(entry.size == entry.bytes_new for entry in first.entries)
    pushed = await push(watched, tree)
    assert first.digest == pushed.record.digest
    (tree / "b.safetensors").write_bytes(octets(8, 700 * KIB))
    second = {entry.name: entry.bytes_new for entry in (await plan_push(watched, tree)).entries}
    assert (700 * KIB, 0) == (min(second["b.safetensors"], 700 * KIB), second["d.safetensors"] // KIB)


async def test_a_plan_of_a_file_has_one_entry(watched: WatchedRepository, tree: Path) -> None:
    """It is shown like a directory that holds just it."""
    await push(watched, tree)
    found = await plan_push(watched, tree / "b.safetensors")
    assert [("b.safetensors", 700 * KIB, 0)] == [astuple(entry) for entry in found.entries]


async def test_a_push_that_is_cancelled_leaves_no_record_and_can_be_repeated(
    local_repository: Repository, tmp_path: Path
) -> None:
    """At every await; descriptors are closed (a leak is a warning, which is an error)."""
    tree = plant(tmp_path / "small", {"a": b"1", "b": octets(1, 300 * KIB)})
    expected = (await manifest_of(tree)).digest
    async for _ in cancelled_at_every_await(lambda: push(local_repository, tree)):
        assert {expected} >= {record.digest for record in await local_repository.records()}
    assert expected == (await push(local_repository, tree)).record.digest


@pytest.mark.parametrize("seed", range(3))
async def test_any_part_of_the_zip_can_be_put_together(tmp_path: Path, seed: int) -> None:
    """At every offset, as when a chunk must be sent again."""
    with TreeSource(walk(random_tree(tmp_path / "tree", seed))) as source:
        scan(source)
        whole = memoryview(bytearray(source.size))
        source.read_into(whole, 0)
        for offset in range(0, source.size, 9_973):
            part = memoryview(bytearray(min(40_000, source.size - offset)))
            source.read_into(part, offset)
            assert whole[offset : offset + len(part)] == part
