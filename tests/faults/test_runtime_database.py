"""The SQLite file of a runtime: what earlier versions kept is imported as a whole, whatever happens meanwhile."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from filestore.errors import StorageError, UnknownFormat
from filestore.runtime.database import FILE_NAME, MIGRATIONS, open_database
from filestore.runtime.errors import UnknownPipeline
from tests.support.commands import start_module
from tests.support.import_crashes import NAMES, NEWEST, opened_pipelines, pipeline_id, write_documents


def check_imported(folder: Path) -> None:
    """Check that all pipelines are there, with the versions of their names, and no document is left."""
    with opened_pipelines(folder) as pipelines:
        found = [pipelines.find(pipeline_id(place)) for place in range(len(NAMES))]
        assert list(NAMES) == [pipeline.name for pipeline in found]
        assert [1, 1, 3, 2] == [pipeline.version for pipeline in found]
        assert [{"run_io_type": "string"}] == found[0].input_variables
        assert (found[NEWEST], found[1]) == (pipelines.find("team/model"), pipelines.find("alone"))
    assert not (folder / "pipelines").exists()


def test_pipelines_of_an_earlier_version_are_imported(tmp_path: Path) -> None:
    """Their versions follow the times of their uploads. The one that its name meant is the last. No document is left."""
    write_documents(tmp_path)

    check_imported(tmp_path)
    check_imported(tmp_path)
    assert 0o600 == (tmp_path / FILE_NAME).stat().st_mode & 0o777


@pytest.mark.slow
def test_an_import_is_killed_at_any_call(tmp_path: Path) -> None:
    """The next start imports what is missing, and nothing twice."""
    with start_module("tests.support.import_crashes", tmp_path) as process:
        killed = int(process.communicate()[0])

    assert (0, True) == (process.returncode, killed > 20)
    for place in range(1, killed + 1):
        check_imported(tmp_path / str(place))


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"id": "pipeline_0"}'])
def test_a_damaged_document_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """It stays for the user, the other pipelines are imported, and its error differs from that of an unknown pipeline."""
    write_documents(tmp_path)
    document = tmp_path / "pipelines" / f"{pipeline_id(1)}.json"
    restored = document.read_bytes()
    document.write_text(damage)

    with opened_pipelines(tmp_path) as pipelines:
        assert pipeline_id(NEWEST) == pipelines.find("team/model").id
        for reference in ("alone", pipeline_id(1)):
            with pytest.raises(StorageError, match="restore the file and start the runtime again"):
                pipelines.find(reference)
        with pytest.raises(UnknownPipeline):
            pipelines.find("unknown")
    assert f"{document} failed: it is not the document of a pipeline" in caplog.text

    document.write_bytes(restored)
    check_imported(tmp_path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """The program says which version it knows, and changes nothing."""
    open_database(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(UnknownFormat, match=f"has format 99, this program knows {len(MIGRATIONS)}"):
        open_database(tmp_path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A migration is one transaction. The next start tries it again."""
    half = (*MIGRATIONS, ("CREATE TABLE more (id TEXT)", "no statement"))
    with pytest.raises(StorageError, match="syntax error"):
        open_database(tmp_path, migrations=half)

    whole = (*MIGRATIONS, ("CREATE TABLE more (id TEXT)",))
    with closing(open_database(tmp_path, migrations=whole)) as database, database.read() as connection:
        assert (len(whole),) == connection.execute("PRAGMA user_version").fetchone()
        assert [] == connection.execute("SELECT id FROM more").fetchall()
