"""What `bench/scaling.py` and `bench/shaped.py` conclude from what they measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.clients import Client, MemoryWatch, on_cores, usable_cores
from bench.py_spy import late_seconds, lock_seconds
from bench.run import family
from bench.scaling import (
    Locks,
    PeerSample,
    Sample,
    default_cores,
    peer_rows_of,
    per_gigabyte,
    rows_of,
    same_content,
    touch_space,
)
from bench.shaped import time_line

KEYS = (
    "workload",
    "cores",
    "rate",
    "cores_busy",
    "cpu_seconds_per_gb",
    "client_lock_seconds_per_gb",
    "server_lock_seconds_per_gb",
    "peak_memory",
)
"""The keys that a program which reads the rows may rely on."""


def sample(*, seconds: float, lock: float = 0.5, memory: int = 100) -> Sample:
    """Two gigabytes, moved in that time."""
    return Sample(2 * 10**9, seconds, 3.0, 1.0, Locks(lock, lock / 2, lock / 4, lock / 8), memory, memory // 2)


def test_a_row_has_medians_for_each_gigabyte() -> None:
    """The keys are fixed, and rates are bytes a second."""
    samples = [sample(seconds=1), sample(seconds=2, lock=1.0, memory=300), sample(seconds=9, lock=1.2, memory=200)]
    (row,) = rows_of({("push", 2): samples}, {}, gil_by="both")
    assert list(KEYS) == list(row)[: len(KEYS)]
    assert ("push", 2, 1e9, 2.0, 2.0) == tuple(row[key] for key in KEYS[:5])
    assert (0.5, 0.125, 200) == tuple(row[key] for key in KEYS[5:])
    assert (0.25, 0.0625) == (row["client_busiest_lock_seconds_per_gb"], row["server_busiest_lock_seconds_per_gb"])
    assert row["lock_seconds_per_gb_by_py_spy"] is None


@pytest.mark.parametrize(("gil_by", "expected"), [("both", (0.25, "processor-time")), ("py-spy", (0.07, "py-spy"))])
def test_a_row_says_how_the_lock_was_measured(gil_by: str, expected: tuple[float, str]) -> None:
    """Both measurements are in it."""
    spied = {("push", 2): [Locks(0.07, 0.05, 0.02, 0.01)]}
    (row,) = rows_of({("push", 2): [sample(seconds=1)]}, spied, gil_by=gil_by)
    assert expected == (row["client_lock_seconds_per_gb"], row["lock_seconds_by"])
    assert 0.25 == row["lock_seconds_per_gb_by_processor_time"]["client"]
    assert 0.05 == row["lock_seconds_per_gb_by_py_spy"]["client_busiest"]


def test_a_row_of_a_peer_has_no_lock() -> None:
    """It has none."""
    (row,) = peer_rows_of({("curl", "fetch", 2): [PeerSample(10**9, 2, 1), PeerSample(10**9, 1, 1), PeerSample(10**9, 4, 1)]})
    assert ("curl", "fetch", 2, 5e8, 0.5, 1.0) == tuple(row.values())


def test_seconds_are_for_a_gigabyte_of_all_clients() -> None:
    """Also those of the busiest process."""
    assert Locks(0.5, 0.25, 0.25, 0.125) == per_gigabyte(Locks(2.0, 1.0, 1.0, 0.5), 4 * 10**9)


@pytest.mark.parametrize(("available", "cores"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_cores_are_doubled_up_to_those_that_are_there(available: int, cores: list[int]) -> None:
    """The last number is that of all."""
    assert cores == default_cores(available)


def test_one_byte_makes_a_file_another_one(tmp_path: Path) -> None:
    """In its last piece, in any of the files, or at its end."""
    size = (16 << 20) + 5
    content = bytearray(os.urandom(size))
    paths = [tmp_path / str(place) for place in range(3)]
    for path in paths:
        path.write_bytes(content)
    assert same_content(paths[0], paths[1:])
    content[-2] ^= 1
    paths[2].write_bytes(content)
    assert same_content(paths[0], paths[1:2])
    assert not same_content(paths[0], paths[1:])
    paths[2].write_bytes(paths[0].read_bytes() + b"x")
    assert not same_content(paths[0], paths[1:])


def test_space_is_given_back(tmp_path: Path) -> None:
    """Nothing of the zeros stays."""
    touch_space(tmp_path, 20 << 20)
    assert [] == list(tmp_path.iterdir())


def test_samples_of_py_spy_are_added_for_each_process() -> None:
    """500 of them are a second."""
    raw = 'process 7:"python a b";main (a.py:1);read 250\nprocess 7:"python a b";main (a.py:1) 250\nprocess 8:"python";main 100\n'
    assert [1.0, 0.2] == lock_seconds(raw)
    assert [] == lock_seconds("")


def test_samples_of_a_child_are_not_those_of_its_parents() -> None:
    """Each stack begins with all of them. A program is quoted, whatever its arguments are."""
    parent, worker = 'process 7:"python a b"', 'process 8:"python -c x; y()";process 9:"python -c x; y()"'
    raw = f"{parent};main (a.py:1) 50\n{parent};{worker};<module> (<string>:1);main 250\n{parent};{worker};main 100\n"
    assert [0.1, 0.7] == lock_seconds(raw)


def test_py_spy_says_that_it_is_late() -> None:
    """The worst counts. Usually it says nothing."""
    said = "py-spy> {}s behind in sampling, results may be inaccurate. Try reducing the sampling rate\n"
    assert 2.25 == late_seconds(said.format("1.00") + said.format("2.25") + said.format("1.5"))
    assert 0 == late_seconds("py-spy> Sampling process 500 times a second. Press Control-C to exit.\n")


def test_a_process_without_frames_holds_no_lock() -> None:
    """It is at its end."""
    parent, child = 'process 7:"python a; b"', 'process 8:"python"'
    assert [0.2] == lock_seconds(f"{parent} 900\n{parent};{child} 900\n{parent};{child};main (a.py:1) 100\n")


def test_the_time_line_of_a_link_leaves_out_small_requests() -> None:
    """The first and the last 64 KiB may be questions and answers."""
    samples = [(0.0, 1000), (0.3, 2000), (0.5, 1000 + (64 << 10)), (1.0, 60_000_000), (1.5, 100_001_000), (2.0, 100_001_100)]
    line = time_line(samples, started=0.1, ended=2.2, gigabits=1)
    assert (0.2, 0.4, 1.4, 2.1) == pytest.approx(line[:4])
    # A link of 1 Gbit/s needs 0.8 s for 100 MB.
    assert line.idle == pytest.approx(0.2, abs=0.01)


def test_a_link_that_carries_nothing_has_a_time_line() -> None:
    """A push of what is known."""
    line = time_line([(0.0, 5), (1.0, 5)], started=0.0, ended=1.0, gigabits=1)
    assert (1.0, 0.0) == (line.end, line.idle)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its cores here")
def test_processes_that_start_in_the_block_have_some_cores() -> None:
    """Afterwards this process has all of its own again."""
    before = usable_cores()
    code = "import os; print(len(os.sched_getaffinity(0)))"
    with on_cores(1):
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ("1\n", before) == (printed, usable_cores())


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory_counts_what_a_process_started() -> None:
    """Also from another thread than its first."""
    child = "x = bytearray(b'1' * (64 << 20)); print('made', flush=True); input()"
    code = (
        "import subprocess, sys, threading\n"
        f"threading.Thread(target=subprocess.run, args=([sys.executable, '-c', {child!r}],)).start()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"made\n" == process.stdout.readline()
        with MemoryWatch([process.pid]) as watch:
            assert 2 == len(family(process.pid))
        assert process.stdin is not None
        process.stdin.close()
    assert watch.peak([process.pid]) > 64 << 20


def test_a_client_tells_what_its_command_used(tmp_path: Path) -> None:
    """Without the start of Python. Its output is that of the command."""
    client = Client(["hash", __file__, "--json"], environment={"HOME": str(tmp_path)}, folder=tmp_path)
    try:
        client.wait_until_ready()
        client.begin()
        used = client.wait()
    finally:
        client.end()
    assert '"digest"' in used.output
    assert used.ended > used.began
    assert 0 < max(used.lock_seconds) <= used.cpu_seconds
    assert [] == [path for path in tmp_path.iterdir() if path.name.startswith("client-")]


def test_a_client_that_fails_ends_the_measurement_with_its_words(tmp_path: Path) -> None:
    """In one sentence."""
    client = Client(["hash", "nothing-here"], environment={"HOME": str(tmp_path)}, folder=tmp_path)
    try:
        client.wait_until_ready()
        client.begin()
        with pytest.raises(SystemExit, match="nothing-here"):
            client.wait()
    finally:
        client.end()
