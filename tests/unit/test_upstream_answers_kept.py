"""How many answers of an upstream are kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

from filestore.upstream.upstream import remove_oldest


def test_the_oldest_go(tmp_path: Path) -> None:
    """Beyond the limit, the oldest are removed, so that a tenth less stays."""
    for number in range(21):
        (tmp_path / str(number)).touch()
        os.utime(tmp_path / str(number), (number, number))
    remove_oldest(tmp_path, limit=20, size_limit=100)
    assert {int(path.name) for path in tmp_path.iterdir()} == set(range(3, 21))
    remove_oldest(tmp_path, limit=20, size_limit=100)
    assert len(list(tmp_path.iterdir())) == 18
    remove_oldest(tmp_path / "none", limit=20, size_limit=100)


def test_the_oldest_go_if_all_are_too_large(tmp_path: Path) -> None:
    """Beyond the limit of bytes too, the oldest are removed, so that a tenth less stays."""
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes(30))
        os.utime(tmp_path / str(number), (number, number))
    remove_oldest(tmp_path, limit=20, size_limit=120)
    assert len(list(tmp_path.iterdir())) == 4
    remove_oldest(tmp_path, limit=20, size_limit=100)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}
