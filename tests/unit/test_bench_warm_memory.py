"""The benchmark's tool that keeps the memory of a virtual machine."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

from bench import warm_memory
from tests.support.commands import REPOSITORY
from tests.support.process_memory import memory

MIB = 1 << 20


def test_few_pages_are_kept() -> None:
    """One of each 512 KiB, of all that was written to."""
    before = memory(os.getpid(), "RssAnon")
    with warm_memory.written(64 * MIB):
        grown = memory(os.getpid(), "RssAnon") - before
    assert 128 * mmap.PAGESIZE <= grown < 8 * MIB


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
