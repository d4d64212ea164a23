"""What the benchmarks conclude from what they measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.peer.report import Measured, Results
from bench.run import Command, parse_size, run, run_all
from filestore.system.metrics import Stage
from filestore_cli.bench.report import STAGES


def measured(peer: str, number: int, *, seconds: float, workload: str = "push") -> Measured:
    """A gigabyte, moved in that time."""
    return Measured(peer, workload, number, 10**9, seconds, 1.0, 0.5, 0, 0, None, 0)


def test_ratios_are_of_rates_within_a_round() -> None:
    """A slow round slows both sides, so only rates of the same round are compared."""
    results = Results(
        [
            measured("ours", 0, seconds=1),
            measured("theirs", 0, seconds=2),
            measured("ours", 1, seconds=10),
            measured("theirs", 1, seconds=30),
            measured("ours", 2, seconds=1),
        ]
    )
    assert [2.0, 3.0] == pytest.approx(results.ratios("push", "ours", "theirs"))


def test_what_was_not_measured_has_no_ratio_and_no_median() -> None:
    """A peer without a workload leaves its cells empty."""
    results = Results([measured("ours", 0, seconds=1)])
    assert [] == results.ratios("push", "ours", "theirs")
    assert results.middle("theirs", "push", lambda one: one.rate) is None


def test_cost_adds_both_sides() -> None:
    """Processor time for a GB is the client's and the server's."""
    assert measured("ours", 0, seconds=1).cpu_cost == pytest.approx(1.5)


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("0.25GB", 250_000_000), ("512MiB", 512 << 20), ("17", 17)])
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    """Binary and decimal units, with fractions."""
    assert size == parse_size(text)


@pytest.mark.slow
def test_a_command_is_measured_with_what_it_starts() -> None:
    """Processor time and memory of a child count."""
    code = "x = bytearray(b'1' * (64 << 20)); import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    done = run(["sh", "-c", '"$0" -c "$1"; true', sys.executable, code])
    assert done.peak_memory > 64 << 20
    assert done.cpu_seconds >= 0.2


def test_a_command_that_fails_ends_the_run_with_its_words() -> None:
    """The message has the text that the command wrote to standard error."""
    with pytest.raises(SystemExit, match="because"):
        run(["sh", "-c", "echo because >&2; exit 3"])


def test_commands_side_by_side_all_end_when_one_fails(tmp_path: Path) -> None:
    """No command runs on after a failure."""
    with pytest.raises(SystemExit, match="exit 3"):
        run_all([Command(["sh", "-c", "exit 3"]), Command(["sh", "-c", 'sleep 0.2; touch "$0"', tmp_path / "ended"])])
    assert (tmp_path / "ended").exists()


def test_every_stage_has_words() -> None:
    """A person reads what happens in it."""
    assert set(Stage) == set(STAGES)
