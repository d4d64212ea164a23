"""Read the pipelines of earlier versions, which were small JSON documents next to the repository.

    FOLDER/<pipeline id>.json
    FOLDER/names/<digest of a name>.json        the id of the newest pipeline of that name

All functions block: call them in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from filestore.core.references import PIPELINE_ID_PATTERN
from filestore.core.timestamps import parse_timestamp
from filestore.errors import StorageError
from filestore.http.server.errors import logger
from filestore.system.files import remove_if_possible, storage_errors

_MEMBERS = frozenset({"id", "name", "environment_id", "created_at", "graph_id", "path", "input_variables", "output_variables"})


class Document(NamedTuple):
    """The document of a pipeline: its file, and its members, which are those of `Pipeline`."""

    path: Path
    members: dict[str, Any]


def read_documents(folder: Path) -> list[Document]:
    """Return all documents in the order of their uploads. The pipeline that a name means comes last.

    A damaged document is left out, with a line in the log. Raises StorageError.
    """
    with storage_errors(folder):
        paths = sorted(folder.glob("pipeline_*.json"))
        named = sorted((folder / "names").glob("*.json")) if paths else []
    newest = {members.get("id") for path in named if (members := _read(path)) is not None}
    found = [Document(path, members) for path in paths if (members := _read(path)) is not None and _is_valid(path, members)]
    for path in {*paths} - {document.path for document in found}:
        logger.warning("%s; its pipeline cannot be run", _damage(path))
    return sorted(found, key=lambda document: (document.members["id"] in newest, document.members["created_at"], document.path))


def remove_documents(folder: Path, documents: Sequence[Document]) -> None:
    """Remove documents. If none is left then, remove their folder too."""
    for document in documents:
        remove_if_possible(document.path)
    with storage_errors(folder):
        if folder.exists() and not any(folder.glob("pipeline_*.json")):
            remove_if_possible(folder)


def check_not_left(folder: Path, reference: str) -> None:
    """Raise StorageError if a pipeline is unknown because its document is damaged."""
    if PIPELINE_ID_PATTERN.match(reference):
        path = folder / f"{reference}.json"
    else:
        # The name may hold slashes, and may be as long as a file name can be.
        digest = blake3(reference.encode(errors="surrogatepass")).hexdigest()
        named = _read(folder / "names" / f"{digest}.json") or {}
        path = folder / f"{named.get('id')}.json"
    with storage_errors(path):
        is_left = path.exists()
    if is_left:
        raise _damage(path)


def _damage(path: Path) -> StorageError:
    return StorageError(str(path), "it is not the document of a pipeline; restore the file and start the runtime again")


def _is_valid(path: Path, members: dict[str, Any]) -> bool:
    texts = (members.get(name) for name in ("id", "name", "environment_id", "created_at", "graph_id", "path"))
    if members.keys() != _MEMBERS or not all(isinstance(text, str) for text in texts) or path.stem != members["id"]:
        return False
    try:
        parse_timestamp(members["created_at"])
    except ValueError:
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return the object in a file. Return None if the file is absent or has something else in it."""
    with storage_errors(path):
        try:
            members = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
    return members if isinstance(members, dict) else None
