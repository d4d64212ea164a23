from __future__ import annotations

import os
import threading

from filestore.system.metrics import Event, Gauge, SharedTimes, count, count_into, note
from filestore.system.numbers import Numbers

SIZE = 4096


def test_numbers_are_added_and_set() -> None:
    """A number begins with 0. Labels are a part of its key."""
    numbers = Numbers()
    numbers.add(("requests", "/a"))
    numbers.add(("requests", "/a"), 2.5)
    numbers.add(("requests", "/b"), 0.5)
    numbers.set(("memory",), 7)
    numbers.set(("memory",), 5)
    assert {("requests", "/a"): 3.5, ("requests", "/b"): 0.5, ("memory",): 5.0} == numbers.all()


def test_another_process_reads_them_and_goes_on() -> None:
    """A reader sees what was added since its last look. A writer that comes later continues."""
    memory = memoryview(bytearray(SIZE))
    first, reader = Numbers(memory), Numbers(memory)
    first.add(("a", "ä"), 1)
    assert {("a", "ä"): 1.0} == reader.all()
    first.add(("b",), 2)
    first.add(("a", "ä"), 1)
    assert {("a", "ä"): 2.0, ("b",): 2.0} == reader.all()
    later = Numbers(memory)
    later.add(("b",), 2)
    later.add(("c",), 3)
    assert {("a", "ä"): 2.0, ("b",): 4.0, ("c",): 3.0} == reader.all()


def test_an_entry_that_a_killed_process_began_is_not_there() -> None:
    """The next process writes over it."""
    memory = memoryview(bytearray(SIZE))
    killed = Numbers(memory)
    killed.add(("a",), 1)
    used = memory.cast("q")[0]
    killed.add(("torn",), 9)
    memory.cast("q")[0] = used  # this is written last, and was not
    later = Numbers(memory)
    later.add(("b",), 2)
    assert {("a",): 1.0, ("b",): 2.0} == later.all() == Numbers(memory).all()


def test_memory_has_an_end() -> None:
    """Numbers that do not fit are left out and counted. Those that are there go on."""
    numbers = Numbers(memoryview(bytearray(SIZE)))
    for number in range(1000):
        numbers.add(("label", f"{number:0100}"))
    kept = len(numbers.all())
    assert 0 < kept < SIZE // 100
    assert 1000 - kept == numbers.left_out
    numbers.add(("label", f"{0:0100}"))
    assert 2.0 == numbers.all()["label", f"{0:0100}"]


def test_threads_add_to_the_same_number() -> None:
    """No count is lost."""
    numbers = Numbers()

    def work() -> None:
        for _ in range(2000):
            numbers.add(("n",))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {("n",): 8000.0} == numbers.all()


def test_a_process_goes_on_with_the_counts_of_a_dead_one_and_not_with_its_gauges() -> None:
    """Its connections ended with it."""
    shared = SharedTimes(1)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            shared.join(0)
            count(Event.FILES_STORED)
            if shared.own.numbers.all()[Event.PROCESS_STARTS,] == 1:
                note(Gauge.CONNECTIONS, value=5)
            os._exit(0)
        assert 0 == os.waitpid(pid, 0)[1]
    (place,) = shared.each_process()
    assert {(Event.PROCESS_STARTS,): 2.0, (Event.FILES_STORED,): 2.0, (Gauge.CONNECTIONS,): 0.0} == place.numbers.all()


def test_a_process_that_does_not_count_counts_nothing() -> None:
    """A command pays for no memory."""
    count_into(None)
    count(Event.FILES_STORED)
    note(Gauge.CONNECTIONS, value=1)
