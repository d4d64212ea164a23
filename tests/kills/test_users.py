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
@pytest.mark.parametrize(("kind", "least_kills"), [("cache", 55), ("trees", 32), ("cluster", 20)])
def test_nothing_is_lost_when_one_of_several_users_is_killed(tmp_path: Path, kind: str, least_kills: int) -> None:
    """`python -m tests.kills --only cache,trees,cluster` runs it for longer. It forks, so it has a process of its own."""
    if kind == "cluster":
        postgres_program("initdb")
        gateway_programs()
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--only", kind, "--seed", str(SEED), "--random", "1", tmp_path / "trial"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert [] == report["failures"]
    assert least_kills <= report["kills"]
