"""What is unpacked is what `zipfile` reads, whatever the archive, its chunks, and the order in which they arrive."""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
import zipfile
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import Interrupted, InvalidArchive, LimitExceeded, NotAnArchive
from filestore.format.zip.read import TAIL_SIZE
from filestore.repository.protocol import Repository
from filestore.transfer.content_hashing import TreeHashing
from filestore.transfer.fetch_entry import find_entry
from filestore.transfer.fetch_tree import fetch_entry_tree, fetch_record_tree
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.stored_tree import EntryKind, StoredTree, read_entry
from filestore.transfer.tree_seed import TreeSeed
from tests.support.archives import Pipe, zip_of
from tests.support.fetching_trees import JumbledRepository, cut_off, memory_repository, stored_in_chunks, things_in
from tests.support.generator import octets, prose
from tests.support.secondary_digests import digests_of, expected_of
from tests.support.trees import Folder, Link, Planted, Script, entries_of, plant, random_things, standing
from tests.support.watched import WatchedRepository

KIB = 1 << 10
CONTENTS = [b"", b"1", prose(1, 1000), prose(2, 40 * KIB), octets(3, 50 * KIB), bytes(60 * KIB), octets(4, 100)]

parts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=8).filter(
    lambda part: part not in {".", ".."} and "\\" not in part and ":" not in part and part.isprintable()
)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
seeds = st.integers(0, 1 << 30)


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, dict[str, Planted]]:
    """An archive that `zipfile` wrote, in one of its ways, and the tree that it stands for."""
    file = draw(st.sampled_from([Pipe, io.BytesIO]))()
    file.write(draw(st.sampled_from([b"", b"#!/bin/sh\n", bytes(70 * KIB)])))
    things: dict[str, Planted] = {}
    with zipfile.ZipFile(file, "w") as archive:
        for path in draw(st.lists(paths, max_size=9, unique=True)):
            if any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in things):
                continue
            is_folder, is_executable = draw(st.integers(0, 7)) == 0, draw(st.booleans())
            content = b"" if is_folder else draw(st.sampled_from(CONTENTS))
            entry = zipfile.ZipInfo(f"{path}/" if is_folder else path)
            entry.create_system = 3
            entry.external_attr = (0o40755 if is_folder else 0o100755 if is_executable else 0o100644) << 16
            entry.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            entry.comment = draw(st.binary(max_size=5))
            with archive.open(entry, "w", force_zip64=draw(st.booleans())) as member:
                member.write(content)
            things[path] = Folder() if is_folder else Script(content) if is_executable else content
        archive.comment = draw(st.sampled_from([b"", b"a comment", b"c" * 65535]))
    return file.getvalue(), things


def cuts(size: int, rng: random.Random) -> list[int]:
    """Where chunks start: anywhere, some of them a few bytes long, and as if content were cut by its size."""
    if not size:
        return []
    return sorted({0, *(rng.randrange(size) for _ in range(rng.randrange(12))), *range(0, size, rng.choice([7001, 20 * KIB]))})


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Hypothesis calls plain functions."""
    asyncio.run(coroutine)


SMALL = TransferOptions(extent_min=1, copy_size=9000, gather_limit=2000)
"""So that entries of some KiB count as large."""
SMALL_BATCHES = replace(SMALL, batch_size=64 * KIB)
"""So that many batches are in flight."""


@pytest.mark.slow
@settings(max_examples=40)
@given(archives(), seeds)
def test_unpacking_is_what_zipfile_reads(made: tuple[bytes, dict[str, Planted]], seed: int) -> None:
    """Stored, deflated, streamed, Zip64, comments, preambles; cut anywhere; answers in any order; and cut off in the middle."""
    archive, things = made
    rng = random.Random(seed)

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, archive, cuts(len(archive), rng))
            jumbled = JumbledRepository(repository, rng)
            await fetch_record_tree(jumbled, record, target=folder / "target", options=SMALL_BATCHES)
            assert things == standing(folder / "target")
            other = folder / "other"
            await cut_off(repository, record, other, gets=rng.randrange(6), options=SMALL_BATCHES)
            if not other.exists():
                unpacked = await fetch_record_tree(
                    JumbledRepository(repository, rng), record, target=other, options=SMALL_BATCHES
                )
                assert sum(not isinstance(thing, Folder) for thing in things.values()) == unpacked.file_count
            assert things == standing(other)
            assert ["other", "target"] == sorted(path.name for path in folder.iterdir() if "index" not in path.name)

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


@pytest.mark.slow
@settings(max_examples=30)
@given(archives(), seeds)
def test_the_parts_are_those_of_the_whole(made: tuple[bytes, dict[str, Planted]], seed: int) -> None:
    """Each entry that is read alone, and each folder that is fetched alone, also after it was cut off."""
    archive, things = made
    rng = random.Random(seed)

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, archive, cuts(len(archive), rng))
            tree = await StoredTree.open(JumbledRepository(repository, rng), record.digest)
            listed = list(tree.entries(recursive=True))
            assert sorted(listed, key=lambda entry: entry.path.split("/")) == listed
            assert {*things, *parents(things)} == {entry.path for entry in listed}
            for entry in listed:
                assert entry == tree.entry(entry.path)
                inside = [other for other in listed if other.path.startswith(f"{entry.path}/")]
                assert inside == list(tree.entries(entry.path, recursive=True))
                children = [other for other in inside if "/" not in other.path[len(entry.path) + 1 :]]
                assert children == list(tree.entries(entry.path, recursive=False))
                if entry.kind is EntryKind.FILE:
                    content = contents_of(things[entry.path])
                    start, stop = sorted(rng.randrange(len(content) + 2) for _ in range(2))
                    for part in (slice(None), slice(start, stop)):
                        pieces = read_entry(JumbledRepository(repository, rng), tree, entry, part.start or 0, part.stop)
                        assert content[part] == b"".join([piece async for piece in pieces])
            for path in parents(things):
                await fetched_part(repository, record, path, folder / "target", rng)
                expected = {name.removeprefix(f"{path}/"): thing for name, thing in things.items() if name.startswith(f"{path}/")}
                assert expected == standing(folder / "target")

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


def parents(things: Iterable[str]) -> set[str]:
    """The folders that are not empty."""
    return {path[:end] for path in things for end, letter in enumerate(path) if letter == "/"}


async def fetched_part(repository: Repository, record: Record, path: str, target: Path, rng: random.Random) -> None:
    """Fetch a folder of a tree in place of what is there, after an attempt that was cut off."""
    found = await find_entry(repository, record, Reference(id=record.id, entry_path=path))
    left = rng.randrange(4)

    async def cut(verb: str) -> None:
        nonlocal left
        left -= verb == "get"
        if left < 0:
            raise Interrupted("the repository", "the test")

    with suppress(Interrupted):
        watched = WatchedRepository(JumbledRepository(repository, rng), before=cut)
        await fetch_entry_tree(watched, record, found, target=target, force=True, options=SMALL_BATCHES)
    await fetch_entry_tree(JumbledRepository(repository, rng), record, found, target=target, force=True, options=SMALL_BATCHES)


@pytest.mark.slow
@settings(max_examples=12)
@given(seeds, st.integers(0, 3))
def test_another_version_of_a_tree_costs_what_changed(seed: int, change_count: int) -> None:
    """Whatever changed, the tree is right; and what did not change is not received, from a seed or from what is replaced."""
    rng = random.Random(seed)
    things = random_things(seed, count=15, large_count=1)
    changed = dict(things)
    for name in rng.sample(sorted(things), min(change_count, len(things))):
        changed[name] = octets(rng.randrange(99), rng.randrange(5000))
    for name in list(changed):
        if any(other.startswith(f"{name}/") for other in changed):
            del changed[name]

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            old = await push(repository, plant(folder / "old", things), name="model.zip")
            new = await push(repository, plant(folder / "new", changed), name="model.zip")
            for way in ("seed", "force"):
                target = folder / way
                first = await fetch_record_tree(
                    repository, old.record, target=folder / f"first-{way}" if way == "seed" else target, options=SMALL
                )
                jumbled = JumbledRepository(repository, rng)
                tree_seed = TreeSeed(first.path, first.manifest, first.tail)
                found = await fetch_record_tree(
                    jumbled,
                    new.record,
                    target=target,
                    force=way == "force",
                    seeds=[tree_seed] if way == "seed" else [],
                    options=SMALL,
                )
                assert changed == standing(target)
                known = {chunk.digest for chunk in first.manifest.chunks}
                # The end of the zip is read before anything else is looked at.
                start = found.size - max(len(found.tail), TAIL_SIZE)
                spans = zip(found.manifest.chunks, found.manifest.offsets(), strict=True)
                assert known & set(jumbled.received) <= {chunk.digest for chunk, at in spans if at + chunk.size > start}

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


@pytest.mark.slow
@settings(max_examples=40)
@given(archives(), seeds, st.data())
def test_a_damaged_archive_is_refused_or_read_as_ever(
    made: tuple[bytes, dict[str, Planted]], seed: int, data: st.DataObject
) -> None:
    """No damage is unpacked otherwise than in memory, where `zipfile` was the oracle, and none leaves anything behind."""
    archive = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(archive) - 1))
        archive[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        expected: dict[str, Planted] | None = things_in(bytes(archive))
    except Exception:  # noqa: BLE001  # whatever: it is not to be unpacked
        expected = None
    rng = random.Random(seed)

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, bytes(archive), cuts(len(archive), rng))
            jumbled = JumbledRepository(repository, rng)
            if expected is not None:
                await fetch_record_tree(jumbled, record, target=folder / "target", options=SMALL_BATCHES)
                assert expected == standing(folder / "target")
                return
            with pytest.raises(InvalidArchive):
                await fetch_record_tree(jumbled, record, target=folder / "target", options=SMALL_BATCHES)
            assert [] == [path for path in folder.iterdir() if "index" not in path.name]

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


async def digests_in(repository: Repository, tree: StoredTree) -> bytes:
    """The secondary digests of all files, each read in its turn."""

    async def nothing(_: object) -> None:
        return None

    return await TreeHashing(repository, tree, pause=nothing).run({}, keep=nothing)


@pytest.mark.slow
@settings(max_examples=40)
@given(archives(), seeds)
def test_digests_are_those_of_what_is_unpacked(made: tuple[bytes, dict[str, Planted]], seed: int) -> None:
    """In one pass over the chunks, wherever they are cut."""
    archive, things = made

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, archive, cuts(len(archive), random.Random(seed)))
            tree = await StoredTree.open(repository, record.digest)
            paths = [member.path for member in tree.members if not member.is_folder]
            expected = b"".join(digests_of(contents_of(things[path])).packed for path in paths)
            assert expected == await digests_in(repository, tree)

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


@pytest.mark.slow
@settings(max_examples=40)
@given(archives(), seeds, st.data())
def test_digests_of_a_damaged_archive_are_those_of_what_a_reader_gets(
    made: tuple[bytes, dict[str, Planted]], seed: int, data: st.DataObject
) -> None:
    """Or there are none, with an error of ours."""
    archive = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(archive) - 1))
        archive[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=1, max_size=3))

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, bytes(archive), cuts(len(archive), random.Random(seed)))
            try:
                tree = await StoredTree.open(repository, record.digest)
                packed = await digests_in(repository, tree)
            except (InvalidArchive, NotAnArchive, LimitExceeded):
                return
            assert await expected_of(repository, tree) == packed

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


@pytest.mark.slow
@settings(max_examples=15)
@given(seeds, seeds)
def test_push_then_unpack_is_the_identity(tree_seed: int, seed: int) -> None:
    """Names, bytes, executable bits, empty folders and links, names that differ by case or Unicode form included."""
    things = random_things(tree_seed, count=25, large_count=1) | {"link": Link("."), "empty": Folder()}
    rng = random.Random(seed)
    archive = zip_of(entries_of(things), {name: contents_of(thing) for name, thing in things.items()})

    async def check(folder: Path) -> None:
        async with memory_repository(folder) as repository:
            record = await stored_in_chunks(repository, archive, cuts(len(archive), rng))
            jumbled = JumbledRepository(repository, rng)
            await fetch_record_tree(jumbled, record, target=folder / "target", options=SMALL_BATCHES)
            assert things == standing(folder / "target")

    with tempfile.TemporaryDirectory() as folder:
        run(check(Path(folder)))


def contents_of(thing: Planted) -> bytes:
    """What a file of a tree holds."""
    if isinstance(thing, Script):
        return thing.content
    return thing if isinstance(thing, bytes) else b""
