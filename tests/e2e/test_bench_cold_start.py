"""The measurement of starts, in its short form."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import REPOSITORY, Home


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_each_start_fetches_what_the_cache_does_not_have(home: Home) -> None:
    """A cold start all bytes, a warm one none, and a start of a second version only what is new; each way loads the weights."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench/cold_start.py", "--only", "weights", "--size", "4MiB", "--folder", home.folder],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    ways = [("cold", "resolve"), ("warm", "resolve"), ("second version", "resolve")]
    assert [*ways, *((start, "open") for start, _ in ways)] == [(start, way) for _, start, way, *_ in rows]
    for cold, warm, second in (rows[:3], rows[3:]):
        sizes = [[float(cell) for cell in row[-3:]] for row in (cold, warm, second)]
        assert [[2.8, 0.0, 0.0], [0.0, 4.2, 0.0], [0.7, 0.0, 3.1]] == sizes
