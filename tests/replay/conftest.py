"""Fixtures of replays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replay.recording import build_recorder, fast_folder


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled recorder."""
    return build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one, because a replay writes thousands of small folders."""
    made = Path(tempfile.mkdtemp(dir=fast_folder()))
    yield made
    shutil.rmtree(made)
