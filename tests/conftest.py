"""Fixtures that more than one folder uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.repository import Repository
from tests.support.commands import Home
from tests.support.nginx import Nginx, running_nginx


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


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """A real server, on an address that is not public."""
    with running_nginx(tmp_path / "nginx") as running:
        yield running
