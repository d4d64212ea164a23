from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_command_repeats_a_seed(folder: Path) -> None:
    """A seed gives the same trace in another process and another folder, alone and after another seed."""
    command = [sys.executable, "-m", "tests.simulation", "--steps", "2000"]
    both = [*command, "--seed", "4", "--seeds", "2", str(folder)]
    later = [*command, "--seed", "5", str(folder.parent)]
    runs = [
        subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=100)
        for run in (both, later)
    ]
    assert runs[0].stdout.splitlines()[1:] == runs[1].stdout.splitlines()
    assert runs[1].stdout.startswith("seed 5: ")
