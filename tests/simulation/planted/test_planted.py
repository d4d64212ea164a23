from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import FAULTS
from tests.simulation.world.mixes import MIXES

STEPS = 12_000


FOUND = {
    "collection_without_second_look": ("ChunksMissing|in its grace period|read back with other bytes", (1, 8, 18)),
    "index_opened_beside_sqlite": ("open without a lock", (1, 2, 3)),
    "lease_without_process": ("counts as in use", (3, 13, 23)),
    "lost_last_seen": ("in its grace period", (37, 47, 57)),
    "rename_without_sync": ("NotFound|found damage|read back with other bytes", (19, 29, 39)),
    "retry_that_doubles": ("a second push of|made two records|and its versions are", (24, 34, 4)),
    "row_before_frame": ("frame-missing", (29, 49, 19)),
    "seed_trusted": ("other bytes than were pushed|what nobody has pushed there", (6, 16, 26)),
    "staging_published_by_size": ("other bytes than were pushed|what nobody has pushed there", (6, 16, 26)),
    "tombstone_ignored": ("ChunksMissing|read back with other bytes", (28, 38, 78, 88, 118, 128)),
}
"""What the check says that finds each fault, as a regular expression, and the seeds that are tried until one finds it.

The seeds are those of the mix in which the fault shows itself most often.
"""


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
@pytest.mark.timeout(900)  # up to six runs, on a machine that is busy with other work
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_the_simulation_finds_a_planted_fault(name: str, folder: Path) -> None:
    """A known fault that is put back is found within the steps that CI runs, by a check that says what is wrong."""
    expected, seeds = FOUND[name]
    for seed in seeds:
        done = _simulate(name, seed, folder / str(seed))
        if done.returncode == 1:
            assert re.search(expected, done.stdout), done.stdout + done.stderr
            return
        assert done.returncode == 0, done.stdout + done.stderr
    pytest.fail(f"{name} is not found with the seeds {seeds}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(MIXES)))
def test_the_simulation_finds_nothing_without_a_fault(seed: int, folder: Path) -> None:
    """The product itself breaks no rule, in any mix, within as many steps."""
    done = _simulate("nothing", seed, folder)
    assert done.returncode == 0, done.stdout + done.stderr
