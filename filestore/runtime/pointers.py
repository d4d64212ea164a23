"""Pointers name pipelines: `NAME:v1`, `NAME:v2` and so on, `NAME:latest`, and names that users choose.

Each upload of NAME makes the next `NAME:vN`, which never moves, and moves `NAME:latest` to the upload, unless that
pointer is locked. The functions here are parts of transactions of `Pipelines`, and block.
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from typing import Any, NamedTuple

from filestore.core.names import checked_pipeline_name
from filestore.errors import InvalidInput
from filestore.runtime.errors import PointerLocked, UnknownPointer

LATEST = "latest"

_TAG = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}\Z")
_VERSION = re.compile(r"v[1-9][0-9]*\Z")
_SELECT = "SELECT pointers.pointer, pointers.id, pointers.pipeline_id, pointers.locked FROM pointers"
_OF_NAME = " JOIN pipelines ON pipelines.id = pointers.pipeline_id WHERE ?1 IS NULL OR pipelines.name = ?1"
_COUNT = f"SELECT count(*) FROM pointers{_OF_NAME}"  # noqa: S608  # a constant
_PAGE = (
    " ORDER BY pipelines.rowid DESC, pointers.pointer != pipelines.name || ':v' || pipelines.version, pointers.pointer"
    " LIMIT ?2 OFFSET ?3"
)


class Pointer(NamedTuple):
    """A pointer to a pipeline."""

    pointer: str
    """Its whole name, such as `team/model:v1`."""
    id: str
    pipeline_id: str
    locked: bool

    @property
    def is_version(self) -> bool:
        """Whether the pointer is one that an upload made for its version."""
        return _VERSION.match(self.pointer.rpartition(":")[2]) is not None

    def as_json(self) -> dict[str, Any]:
        """Return the members of the Pipeline SDK's `PointerGet`."""
        return {"id": self.id, "pointer": self.pointer, "pipeline_id": self.pipeline_id, "locked": self.locked}


def checked_pointer(text: str) -> str:
    """Return `text` if a user may make a pointer of this name. Raises InvalidInput otherwise."""
    name, colon, tag = text.rpartition(":")
    if not colon or not _TAG.match(tag):
        raise InvalidInput(
            f"{text!r} is not the name of a pointer; it is NAME:TAG, and the tag has up to 128 letters, digits, '_', '.' and '-'"
        )
    checked_pipeline_name(name)
    checked_pipeline_name(text)
    if _VERSION.match(tag):
        raise InvalidInput(f"{text!r} names a version, and only an upload makes a version; choose another tag")
    return text


def find_pointer(connection: sqlite3.Connection, text: str) -> Pointer | None:
    """Return the pointer of this name, or None."""
    # SQLite fails for some texts that are not printable, and no pointer is such a text.
    row = connection.execute(f"{_SELECT} WHERE pointer = ?", (text,)).fetchone() if text.isprintable() else None
    return None if row is None else _pointer(row)


def get_pointer(connection: sqlite3.Connection, text: str) -> Pointer:
    """Return the pointer of this name. Raises UnknownPointer."""
    pointer = find_pointer(connection, text)
    if pointer is None:
        raise UnknownPointer(text)
    return pointer


def list_pointers(
    connection: sqlite3.Connection, *, pipeline_name: str | None, skip: int, limit: int
) -> tuple[int, list[Pointer]]:
    """Return the number of all pointers, and a page of them. `pipeline_name` selects those to pipelines of one name.

    The pointers of the newest pipeline come first. Among those of one pipeline, its `NAME:vN` comes first.
    """
    (total,) = connection.execute(_COUNT, (pipeline_name,)).fetchone()
    rows = connection.execute(f"{_SELECT}{_OF_NAME}{_PAGE}", (pipeline_name, limit, skip))
    return total, [_pointer(row) for row in rows]


def add_pointer(connection: sqlite3.Connection, text: str, pipeline_id: str, *, locked: bool = False) -> Pointer:
    """Insert a pointer that does not exist."""
    pointer = Pointer(text, f"pointer_{uuid.uuid4().hex}", pipeline_id, locked)
    connection.execute("INSERT INTO pointers (pointer, id, pipeline_id, locked) VALUES (?, ?, ?, ?)", pointer)
    return pointer


def add_version(connection: sqlite3.Connection, pipeline_id: str, *, name: str, version: int) -> None:
    """Insert the pointer of a new version, and move `:latest` to it unless that pointer is locked."""
    add_pointer(connection, f"{name}:v{version}", pipeline_id)
    latest = find_pointer(connection, f"{name}:{LATEST}")
    if latest is None:
        add_pointer(connection, f"{name}:{LATEST}", pipeline_id)
    elif not latest.locked:
        change_pointer(connection, latest._replace(pipeline_id=pipeline_id))


def change_pointer(connection: sqlite3.Connection, pointer: Pointer) -> Pointer:
    """Write the pipeline and the lock of a pointer that exists."""
    connection.execute(
        "UPDATE pointers SET pipeline_id = ?, locked = ? WHERE pointer = ?",
        (pointer.pipeline_id, pointer.locked, pointer.pointer),
    )
    return pointer


def remove_pointer(connection: sqlite3.Connection, pointer: Pointer) -> None:
    """Remove a pointer. Raises PointerLocked."""
    if pointer.locked:
        raise PointerLocked(pointer.pointer)
    connection.execute("DELETE FROM pointers WHERE pointer = ?", (pointer.pointer,))


def release_pointers(connection: sqlite3.Connection, pipeline_id: str) -> None:
    """Let no pointer mean a pipeline that is about to be deleted.

    A pointer `:latest` falls back to the newest other version of its name. Others are removed with their pipeline.
    Raises PointerLocked.
    """
    rows = connection.execute(f"{_SELECT} WHERE pipeline_id = ?", (pipeline_id,)).fetchall()
    for pointer in map(_pointer, rows):
        if pointer.locked:
            raise PointerLocked(pointer.pointer)
        name, _, tag = pointer.pointer.rpartition(":")
        other = None
        if tag == LATEST:
            other = connection.execute(
                "SELECT id FROM pipelines WHERE name = ? AND id != ? ORDER BY version DESC LIMIT 1", (name, pipeline_id)
            ).fetchone()
        if other is None:
            remove_pointer(connection, pointer)
        else:
            change_pointer(connection, pointer._replace(pipeline_id=other[0]))


def _pointer(row: tuple[Any, ...]) -> Pointer:
    pointer, pointer_id, pipeline_id, locked = row
    return Pointer(pointer, pointer_id, pipeline_id, bool(locked))
