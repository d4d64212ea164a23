"""Rendezvous hashing, for any peers and digests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.peers.choice import COPIES, choose

peers = st.lists(st.text(min_size=1), unique=True, max_size=8)
digests = st.lists(st.binary(min_size=DIGEST_SIZE, max_size=DIGEST_SIZE).map(Digest), max_size=5)


@given(peers, digests, st.binary(max_size=16))
def test_choice(names: list[str], wanted: list[Digest], client: bytes) -> None:
    """Each chunk has its number of different peers, whatever the order of the peers, and without one of them the rest stays."""
    chosen = [[names[number] for number in each] for each in choose(wanted, names, client=client)]
    shuffled = sorted(names, reverse=True)
    again = [[shuffled[number] for number in each] for each in choose(wanted, shuffled, client=client)]
    assert [set(each) for each in chosen] == [set(each) for each in again]
    assert all(len(set(each)) == len(each) == min(COPIES, len(names)) for each in chosen)
    for gone in names:
        left = [name for name in names if name != gone]
        for before, numbers in zip(chosen, choose(wanted, left, client=client), strict=True):
            assert {*before} - {gone} <= {left[number] for number in numbers}
