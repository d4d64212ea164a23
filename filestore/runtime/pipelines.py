"""The uploaded pipelines. The stored file of each is its graph.

All functions block: call them in a thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filestore.core.references import PipelineReference
from filestore.errors import InvalidInput
from filestore.runtime.database import Database
from filestore.runtime.documents import check_not_left, read_documents, remove_documents
from filestore.runtime.errors import PointerExists, PointerLocked, UnknownPipeline
from filestore.runtime.pointers import (
    LATEST,
    Pointer,
    add_pointer,
    add_version,
    change_pointer,
    checked_pointer,
    find_pointer,
    get_pointer,
    list_pointers,
    release_pointers,
    remove_pointer,
)

_COLUMNS = (
    "id, name, version, created_at, updated_at, environment_id, graph_id, path, input_variables, output_variables, requirements"
)
_SELECT = f"SELECT {_COLUMNS} FROM pipelines"  # noqa: S608  # a constant
_PAGE = " WHERE ?1 IS NULL OR name = ?1 ORDER BY rowid DESC LIMIT ?2 OFFSET ?3"
_INSERT = f"INSERT INTO pipelines ({_COLUMNS}) VALUES (:{_COLUMNS.replace(', ', ', :')})"  # noqa: S608  # a constant
REQUIREMENTS = ("minimum_cache_number", "gpu_memory_min", "accelerators")
"""What a client may say of a pipeline's needs, in the words of the Pipeline SDK. A runtime keeps it and does not use it."""

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
    """Values by names that are in `REQUIREMENTS`."""

    @property
    def pointer(self) -> str:
        """The pointer of its version. The name, before the pipeline is added."""
        return f"{self.name}:v{self.version}" if self.version else self.name

    def as_json(self) -> dict[str, Any]:
        """Return the members of the Pipeline SDK's `PipelineGet`, and the version."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.updated_at or self.created_at,
            "name": self.name,
            "path": self.path,
            "environment_id": self.environment_id,
            "input_variables": self.input_variables,
            "output_variables": self.output_variables,
            "version": self.version,
            **{name: self.requirements.get(name) for name in REQUIREMENTS},
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

        Its pointers are described in `pointers`. Raises PointerExists if its name is that of a pointer, StorageError,
        StorageFull, Busy.
        """
        with self._database.write() as connection:
            if find_pointer(connection, pipeline.name) is not None:
                raise PointerExists(pipeline.name)
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

    def all(self) -> list[Pipeline]:
        """Return all pipelines. Raises StorageError."""
        with self._database.read() as connection:
            return [_pipeline(row) for row in connection.execute(_SELECT)]

    def page(self, *, name: str | None, skip: int, limit: int) -> tuple[int, list[Pipeline]]:
        """Return the number of all pipelines, and a page of them, the newest first. `name` selects those of one name.

        Raises StorageError.
        """
        with self._database.read() as connection:
            (total,) = connection.execute("SELECT count(*) FROM pipelines WHERE ?1 IS NULL OR name = ?1", (name,)).fetchone()
            rows = connection.execute(f"{_SELECT}{_PAGE}", (name, limit, skip))
            return total, [_pipeline(row) for row in rows]

    def edit(self, reference: str, requirements: Mapping[str, Any], *, now: str) -> Pipeline:
        """Change some of a pipeline's requirements, and return it. Raises UnknownPipeline, StorageError, StorageFull."""
        with self._database.write() as connection:
            pipeline = _get(connection, reference)
            edited = replace(pipeline, requirements={**pipeline.requirements, **requirements}, updated_at=now)
            connection.execute(
                "UPDATE pipelines SET requirements = ?, updated_at = ? WHERE id = ?",
                (json.dumps(edited.requirements), now, edited.id),
            )
        return edited

    def remove(self, reference: str) -> Pipeline:
        """Remove the pipeline with an id or a pointer, and its pointers. Return it.

        But a pointer `NAME:latest` is moved to the newest other version of NAME, if there is one. Raises
        UnknownPipeline, PointerLocked if one of the pointers is locked, InvalidInput for a name, because a name means
        several pipelines.
        """
        with self._database.write() as connection:
            pipeline = _get(connection, reference)
            if reference != pipeline.id and find_pointer(connection, reference) is None:
                raise InvalidInput(f"{reference!r} may mean several pipelines; give the id of one, or a pointer such as NAME:v1")
            release_pointers(connection, pipeline.id)
            connection.execute("DELETE FROM pipelines WHERE id = ?", (pipeline.id,))
        return pipeline

    def pointer_page(self, *, pipeline_name: str | None, skip: int, limit: int) -> tuple[int, list[Pointer]]:
        """Return the number of all pointers, and a page of them, as `list_pointers` does."""
        with self._database.read() as connection:
            return list_pointers(connection, pipeline_name=pipeline_name, skip=skip, limit=limit)

    def create_pointer(self, text: str, target: str, *, locked: bool) -> Pointer:
        """Make a pointer to the pipeline that `target` means. Raises InvalidInput, PointerExists, UnknownPipeline."""
        checked_pointer(text)
        with self._database.write() as connection:
            # A pipeline of the same name could no longer be run by its name.
            if select_pipeline(connection, text) is not None:
                raise PointerExists(text)
            return add_pointer(connection, text, _get(connection, target).id, locked=locked)

    def edit_pointer(self, text: str, *, target: str | None, locked: bool | None) -> Pointer:
        """Move a pointer to the pipeline that `target` means, and lock or unlock it. None changes nothing.

        Raises UnknownPointer, UnknownPipeline, PointerLocked, InvalidInput for the pointer of a version.
        """
        with self._database.write() as connection:
            pointer = get_pointer(connection, text)
            if target is not None:
                # Also if the same request unlocks it: the SDK's command says unlocked where the user said nothing.
                if pointer.locked:
                    raise PointerLocked(text)
                if pointer.is_version:
                    raise InvalidInput(f"{text!r} is a version and never moves; move {LATEST}, or a pointer of your own")
                pointer = pointer._replace(pipeline_id=_get(connection, target).id)
            return change_pointer(connection, pointer if locked is None else pointer._replace(locked=locked))

    def remove_pointer(self, text: str) -> Pointer:
        """Remove a pointer. Raises UnknownPointer, PointerLocked, InvalidInput for the pointer of a version."""
        with self._database.write() as connection:
            pointer = get_pointer(connection, text)
            if pointer.is_version:
                raise InvalidInput(f"{text!r} is a version, which only goes together with its pipeline; delete the pipeline")
            remove_pointer(connection, pointer)
        return pointer

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
    try:
        asked = PipelineReference.parse(reference)
    except InvalidInput:
        return None
    if asked.id is not None:
        return _first(connection, "WHERE id = ?", asked.id)
    by_pointer = "WHERE id = (SELECT pipeline_id FROM pointers WHERE pointer = ?)"
    return (
        _first(connection, by_pointer, reference)
        # Before the newest version, because `:latest` may have been moved.
        or _first(connection, by_pointer, f"{reference}:{LATEST}")
        or _first(connection, "WHERE name = ? ORDER BY version DESC", reference)
    )


def _get(connection: sqlite3.Connection, reference: str) -> Pipeline:
    pipeline = select_pipeline(connection, reference)
    if pipeline is None:
        raise UnknownPipeline(reference)
    return pipeline


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
    add_version(connection, added.id, name=added.name, version=version)
    return added
