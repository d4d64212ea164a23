"""Servers, clients, collections and ordinary commands work on one folder, and one of them after the other is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills.scenarios import Options, run_servers_and_commands

LEAST_KILLS = 100
"""Of each half."""
SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workers", "half"), [(1, 0), (2, 1)])
def test_nothing_acknowledged_is_lost(tmp_path: Path, workers: int, half: int) -> None:
    """`python -m tests.kills` runs it for longer."""
    trial = run_servers_and_commands(tmp_path / "trial", Options(seed=SEED, workers=workers, half=half))

    assert not trial.failures, trial.story
    assert LEAST_KILLS <= trial.kills.total()
