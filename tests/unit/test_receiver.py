from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import ChunksMissing, DamagedChunk, TargetError
from filestore.format.zip.read import TAIL_SIZE
from filestore.repository.local import LocalRepository
from filestore.transfer import fetch as fetch_module
from filestore.transfer.fetch import fetch_record
from filestore.transfer.places import Places, PlaceTable
from filestore.transfer.push import manifest_of, push
from filestore.transfer.receive_batch import verified
from filestore.transfer.receiver import Receiver
from filestore.transfer.schedule import DEFAULT_OPTIONS, Batch, TransferOptions, ordered_chains, round_robin, sized_for
from filestore.transfer.seeds import FileSeed
from filestore.transfer.sinks.protocol import Ordering
from tests.support.fetching_trees import stored
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

MIB = 1 << 20
COUNT = 4
"""Batches that are under way at the same time."""


def places_of(orders: str) -> Places:
    """A place of 1 MiB for each letter: a (any time), o (once), f (follows the one before it)."""
    order = {"a": Ordering.ANY, "o": Ordering.ONCE, "f": Ordering.AFTER}
    chunks = (Chunk(Digest(bytes([number % 256]) * 32), MIB) for number in range(len(orders)))
    table = PlaceTable(Manifest.build(chunks, chunking_version=1))
    table.fill(order[letter] for letter in orders)
    return table.missing(*Ordering)


def batches_of(orders: str) -> list[Batch]:
    """The batches in which workers take them."""
    return list(round_robin(ordered_chains(places_of(orders), DEFAULT_OPTIONS), COUNT))


@pytest.mark.parametrize("seed", range(30))
def test_batches_hold_every_place_once_and_never_wait_for_ever(seed: int) -> None:
    """The batch that another one must follow comes before it."""
    rng = random.Random(seed)
    letters = "aaaaaaaa" * (seed % 3) + "of" + "f" * (seed % 20)
    orders = "o" + "".join(rng.choice(letters) for _ in range(rng.randrange(200)))
    batches = batches_of(orders)

    offsets = Counter(place.offsets[0] for batch in batches for place in batch.places)
    assert Counter(number * MIB for number in range(len(orders))) == offsets
    ends: dict[int, int] = {}
    for batch in batches:
        assert sum(place.chunk.size + 8 for place in batch.places) <= DEFAULT_OPTIONS.batch_size
        assert all(one.offsets[0] < other.offsets[0] for one, other in pairwise(batch.places))
        first = batch.places[0]
        assert (first.order is Ordering.AFTER) == (batch.after is not None)
        if batch.after is not None:
            assert ends[id(batch.after)] == first.offsets[0]
        ends[id(batch.written)] = batch.places[-1].offsets[0] + MIB


def test_long_entries_are_received_side_by_side() -> None:
    """Workers do not wait for one entry that has an order while others could go on."""
    batches = batches_of(("o" + "f" * 29) * COUNT)
    assert [None] * COUNT == [batch.after for batch in batches[:COUNT]]
    assert all(batch.after is not None for batch in batches[COUNT:])


async def test_content_by_range(repository: LocalRepository) -> None:
    """Any range of a file is read from the chunks that contain it, and from no others."""
    content = octets(1, 100_000)
    record = await stored(repository, content, chunk_size=999)
    watched = WatchedRepository(repository)
    manifest = Manifest.parse(await repository.manifest(record.digest))
    for part in (range(0), range(1), range(998, 1000), range(99_000, 100_000), range(100_000), range(5000, 70_001)):
        before = watched.chunks_got
        assert content[part.start : part.stop] == await Receiver(watched, manifest, None).content(part)
        assert len({offset // 999 for offset in part}) == watched.chunks_got - before


async def test_content_is_received_once(repository: LocalRepository) -> None:
    """Ranges that overlap cost each chunk once."""
    content = octets(1, 100_000)
    record = await stored(repository, content, chunk_size=999)
    watched = WatchedRepository(repository)
    receiving = Receiver(watched, Manifest.parse(await repository.manifest(record.digest)), None)
    await receiving.content(range(100_000 - TAIL_SIZE, 100_000))
    await receiving.content(range(100_000))
    assert len(range(0, 100_000, 999)) == watched.chunks_got


async def test_a_chunk_that_is_gone_is_named(repository: LocalRepository) -> None:
    """It is the repository that lacks it, and a push that helps."""
    frame = encoded(b"never put")
    manifest = Manifest.build([Chunk(frame.digest, 9)], chunking_version=0)
    with pytest.raises(ChunksMissing, match=str(frame.digest)):
        await Receiver(repository, manifest, None).content(range(9))


def test_frames_are_verified() -> None:
    """Of the right digest, but of another size than the manifest says; and damaged."""
    content = b"content" * 50
    frame = memoryview(encoded(content).data)
    assert content == bytes(verified(Chunk(chunk_digest(content), 350), frame))
    with pytest.raises(DamagedChunk, match="its frame decodes to 350 bytes and the manifest says 351"):
        verified(Chunk(chunk_digest(content), 351), frame)
    with pytest.raises(DamagedChunk):
        verified(Chunk(chunk_digest(content), 350), frame[:-1])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20 MiB that no codec makes smaller."""
    path = tmp_path / "model.bin"
    path.write_bytes(octets(1, 20 * MIB))
    return path


@pytest.mark.slow
async def test_a_fetch_copies_what_a_seed_holds(repository: LocalRepository, source: Path, tmp_path: Path) -> None:
    """A change in the middle of a file does not stop the reuse of the rest, at any offset."""
    content = source.read_bytes()
    seed = tmp_path / "seed.bin"
    seed.write_bytes(octets(2, 5000) + content[: 9 * MIB] + octets(3, MIB) + content[10 * MIB :])
    record = (await push(repository, source)).record
    found = await fetch_record(repository, record, target=tmp_path / "back", seeds=[FileSeed(seed, await manifest_of(seed))])

    assert content == (tmp_path / "back").read_bytes()
    assert record.digest == found.manifest.digest
    # What changed, and the chunks at its ends and at the start, of at most 4 MiB each.
    assert MIB < found.bytes_received < 13 * MIB
    assert found.size - found.bytes_received <= found.bytes_reused < found.size


@pytest.mark.slow
@pytest.mark.parametrize("state", ["gone", "shorter", "changed", "folder"])
async def test_a_fetch_trusts_no_seed(repository: LocalRepository, source: Path, tmp_path: Path, state: str) -> None:
    """A seed that does not match its manifest only costs a download."""
    content = source.read_bytes()
    record = (await push(repository, source)).record
    manifest = Manifest.parse(await repository.manifest(record.digest))
    seed = tmp_path / "seed"
    if state == "shorter":
        seed.write_bytes(content[: 5 * MIB])
    elif state == "changed":
        seed.write_bytes(octets(9, 20 * MIB))
    elif state == "folder":
        seed.mkdir()
    found = await fetch_record(repository, record, target=tmp_path / "back", seeds=[FileSeed(seed, manifest)])

    assert content == (tmp_path / "back").read_bytes()
    assert (state == "shorter") == (found.bytes_reused > 0)


async def test_a_fetch_closes_its_seeds(repository: LocalRepository, source: Path, tmp_path: Path) -> None:
    """Seeds are closed after every fetch, also after one that fails."""
    record = (await push(repository, source)).record
    manifest = Manifest.parse(await repository.manifest(record.digest))
    for target, error in ((tmp_path / "back", None), (source / "back", TargetError)):
        seed = FileSeed(source, manifest)
        assert seed.read_into(memoryview(bytearray(10)), 0)
        with nullcontext() if error is None else pytest.raises(error):
            await fetch_record(repository, record, target=target, seeds=[seed])
        assert not seed.read_into(memoryview(bytearray(10)), 0)
        seed.close()


async def test_what_was_written_is_synced_while_more_arrives(
    repository: LocalRepository, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for so many bytes at most, besides the last time before the file appears."""
    synced: list[int] = []
    monkeypatch.setattr(fetch_module, "sync_descriptor", synced.append)
    record = (await push(repository, source)).record
    await fetch_record(repository, record, target=tmp_path / "back", options=TransferOptions(sync_size=MIB))
    assert 2 <= len(synced) <= 21


@pytest.mark.parametrize(
    ("size", "batch_size"),
    [(0, 8 * MIB), (100 * MIB, 8 * MIB), (192 * MIB, 12 * MIB), (256 * MIB, 16 * MIB), (1 << 40, 16 * MIB)],
)
def test_a_large_fetch_has_larger_batches(size: int, batch_size: int) -> None:
    """A small one has more of them in flight. Neither has larger ones than it was told."""
    assert batch_size == sized_for(size, DEFAULT_OPTIONS).batch_size
    assert 64 == sized_for(size, TransferOptions(batch_size=64)).batch_size
