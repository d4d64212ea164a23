from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import FAULTS
from tests.simulation.world.mixes import MIXES

STEPS = 12_000


FOUND = {
    "collection_without_second_look": (1, 8, 18),
    "index_opened_beside_sqlite": (1, 2, 3),
    "lease_without_process": (3, 13, 23),
    "lost_last_seen": (7, 17, 27),
    "rename_without_sync": (19, 29, 39),
    "retry_that_doubles": (4, 14, 24),
    "row_before_frame": (9, 29, 39),
    "seed_trusted": (6, 16, 26),
    "staging_published_by_size": (6, 16, 26),
    "tombstone_ignored": (8, 18, 28),
}
"""The seeds that are tried for each fault until one finds it: those of the mix in which it shows itself most often."""


def _simulate(fault: str, seed: int, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.planted", fault, "--seed", str(seed), "--steps", str(STEPS), folder],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_planted_fault_still_fits_the_code(name: str) -> None:
    """A planted fault raises if the code that prevents it was changed, so that it cannot stop being one unnoticed."""
    with FAULTS[name]():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FOUND))
def test_the_simulation_finds_a_planted_fault(name: str, folder: Path) -> None:
    """A known fault that is put back is found within the steps that CI runs."""
    for seed in FOUND[name]:
        done = _simulate(name, seed, folder / str(seed))
        if done.returncode == 1 and f"seed {seed}, step" in done.stdout:
            return
        assert done.returncode == 0, done.stdout + done.stderr
    pytest.fail(f"{name} is not found with the seeds {FOUND[name]}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(MIXES)))
def test_the_simulation_finds_nothing_without_a_fault(seed: int, folder: Path) -> None:
    """The product itself breaks no rule, in any mix, within as many steps."""
    done = _simulate("nothing", seed, folder)
    assert done.returncode == 0, done.stdout + done.stderr
