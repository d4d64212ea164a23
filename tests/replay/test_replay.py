"""What a power cut leaves after each system call of the store: everything that was acknowledged is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.replay.planted import FAULTS
from tests.replay.recording import record, standing
from tests.replay.replay import replay
from tests.replay.scenarios import DISK, SCENARIOS

SEED = 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_acknowledged_survives_a_power_cut(scenario: str, folder: Path, recorder: Path) -> None:
    """At each call, whatever the disk has kept of what was not synced."""
    recording = record(scenario, folder, recorder=recorder)
    report = replay(recording, folder / "state", seed=SEED, limit=2, use_one_in=4)

    assert None is report.violation
    assert report.checked_count > report.call_count > 20


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_call_is_missing_in_a_recording(scenario: str, folder: Path, recorder: Path) -> None:
    """All calls together lead to what is on the disk at the end, to the byte."""
    recording = record(scenario, folder, recorder=recorder)
    for event in recording.events:
        recording.disk.apply(event)
    image = recording.disk.image()

    assert standing(folder / DISK) == {**image.files, **image.links, **dict.fromkeys(image.folders)}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, folder: Path, recorder: Path) -> None:
    """Each known fault breaks a promise in a state that is checked."""
    recording = record(FAULTS[fault].scenario, folder, recorder=recorder, fault=fault)
    report = replay(recording, folder / "state", seed=SEED, limit=3)

    assert re.search(FAULTS[fault].violation, report.violation or "nothing was found")
