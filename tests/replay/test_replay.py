"""What a power cut leaves after each system call of the store: everything that was acknowledged is whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.replay.planted import FAULTS
from tests.replay.recording import IncompleteRecordingError, record
from tests.replay.replay import replay
from tests.replay.scenarios import SCENARIOS

SEED = 0
pytestmark = pytest.mark.timeout(900)  # on a machine that is busy with other work


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_acknowledged_survives_a_power_cut(scenario: str, folder: Path, recorder: Path) -> None:
    """At each call, whatever the disk has kept of what was not synced."""
    recording = record(scenario, folder, recorder=recorder)
    report = replay(recording, folder / "state", seed=SEED, limit=2, use_one_in=4)

    assert None is report.violation
    assert report.checked_count > report.call_count > 20


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, folder: Path, recorder: Path) -> None:
    """Each known fault breaks a promise in a state that is checked."""
    recording = record(FAULTS[fault].scenario, folder, recorder=recorder, fault=fault)
    report = replay(recording, folder / "state", seed=SEED, limit=3)

    assert re.search(FAULTS[fault].violation, report.violation or "nothing was found")


def test_a_call_that_was_not_recorded_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Without the recorder nothing is recorded, and what is on the disk at the end says so."""
    (folder / "log").touch()
    nothing = tmp_path / "nothing.c"
    nothing.touch()
    library = tmp_path / "nothing.so"
    subprocess.run(["gcc", "-shared", "-o", library, nothing], check=True)
    with pytest.raises(IncompleteRecordingError, match="format"):
        record("make", folder, recorder=library)
