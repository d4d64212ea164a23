"""Fixtures of the simulation's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder, in memory where the system has such a file system."""
    made = Path(tempfile.mkdtemp(prefix="filestore-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None))
    yield made
    shutil.rmtree(made, ignore_errors=True)
