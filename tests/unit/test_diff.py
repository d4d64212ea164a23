"""What is different between two stored files or directories, or a local path and a stored one."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from filestore.core.manifest import MANY_CHUNKS, Manifest
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, InvalidInput, LimitExceeded, NotFound, SourceUnreadable
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.transfer.diff import Difference, FileDifference, diff
from filestore.transfer.diff_files import FileComparison
from filestore.transfer.diff_sides import stored_side
from filestore.transfer.diff_tensors import Status, compare_tensors
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_ranges import ReadLimit, StoredRanges
from tests.support.fetching_trees import memory_repository, stored
from tests.support.generator import octets
from tests.support.models import Tensor, ZipEntry, gguf_file, safetensors_file, tensor, zip_file
from tests.support.trees import Folder, Link, Planted, Script, plant
from tests.support.watched import WatchedRepository

MIB = 1 << 20
SMALL = tensor("norm", 700, seed=1, dtype="F32")
LARGE = tensor("weight.0", 600, 600, seed=2, dtype="F32")
OTHER = tensor("weight.1", 2 * MIB, seed=3, dtype="I8")
TENSORS = [SMALL, LARGE, OTHER]
BIN = octets(4, 9 * MIB)


def changed(item: Tensor) -> Tensor:
    """The tensor with another last byte."""
    return item._replace(data=item.data[:-1] + bytes([item.data[-1] ^ 1]))


def tree(**changes: Planted | None) -> dict[str, Planted]:
    """A model folder, of which some files are other ones or absent."""
    things: dict[str, Planted] = {
        "config.json": b'{"layers": 2}',
        "empty": b"",
        "latest": Link("config.json"),
        "logs": Folder(),
        "m/model.safetensors": safetensors_file(TENSORS),
        "m/run.sh": Script(b"#!/bin/sh\n"),
        "z.bin": BIN,
    }
    things |= {name: thing for name, thing in changes.items() if thing is not None}
    return {name: thing for name, thing in things.items() if name not in changes or changes[name] is not None}


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[WatchedRepository]:
    """A repository with one version of a tree, as `model`."""
    async with memory_repository(tmp_path) as inner:
        repository = WatchedRepository(inner)
        await pushed(repository, tmp_path / "first", tree())
        yield repository


async def pushed(repository: WatchedRepository, folder: Path, things: dict[str, Planted], *, name: str = "model") -> Path:
    """Push a tree, whose links are kept, and return its folder."""
    path = plant(folder, things)
    await push(repository, path, name=name, symlinks=Symlinks.KEEP)
    return path


def statuses(found: Difference) -> dict[str, Status]:
    """What became of each file that is not the same."""
    return {file.path: file.status for file in found.files}


async def test_equal_sides(repository: WatchedRepository, tmp_path: Path) -> None:
    """A tree and itself, and the folder that was pushed. Nothing is new, and nothing is received but lists of entries."""
    for new in ("model@~0", tmp_path / "first"):
        repository.chunks_got = 0
        found = await diff(repository, "model", new=new, symlinks=Symlinks.KEEP)
        assert (found.files, found.same_count, found.bytes_new) == ((), 6, 0)
        assert found.same_size == found.old_size == found.new_size
        assert repository.chunks_got <= 4
    assert found.bytes_to_send == 0


async def test_files_that_differ(repository: WatchedRepository, tmp_path: Path) -> None:
    """Each status, from a stored version and from a folder of this machine, in the order of the paths."""
    things = tree(
        **{
            "config.json": b'{"layers": 3}',
            "empty": None,
            "latest": Link("z.bin"),
            "m/new.txt": b"new",
            "m/run.sh": b"#!/bin/sh\n",
            "z.bin": BIN[:-5] + b"other",
        }
    )
    second = plant(tmp_path / "second", things)
    local = await diff(repository, "model", new=second, symlinks=Symlinks.KEEP)
    await push(repository, second, name="model", symlinks=Symlinks.KEEP)
    found = await diff(repository, "model@~1", new="model")
    assert {
        "config.json": Status.CHANGED,
        "empty": Status.REMOVED,
        "latest": Status.CHANGED,
        "m/new.txt": Status.ADDED,
        "m/run.sh": Status.CHANGED,
        "z.bin": Status.CHANGED,
    } == statuses(found)
    assert list(statuses(found)) == sorted(statuses(found), key=lambda path: path.replace("/", "\0"))
    assert found.files == local.files
    assert (found.same_count, found.same_size) == (1, len(safetensors_file(TENSORS)))
    by_path = {file.path: file for file in found.files}
    assert by_path["empty"] == FileDifference("empty", Status.REMOVED, 0, None, 0)
    assert (3, 3) == (by_path["m/new.txt"].new_size, by_path["m/new.txt"].bytes_new)
    assert 5 <= by_path["z.bin"].bytes_new < 9 * MIB
    assert sum(file.bytes_new for file in found.files) <= found.bytes_new
    assert local.bytes_to_send == local.bytes_new == found.bytes_new
    assert found.bytes_to_send is None
    back = await diff(repository, second, new="model@~1", symlinks=Symlinks.KEEP)
    swapped = {Status.ADDED: Status.REMOVED, Status.REMOVED: Status.ADDED, Status.CHANGED: Status.CHANGED}
    assert {path: swapped[status] for path, status in statuses(found).items()} == statuses(back)
    assert back.bytes_to_send == 0


async def test_files_with_equal_checksums(repository: WatchedRepository, tmp_path: Path) -> None:
    """Whoever publishes a version can choose a CRC-32. Small files share a chunk, so its digest alone does not tell."""
    content = octets(6, 1000)
    # CRC-32 is linear, so a multiple of its polynomial in the content changes nothing of it.
    forged = (int.from_bytes(content, "little") ^ int(f"{0x104C11DB7:b}"[::-1], 2) << 80).to_bytes(len(content), "little")
    assert (zlib.crc32(content), False) == (zlib.crc32(forged), content == forged)
    await pushed(repository, tmp_path / "second", {"a": b"1", "b": content, "c": b"3"})
    third = await pushed(repository, tmp_path / "third", {"a": b"1", "b": forged, "c": b"3"})
    for new in ("model", third):
        found = await diff(repository, "model@~1", new=new)
        assert {"b": Status.CHANGED} == statuses(found)
        assert 2 == found.same_count


@pytest.mark.parametrize("make", [safetensors_file, gguf_file])
async def test_tensors_that_differ(
    repository: WatchedRepository, tmp_path: Path, make: Callable[[Sequence[Tensor]], bytes]
) -> None:
    """A large tensor by its chunks, a small one by its data, others by shape or type; the rest is the same."""
    suffix = "gguf" if make is gguf_file else "safetensors"
    old = [*TENSORS, tensor("bias", 50, seed=5), tensor("reshaped", 4, 6, seed=6), tensor("gone", 9, seed=7)]
    new = [SMALL, changed(LARGE), OTHER, changed(old[3]), old[4]._replace(shape=(6, 4)), tensor("fresh", 9, seed=8)]
    for items, folder in ((old, "a"), (new, "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"model.{suffix}").write_bytes(make(items))
    await push(repository, tmp_path / "a" / f"model.{suffix}")
    await push(repository, tmp_path / "b", name="folder")
    expected = {
        "weight.0": Status.CHANGED,
        "bias": Status.CHANGED,
        "reshaped": Status.CHANGED,
        "fresh": Status.ADDED,
        "gone": Status.REMOVED,
    }
    for side in (tmp_path / "b" / f"model.{suffix}", f"folder:model.{suffix}"):
        repository.chunks_got = 0
        found = await diff(repository, f"model.{suffix}", new=side)
        (file,) = found.files
        assert file.tensors is not None
        assert {each.name: each.status for each in file.tensors} == expected
        assert file.same_tensors == 2
        # Not the data of the large ones.
        assert repository.chunks_got < 12
    assert (await diff(repository, f"model.{suffix}", new=f"folder:model.{suffix}")).bytes_new > 0


async def test_tensors_of_files_that_are_named_by_ids_and_tags(repository: WatchedRepository, tmp_path: Path) -> None:
    """The name of the stored file says that it has tensors, and not the reference."""
    records = []
    for number, last in enumerate((SMALL, changed(SMALL))):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(safetensors_file([LARGE, last]))
        records.append((await push(repository, path, name="alone.safetensors")).record)
        await repository.set_label("alone.safetensors", f"v{number}")
    old, new = records
    for sides in ((old.id, new.id), (str(old.digest), str(new.digest)), ("alone.safetensors@v0", "alone.safetensors@v1")):
        (file,) = (await diff(repository, sides[0], new=sides[1])).files
        assert (["norm"], 1) == ([each.name for each in file.tensors or ()], file.same_tensors), sides


async def test_a_file_with_a_broken_header(repository: WatchedRepository, tmp_path: Path) -> None:
    """Its tensors are not compared, and the file is."""
    second = plant(tmp_path / "second", tree(**{"m/model.safetensors": b"not one"}))
    found = await diff(repository, "model", new=second, symlinks=Symlinks.KEEP)
    (file,) = found.files
    assert (Status.CHANGED, None, 0) == (file.status, file.tensors, file.same_tensors)


async def test_a_part_of_a_directory(repository: WatchedRepository, tmp_path: Path) -> None:
    """A folder with a folder, and a file with a file, whatever chunks they share with others."""
    assert (2, ()) == await counts(repository, "model:m", tmp_path / "first/m")
    for path in ("m/model.safetensors", "config.json", "empty", "m/run.sh"):
        assert (1, ()) == await counts(repository, f"model:{path}", tmp_path / "first" / path)
    (tmp_path / "other").write_bytes(b'{"layers": 9}')
    found = await diff(repository, "model:config.json", new=tmp_path / "other")
    assert {"": Status.CHANGED} == statuses(found)
    assert (found.old, found.new) == ("model:config.json", str(tmp_path / "other"))
    # What is new elsewhere in the directory does not count.
    await pushed(repository, tmp_path / "second", tree(**{"z.bin": octets(8, 9 * MIB), "config.json": b'{"layers": 9}'}))
    found = await diff(repository, "model@~1:config.json", new="model:config.json")
    assert ({"": Status.CHANGED}, 13) == (statuses(found), found.bytes_new)
    found = await diff(repository, "model@~1:m", new="model:m")
    assert ((), 2, 0) == (found.files, found.same_count, found.bytes_new)


async def counts(repository: WatchedRepository, old: str, new: Path) -> tuple[int, tuple[FileDifference, ...]]:
    """How many files are the same, and which are not."""
    found = await diff(repository, old, new=new)
    return found.same_count, found.files


async def test_other_zip_files(repository: WatchedRepository) -> None:
    """Compressed entries and entries with other chunks are compared by size and checksum, or by their bytes."""
    small, large = b"words " * 100, octets(9, 700_000)
    for name, deflated, chunk_size in (("a.zip", True, 1 << 20), ("b.zip", False, 1 << 20), ("c.zip", False, 99_999)):
        content = zip_file([ZipEntry("large", large), ZipEntry("small", small, deflated=deflated)])
        await stored(repository, content, name=name, chunk_size=chunk_size)
    for old, new in (("a.zip:", "b.zip:"), ("b.zip:", "c.zip:"), ("c.zip:large", "b.zip:large"), ("a.zip:small", "b.zip:small")):
        assert () == (await diff(repository, old, new=new)).files


async def test_files_of_many_chunks(repository: WatchedRepository) -> None:
    """So many that their tables are arrays. What is new is counted by the chunk, and tensors are found all the same."""
    tensors = [tensor(f"t{number}", 90_001, seed=number, dtype="I8") for number in range(10)]
    old, new = safetensors_file(tensors), safetensors_file([*tensors[:-1], changed(tensors[-1])])
    assert len(old) > 100 * MANY_CHUNKS
    for name, content in (("a.safetensors", old), ("b.safetensors", new)):
        await stored(repository, content, name=name, chunk_size=100)
    found = await diff(repository, "a.safetensors", new="b.safetensors")
    (file,) = found.files
    assert file.tensors is not None
    assert ["t9"] == [each.name for each in file.tensors]
    last = len(new) % 100 or 100
    assert (9, last, last) == (file.same_tensors, found.bytes_new, file.bytes_new)


async def test_a_push_cache_helps(repository: WatchedRepository, tmp_path: Path) -> None:
    """An unchanged folder is not read, and is compared all the same."""
    with PushCache(tmp_path / "cache.sqlite") as push_cache:
        await push(repository, tmp_path / "first", name="again", symlinks=Symlinks.KEEP, push_cache=push_cache)
        found = await diff(repository, "model", new=tmp_path / "first", symlinks=Symlinks.KEEP, push_cache=push_cache)
        assert ((), 6, 0) == (found.files, found.same_count, found.bytes_to_send)
        (tmp_path / "first/config.json").write_bytes(b"{}")
        found = await diff(repository, "model", new=tmp_path / "first", symlinks=Symlinks.KEEP, push_cache=push_cache)
        assert {"config.json": Status.CHANGED} == statuses(found)


async def test_what_cannot_be_compared(repository: WatchedRepository, tmp_path: Path) -> None:
    """Each refusal says what to give instead."""
    with pytest.raises(InvalidInput, match="one of them must name a stored file"):
        await diff(repository, tmp_path, new=tmp_path)
    with pytest.raises(InvalidInput, match=r"is a directory and .* is a file; compare with the path"):
        await diff(repository, "model", new=tmp_path / "first/z.bin")
    with pytest.raises(EntryNotFound):
        await diff(repository, "model:absent", new="model")
    with pytest.raises(NotFound):
        await diff(repository, "model", new="absent")
    with pytest.raises(SourceUnreadable):
        await diff(repository, "model", new=tmp_path / "absent")


async def test_all_tensors_and_files(repository: WatchedRepository, tmp_path: Path) -> None:
    """A comparison says of each file and each tensor what became of it. `diff` gives those that are not the same."""
    new = [SMALL, changed(LARGE), OTHER, tensor("fresh", 9, seed=8)]
    await pushed(repository, tmp_path / "second", tree(**{"m/model.safetensors": safetensors_file(new)}))
    before, after = [await stored_side(repository, wanted, limits=DEFAULT_LIMITS) for wanted in ("model@~1", "model")]
    comparison = await FileComparison.begin(before, after)
    pairs = [pair async for pair in comparison.pairs()]
    assert ["config.json", "empty", "latest", "m/model.safetensors", "m/run.sh", "z.bin"] == [pair.path for pair in pairs]
    [other] = [pair for pair in pairs if pair.status is not Status.SAME]
    assert other.mine is not None
    assert other.its is not None
    tensors = await compare_tensors(before, other.mine, after, other.its)
    assert {"norm": Status.SAME, "weight.0": Status.CHANGED, "weight.1": Status.SAME, "fresh": Status.ADDED} == {
        each.name: each.status for each in tensors
    }
    found = await diff(repository, "model@~1", new="model")
    [file] = found.files
    assert (tuple(each for each in tensors if each.status is not Status.SAME), 2) == (file.tensors, file.same_tensors)
    assert (comparison.bytes_new, len(pairs) - 1) == (found.bytes_new, found.same_count)


async def test_a_limit_of_reads(repository: WatchedRepository, tmp_path: Path) -> None:
    """A comparison that must read content ends where more chunks would be read than the limit permits."""
    await pushed(repository, tmp_path / "second", tree(**{"m/model.safetensors": safetensors_file([changed(SMALL), OTHER])}))
    record = await repository.record(Reference.parse("model"))
    manifest = Manifest.parse(await repository.manifest(record.digest))
    limit = ReadLimit(manifest.size // 2, what="what was read")
    ranges = StoredRanges(repository, manifest, limit=limit)
    received = repository.chunks_got
    await ranges.read_into([(0, memoryview(bytearray(10)))])
    assert manifest.chunks[0].size == limit.taken
    with pytest.raises(LimitExceeded, match="what was read is"):
        await ranges.read_into([(0, memoryview(bytearray(manifest.size)))])
    assert 1 == repository.chunks_got - received
