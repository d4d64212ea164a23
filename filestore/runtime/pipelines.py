"""The uploaded pipelines. The stored file of each is its graph.

All functions block: call them in a thread.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filestore.core.references import PIPELINE_ID_PATTERN
from filestore.runtime.database import Database
from filestore.runtime.documents import check_not_left, read_documents, remove_documents
from filestore.runtime.errors import UnknownPipeline

_COLUMNS = (
    "id, name, version, created_at, updated_at, environment_id, graph_id, path, input_variables, output_variables, requirements"
)
_SELECT = f"SELECT {_COLUMNS} FROM pipelines"  # noqa: S608  # a constant
_INSERT = f"INSERT INTO pipelines ({_COLUMNS}) VALUES (:{_COLUMNS.replace(', ', ', :')})"  # noqa: S608  # a constant
_JSON_COLUMNS = frozenset({"input_variables", "output_variables", "requirements"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """An uploaded pipeline."""

    id: str
    name: str
    environment_id: str
    created_at: str
    graph_id: str
    """The id of the stored graph."""
    path: str
    """The path of the stored graph."""
    input_variables: list[dict[str, Any]]
    output_variables: list[dict[str, Any]]
    version: int = 0
    """Its number among the pipelines of this name, from 1. It is 0 before the pipeline is added."""
    updated_at: str = ""
    """When the pipeline was last edited. Empty for a pipeline that was not."""
    requirements: dict[str, Any] = field(default_factory=dict)
    """What the upload says of memory, accelerators and processes. A runtime keeps it and does not use it."""

    def as_json(self) -> dict[str, Any]:
        """Return the members of the Pipeline SDK's `PipelineGet`."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.updated_at or self.created_at,
            "name": self.name,
            "path": self.path,
            "environment_id": self.environment_id,
            "input_variables": self.input_variables,
            "output_variables": self.output_variables,
        }


class Pipelines:
    """The pipelines of a runtime."""

    def __init__(self, database: Database, documents: Path) -> None:
        """`documents` is the folder of pipelines that an earlier version of filestore has kept.

        They are imported in one transaction, and the documents are removed when that is durable. Raises StorageError,
        StorageFull, Busy.
        """
        self._database = database
        self._documents = documents
        self._import()

    def add(self, pipeline: Pipeline) -> Pipeline:
        """Store a pipeline durably as the newest version of its name, and return it with its version.

        Raises StorageError, StorageFull, Busy.
        """
        with self._database.write() as connection:
            return _insert(connection, pipeline)

    def find(self, reference: str) -> Pipeline:
        """Return the pipeline with an id, or the one that a pointer or a name means.

        A name means the newest version, or what its pointer `:latest` was moved to. Raises UnknownPipeline if there is
        none, StorageError.
        """
        with self._database.read() as connection:
            found = select_pipeline(connection, reference)
        if found is None:
            check_not_left(self._documents, reference)
            raise UnknownPipeline(reference)
        return found

    def _import(self) -> None:
        documents = read_documents(self._documents)
        if documents:
            with self._database.write() as connection:
                for document in documents:
                    pipeline = Pipeline(**document.members)
                    # A kill after the transaction leaves documents that were imported.
                    if select_pipeline(connection, pipeline.id) is None:
                        _insert(connection, pipeline)
        # Also without documents: a kill may have left their folder.
        remove_documents(self._documents, documents)


def select_pipeline(connection: sqlite3.Connection, reference: str) -> Pipeline | None:
    """Return what a reference means: an id, else a pointer, else a name. Return None if it means nothing."""
    if not reference.isprintable():
        # No pipeline has such a name. SQLite fails for some of these texts.
        return None
    if PIPELINE_ID_PATTERN.match(reference):
        return _first(connection, "WHERE id = ?", reference)
    by_pointer = "WHERE id = (SELECT pipeline_id FROM pointers WHERE pointer = ?)"
    return (
        _first(connection, by_pointer, reference)
        # Before the newest version, because `:latest` may have been moved.
        or _first(connection, by_pointer, f"{reference}:latest")
        or _first(connection, "WHERE name = ? ORDER BY version DESC", reference)
    )


def _first(connection: sqlite3.Connection, condition: str, value: str) -> Pipeline | None:
    row = connection.execute(f"{_SELECT} {condition} LIMIT 1", (value,)).fetchone()
    return None if row is None else _pipeline(row)


def _pipeline(row: tuple[Any, ...]) -> Pipeline:
    members = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Pipeline(**{name: json.loads(value) if name in _JSON_COLUMNS else value for name, value in members.items()})


def _insert(connection: sqlite3.Connection, pipeline: Pipeline) -> Pipeline:
    connection.execute(
        "INSERT INTO names (name, last_version) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1",
        (pipeline.name,),
    )
    (version,) = connection.execute("SELECT last_version FROM names WHERE name = ?", (pipeline.name,)).fetchone()
    added = replace(pipeline, version=version)
    members = {name: getattr(added, name) for name in _COLUMNS.split(", ")}
    connection.execute(_INSERT, {name: json.dumps(value) if name in _JSON_COLUMNS else value for name, value in members.items()})
    return added
