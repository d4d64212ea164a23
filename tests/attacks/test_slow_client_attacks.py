"""Many slow clients at once. Each test starts a server of its own, whose peak of memory it reads at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server import running_server
from tests.support.slow_clients import peak_memory, slow_clients
from tests.support.slow_kinds import KINDS, MIB

HEADS = ("large half heads", "half heads", "trickled heads")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_200_slow_clients_of_a_kind_take_less_than_300_mib(tmp_path: Path, kind: str) -> None:
    """The server answers others meanwhile."""
    assert 300 * MIB > peak(tmp_path, kind, count=200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_200_half_heads_without_a_token_add_at_most_20_mib(tmp_path: Path, kind: str) -> None:
    """Each client sends as much of a head as the server takes, of up to a megabyte."""
    with running_server(tmp_path / "root", check=False) as server:
        before = peak_memory(server.pid)
        with slow_clients(server, [KINDS[kind]], 200) as clients:
            assert 200 == clients.begun_count
            assert 20 * MIB >= peak_memory(server.pid) - before


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_1000_slow_clients_of_a_kind_take_less_than_500_mib(tmp_path: Path, kind: str) -> None:
    """The server answers others meanwhile."""
    assert 500 * MIB > peak(tmp_path, kind, count=1000)


@pytest.mark.slow
def test_100_slow_clients_of_every_kind_at_once_take_less_than_400_mib(tmp_path: Path) -> None:
    """The kinds share the budgets of the server."""
    assert 400 * MIB > peak(tmp_path, *KINDS, count=100)


def peak(folder: Path, *kinds: str, count: int) -> int:
    """Return the peak of the memory of a server with `count` slow clients of each kind."""
    with running_server(folder / "root", check=False) as server:
        with slow_clients(server, [KINDS[kind] for kind in kinds], count) as clients:
            clients.ask_health()
        # The end of so many connections at once takes memory too.
        return peak_memory(server.pid)
