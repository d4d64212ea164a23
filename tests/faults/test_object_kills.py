"""Work over an object store and PostgreSQL is killed before its changes, and done again to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.ceph import Bucket
from tests.support.commands import start_module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("work", "step"), [("migrate", 11), ("restore", 23), ("repair", 9)])
def test_it_is_killed_before_a_change(bucket: Bucket, postgres_url: str, tmp_path: Path, work: str, step: int) -> None:
    """Nothing is lost, nothing is left over, and both sides say the same. Without `--step`, the module strikes every change."""
    arguments = ("--step", str(step), "--bucket", bucket.location(), "--index", postgres_url, work, tmp_path)
    environ = {**os.environ, **bucket.environ}
    with start_module("tests.support.object_crashes", *arguments, env=environ) as process:
        output, error = process.communicate()
    assert 0 == process.returncode, error
    assert int(output) >= 5
