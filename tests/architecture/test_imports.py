from __future__ import annotations

import json
import subprocess
import sys

import pytest

import filestore

HEAVY = {"aiohttp", "aiofiles", "numpy", "rich", "click", "sqlite3", "zstandard", "pyfastcdc"}


def loaded(statement: str) -> set[str]:
    """The top-level packages that a fresh process has after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_filestore_is_light() -> None:
    """`import filestore` loads nothing that takes long: heavy packages come with their first use."""
    assert loaded("import filestore") & HEAVY == set()


def test_the_command_line_is_light() -> None:
    """`filestore --help` needs click, and no more."""
    assert loaded("import filestore_cli.main") & HEAVY == {"click"}


def test_a_client_over_plain_http_is_light() -> None:
    """push, fetch and unpack load no HTTP library; numpy comes with the first frame."""
    modules = loaded(
        "import filestore_cli.main, filestore.transfer.push, filestore.transfer.fetch, filestore.transfer.fetch_tree;"
        "import filestore.http.client.repository"
    )
    assert modules & {"aiohttp", "aiofiles", "numpy", "rich"} == set()


@pytest.mark.parametrize("name", filestore.__all__)
def test_public_names_are_there(name: str) -> None:
    """What `__all__` lists can be imported, though it is loaded on first use."""
    assert getattr(filestore, name) is not None
    assert name in dir(filestore)
