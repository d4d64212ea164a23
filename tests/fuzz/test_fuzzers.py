"""Short runs of the real fuzzers, which are the same each time: so many inputs from a fixed seed, and no clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.all_targets import TARGETS
from tests.fuzz.fuzzer import fuzz
from tests.fuzz.needs import needs_own_venv

SEED = 20261129
RUNS = 1500
PLANTED = {
    "frame": 4000,
    "batch": 4000,
    "safetensors": 4000,
    "zip-archive": 4000,
    "zip-entry": 10_000,
    "channel": 4000,
    "signed-path": 4000,
    "worker-message": 4000,
}
"""Targets that must find the fault that was put in for them, and with how many inputs. `python -m tests.fuzz planted all`
tries all targets."""

pytestmark = [needs_own_venv, pytest.mark.timeout(600)]  # on a machine that is busy with other work


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_short_run_breaks_no_rule(name: str, tmp_path: Path) -> None:
    """So many inputs from a fixed seed break no rule, and reach more code than none."""
    outcome = fuzz(name, tmp_path, seed=SEED, runs=RUNS)
    assert not outcome.is_found, outcome.output[-6000:]
    assert outcome.executions >= RUNS, outcome.output[-6000:]
    assert outcome.coverage > 0, outcome.output[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_short_run_finds_a_planted_fault(name: str, tmp_path: Path) -> None:
    """A check that was taken out of a parser is found missing, and the input that shows it is kept."""
    outcome = fuzz(name, tmp_path, seed=SEED, runs=PLANTED[name], is_planted=True)
    assert outcome.is_found, outcome.output[-6000:]
    (found,) = outcome.inputs
    TARGETS[name].run(found.read_bytes())
    with TARGETS[name].fault.planted(), pytest.raises((AssertionError, ValueError)):
        TARGETS[name].run(found.read_bytes())
