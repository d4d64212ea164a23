"""The repository of a server whose frames come from peers."""

from __future__ import annotations

import pytest

from filestore.http.client import repository
from filestore.peers.addresses import parse_peers
from filestore.peers.repository import PeerRepository


def test_a_fork_finds_all_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may fork as soon as the object wants to be told of forks."""
    told = []

    def fork_at_once(item: PeerRepository) -> None:
        item.after_fork()
        told.append(item)

    monkeypatch.setattr(repository, "tell_of_forks", fork_at_once)
    made = PeerRepository("http://127.0.0.1:1", token=None, peers=parse_peers("http://127.0.0.1:2"))
    assert [made] == told
