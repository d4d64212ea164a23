from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import filestore
from filestore.runtime import worker

HEAVY = {"aiohttp", "aiofiles", "alembic", "asyncpg", "sqlalchemy", "numpy", "rich", "click", "sqlite3", "zstandard", "pyfastcdc"}


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


def test_no_module_of_the_tests_hides_one_of_python() -> None:
    """Some are started as programs, and then the other modules of their folder are found before those of Python."""
    tests = Path(__file__).parents[1]
    assert [] == [path.name for path in tests.rglob("*.py") if path.stem in sys.stdlib_module_names]


def test_a_client_over_plain_http_is_light() -> None:
    """push, fetch and unpack load no HTTP library; numpy comes with the first frame."""
    modules = loaded(
        "import filestore_cli.main, filestore.transfer.push, filestore.transfer.fetch, filestore.transfer.fetch_tree;"
        "import filestore.http.client.repository"
    )
    assert modules & {"aiohttp", "aiofiles", "numpy", "rich"} == set()


def test_the_worker_needs_nothing_of_filestore() -> None:
    """It runs in a Python that has the Pipeline SDK and no filestore: all other imports are of the standard library."""
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(Path(worker.__file__).read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else ["." if node.level else node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {"pipeline"} == imported - sys.stdlib_module_names


@pytest.mark.parametrize("name", filestore.__all__)
def test_public_names_are_there(name: str) -> None:
    """What `__all__` lists can be imported, though it is loaded on first use."""
    assert getattr(filestore, name) is not None
    assert name in dir(filestore)
