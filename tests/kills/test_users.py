"""Processes that share a cache, fetches and pushes of directories, and servers that share engines are killed one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ceph import gateway_programs
from tests.support.postgres import postgres_program

ROOT = Path(__file__).parents[2]
SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "random_count", "least_kills"), [("cache", 1, 55), ("trees", 1, 32), ("cluster", 7, 100)])
def test_nothing_is_lost_when_one_of_several_users_is_killed(
    tmp_path: Path, kind: str, random_count: int, least_kills: int
) -> None:
    """`python -m tests.kills --only cache,trees,cluster` runs it for longer. It forks, so it has a process of its own."""
    if kind == "cluster":
        postgres_program("initdb")
        gateway_programs()
    options = ["--only", kind, "--seed", str(SEED), "--random", str(random_count)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *options, tmp_path / "trial"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert [] == report["failures"]
    assert least_kills <= report["kills"]
