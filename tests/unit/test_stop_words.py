"""What a server says about its stop."""

from __future__ import annotations

import pytest

from filestore.http.server.traffic import REPORT_SECONDS, SharedTransfers, StopWords
from tests.support.clock import Clock


@pytest.fixture
def transfers() -> SharedTransfers:
    """The transfers of two processes, of which this one is the second."""
    transfers = SharedTransfers(2)
    transfers.join(1)
    return transfers


def test_a_stop_counts_the_transfers_of_all_processes(transfers: SharedTransfers) -> None:
    """Each process writes its own number. One that begins again waits for none."""
    assert not transfers.is_stopping(1)
    transfers.stop(2)
    assert (False, True) == (transfers.is_stopping(0), transfers.is_stopping(1))
    transfers.join(0)
    transfers.stop(1)
    assert (3, 3) == (transfers.first, transfers.waiting)
    transfers.end(1)
    assert 3 == transfers.first
    assert (2, 1) == (transfers.waiting, transfers.cut)
    transfers.join(0)
    assert (2, 0) == (transfers.waiting, transfers.cut)


def test_the_words_of_a_stop(transfers: SharedTransfers) -> None:
    """First what may finish, every ten seconds what is left, and at the end what was cut."""
    clock, said = Clock(), list[str]()
    words = StopWords(transfers, 30, said.append, clock=clock)
    transfers.stop(3)
    words.begin()
    words.go_on()
    clock.now += REPORT_SECONDS
    transfers.go_on(1)
    words.go_on()
    words.go_on()
    transfers.end(1)
    words.end()
    assert [
        "stopping, 3 transfers may finish within 30 s; a second signal stops the server at once",
        "waiting for 1 transfer, for 20 s more",
        "stopped, and cut 1 transfer",
    ] == said


def test_the_words_of_a_stop_without_transfers(transfers: SharedTransfers) -> None:
    """Nothing is waited for."""
    said = list[str]()
    words = StopWords(transfers, 30, said.append, clock=Clock())
    words.begin()
    words.end()
    assert ["stopping, no transfer is under way", "stopped"] == said
    StopWords(transfers, 30, None).begin()


def test_transfers_of_processes_that_are_killed_count_as_cut(transfers: SharedTransfers) -> None:
    """They cannot say it themselves."""
    said = list[str]()
    transfers.end(1)
    StopWords(transfers, 30, said.append, clock=Clock()).end(killed=2)
    assert ["stopped, and cut 3 transfers"] == said
