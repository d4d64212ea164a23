"""The benchmark's tool that keeps the memory of a virtual machine."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import pytest

from bench import warm_memory
from tests.support.commands import REPOSITORY

MIB = 1 << 20


def test_few_pages_are_kept() -> None:
    """One of each 512 KiB, of all that was written to. What was given back is zeros."""
    with warm_memory.written(8 * MIB) as kept:
        pages = [kept[start] for start in range(0, 8 * MIB, mmap.PAGESIZE)]
    each = 512 * 1024 // mmap.PAGESIZE
    assert pages == [1, *[0] * (each - 1)] * 16


def test_what_others_need_is_left() -> None:
    """Nothing is written to if less is free already."""
    with warm_memory.written(2 * MIB, leave=1 << 60) as kept:
        assert not any(kept[: 2 * MIB])


def test_the_command_runs_and_its_status_is_returned() -> None:
    """With its own arguments, also those that look like options."""
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "--leave", "1"]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench/warm_memory.py", "--leave", "1000000GiB", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[-1] == "['--leave', '1']"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_does_so_itself(number: signal.Signals) -> None:
    """A benchmark stops its servers then, which takes longer than a quarter of a second."""
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(1)\n"
        "    print('ended', flush=True)\n"
        "    sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    arguments = [sys.executable, str(REPOSITORY / "bench/warm_memory.py"), "--leave", "1000000GiB", sys.executable, "-c", program]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("the free memory")
        assert running.stdout.readline() == "ready\n"
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does
        else:
            running.send_signal(number)
        assert running.stdout.read() == "ended\n"
    assert running.returncode == 9
