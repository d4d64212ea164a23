"""The places of a file, in arrays."""

from __future__ import annotations

import random

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.transfer import places as module
from filestore.transfer.places import Place, PlaceTable, find_matches
from filestore.transfer.schedule import TransferOptions, batches_by_size
from filestore.transfer.sinks.protocol import Ordering

FEW, MANY = 1 << 30, 0
"""Limits with which each of the two ways is taken."""


def made(rng: random.Random, count: int, *, kinds: int = 12) -> Manifest:
    """A manifest of chunks of few kinds. Some of their digests begin alike, as only an attacker makes them."""
    digests = [Digest(bytes(8) + bytes([kind]) * 24) for kind in range(kinds // 2)]
    digests += [Digest(bytes([kind + 1]) * 32) for kind in range(kinds // 2)]
    chosen = [rng.randrange(kinds) for _ in range(count)]
    return Manifest.build((Chunk(digests[kind], kind + 1) for kind in chosen), chunking_version=1)


def check(found: Manifest, orders: list[Ordering | None], places: list[Place], *, is_complete: bool) -> None:
    """Check that places have each needed offset once, with the right chunk."""
    offsets = list(found.offsets())
    needed = {offset: (chunk, order) for offset, chunk, order in zip(offsets, found.chunks, orders, strict=True)}
    seen: list[int] = []
    for place in places:
        assert [(place.chunk, place.order)] * len(place.offsets) == [needed[offset] for offset in place.offsets]
        assert list(place.offsets) == sorted(place.offsets)
        assert place.order is Ordering.ANY or len(place.offsets) == 1
        seen += place.offsets
    assert sorted(seen) == [offset for offset, (_, order) in needed.items() if order is not None]
    assert [place.offsets[0] for place in places] == sorted(place.offsets[0] for place in places)
    if is_complete:
        free = [place.chunk.digest for place in places if place.order is Ordering.ANY]
        assert len(set(free)) == len(free)


@pytest.mark.parametrize("limit", [FEW, MANY])
@pytest.mark.parametrize("seed", range(20))
def test_equal_chunks_are_one_place(seed: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that may be written at any time, in both ways in which they are found."""
    monkeypatch.setattr(module, "MANY_CHUNKS", limit)
    rng = random.Random(seed)
    found = made(rng, seed * 10)
    orders = [rng.choice([None, *Ordering, Ordering.ANY]) for _ in found.chunks]
    table = PlaceTable(found)
    table.fill(orders)
    places = list(table.missing(*Ordering))
    check(found, orders, places, is_complete=limit == FEW)
    for place in places[::2]:
        table.note_filled(place)
    assert places[1::2] == list(table.missing(*Ordering))
    assert [place for place in places[1::2] if place.order is Ordering.AFTER] == list(table.missing(Ordering.AFTER))
    firsts = table.firsts()
    for place in places:
        assert {table.number_at(place.offsets[0])} == {firsts[table.number_at(offset)] for offset in place.offsets}


@pytest.mark.parametrize("limit", [FEW, MANY])
@pytest.mark.parametrize("seed", range(20))
def test_matches_are_where_another_file_has_a_chunk_first(seed: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For places of any order. Where digests begin alike, some may be left out."""
    monkeypatch.setattr(module, "MANY_CHUNKS", limit)
    rng = random.Random(seed)
    found, other = made(rng, 60), made(rng, 3 * seed)
    table = PlaceTable(found)
    table.fill(rng.choice(list(Ordering)) for _ in found.chunks)
    places = table.missing(*Ordering)
    first: dict[Digest, int] = {}
    for chunk, offset in zip(other.chunks, other.offsets(), strict=True):
        first.setdefault(chunk.digest, offset)
    matches = find_matches(places, other)
    for place in places:
        at = matches.get(place.offsets[0])
        if at is not None or limit == FEW or place.chunk.digest[0]:
            assert first.get(place.chunk.digest) == at
    assert [place for place in places if matches.get(place.offsets[0]) is not None] == list(matches.places)


def test_overlapping_chunks_are_found_by_their_offsets() -> None:
    """All that have a byte of the range, and no others."""
    found = made(random.Random(1), 50)
    table = PlaceTable(found)
    offsets = list(found.offsets())
    for start in range(0, found.size, 7):
        for stop in range(start, found.size, 11):
            wanted = range(start, stop)
            expected = [
                offset
                for offset, chunk in zip(offsets, found.chunks, strict=True)
                if wanted and offset < stop and start < offset + chunk.size
            ]
            assert expected == [place.offsets[0] for place in table.overlapping(wanted)]


def test_a_batch_has_a_limited_number_of_chunks() -> None:
    """Tiny chunks would otherwise be hundreds of thousands in one batch."""
    found = Manifest.build((Chunk(Digest(number.to_bytes(32, "big")), 1) for number in range(100)), chunking_version=1)
    table = PlaceTable(found)
    table.fill([Ordering.ANY] * 100)
    batches = batches_by_size(table.missing(*Ordering), TransferOptions(batch_count=30))
    assert [30, 30, 30, 10] == [len(batch) for batch in batches]
