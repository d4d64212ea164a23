"""Push, fetch, remove, collect and check at once, for half a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import start_module

SECONDS = "30"


@pytest.mark.slow
def test_nothing_is_lost_and_the_disk_use_is_flat(tmp_path: Path) -> None:
    """`tests/support/soak.py` says how long it runs elsewhere."""
    with start_module("tests.support.soak", "--seconds", SECONDS, "--seed", "1", tmp_path / "soak") as process:
        said, error = process.communicate()
    assert "" == error
    result = json.loads(said)
    assert [] == result["failures"]
    assert min(result[name] for name in ("pushed", "fetched", "removed", "collections", "checks", "freed")) > 0
