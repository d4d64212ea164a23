"""Fixtures that more than one folder uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.repository import Repository
from tests.support.commands import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user who has never used filestore."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Home(folder)


@pytest.fixture
async def local_repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """A repository in a folder of its own."""
    async with connect(str(tmp_path / "repository")) as repository:
        yield repository
