"""What the processes of a server tell each other about their transfers."""

from __future__ import annotations

import os
import signal
import struct

import pytest

from filestore.http.server.current_transfers import (
    PLACE_SIZE,
    STALE_SECONDS,
    TEXT_LIMIT,
    TRANSFERS_LIMIT,
    CurrentTransfer,
    CurrentTransfers,
    SharedCurrentTransfers,
    with_own,
)

NOTHING = CurrentTransfers([], 0, 0)


class Seconds:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    """The clock of both processes."""
    return Seconds()


@pytest.fixture
def shared(clock: Seconds) -> SharedCurrentTransfers:
    """The memory of two processes. This one is the second."""
    shared = SharedCurrentTransfers(2, clock=clock)
    shared.join(1)
    return shared


def transfer(began_at: float = 1.0, *, name: str = "model.bin") -> CurrentTransfer:
    """Return a transfer of a file."""
    return CurrentTransfer(
        *("default", "GET", "/files/{path}", name, "file_1", "", "0123456789abcdef", "a label", 5, began_at), is_running=True
    )


def told(shared: SharedCurrentTransfers, *transfers: CurrentTransfer) -> CurrentTransfers:
    """Return what the second process learns from the first."""
    shared.join(0)
    shared.write(transfers)
    shared.join(1)
    return shared.of_others()


def test_a_process_learns_what_others_do(shared: SharedCurrentTransfers) -> None:
    """Also that they do nothing any more. Its own are not among them."""
    assert NOTHING == shared.of_others()
    shared.write([transfer(9.0)])
    assert NOTHING == shared.of_others()
    assert CurrentTransfers([transfer(1.0), transfer(2.0)], 0, 0) == told(shared, transfer(1.0), transfer(2.0))
    assert NOTHING == told(shared)


def test_the_oldest_come_first() -> None:
    """Of all processes together."""
    found = with_own([transfer(2.0)], CurrentTransfers([transfer(1.0), transfer(3.0)], 2, 1))
    assert [1.0, 2.0, 3.0] == [each.began_at for each in found.transfers]
    assert (2, 1) == (found.left_out, found.silent)


def test_a_name_of_any_characters_is_told(shared: SharedCurrentTransfers) -> None:
    """Also one that is not valid Unicode. A long one is cut."""
    assert "a\udcff☃" == told(shared, transfer(name="a\udcff☃")).transfers[0].name
    assert "n" * TEXT_LIMIT == told(shared, transfer(name="n" * 100_000)).transfers[0].name


@pytest.mark.parametrize("name", ["n", "☃" * TEXT_LIMIT])
def test_what_has_no_room_is_counted(shared: SharedCurrentTransfers, name: str) -> None:
    """The oldest ones are told."""
    found = told(shared, *(transfer(float(number), name=name) for number in range(1000)))
    assert 50 < len(found.transfers) <= TRANSFERS_LIMIT
    assert 1000 == len(found.transfers) + found.left_out
    assert 0.0 == found.transfers[0].began_at


def test_what_a_process_said_long_ago_does_not_count(shared: SharedCurrentTransfers, clock: Seconds) -> None:
    """It hangs, or was killed. One that said that it does nothing may be silent."""
    told(shared, transfer())
    clock.now += STALE_SECONDS + 1
    assert CurrentTransfers([], 0, 1) == shared.of_others()
    told(shared)
    clock.now += 1e6
    assert NOTHING == shared.of_others()


def test_a_process_that_takes_the_place_of_another_has_no_transfers(shared: SharedCurrentTransfers) -> None:
    """Whatever that one did."""
    told(shared, transfer())
    shared.join(0)
    shared.join(1)
    assert NOTHING == shared.of_others()


def test_what_is_half_written_is_not_read(shared: SharedCurrentTransfers) -> None:
    """Its writer was stopped just then, or its bytes are not those that it wrote."""
    told(shared, transfer())
    (number,) = struct.unpack_from("=Q", shared._memory, 0)
    struct.pack_into("=Q", shared._memory, 0, number | 1)
    assert CurrentTransfers([], 0, 1) == shared.of_others()
    struct.pack_into("=Q", shared._memory, 0, number)
    assert 1 == len(shared.of_others().transfers)
    shared._memory[100] ^= 1
    assert CurrentTransfers([], 0, 1) == shared.of_others()
    # A size that no process writes.
    struct.pack_into("=Q", shared._memory, 8, PLACE_SIZE * 2)
    assert CurrentTransfers([], 0, 1) == shared.of_others()
    assert 1 == len(told(shared, transfer()).transfers)


def test_two_processes_share_the_memory() -> None:
    """A process that is killed while it writes does not stop the others."""
    shared = SharedCurrentTransfers(2)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            shared.join(0)
            shared.write([transfer()])
            os.write(writing, b".")
            while True:
                shared.write([transfer(), transfer()])
        finally:
            os._exit(1)
    try:
        shared.join(1)
        os.read(reading, 1)
        seen = {len(found.transfers) for found in (shared.of_others() for _ in range(20_000)) if not found.silent}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
    assert seen <= {1, 2}
    assert all(each == transfer() for each in shared.of_others().transfers)
