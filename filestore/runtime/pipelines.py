"""The uploaded pipelines are small documents next to the repository. The stored file of each is its graph.

    FOLDER/<pipeline id>.json
    FOLDER/names/<digest of a name>.json        the id of the newest pipeline of that name

All functions block: call them in a thread.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from filestore.core.references import PipelineReference
from filestore.errors import InvalidInput, StorageError
from filestore.runtime.errors import UnknownPipeline
from filestore.system.files import storage_errors, write_durably


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The document of an uploaded pipeline."""

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

    def as_json(self) -> dict[str, Any]:
        """Return the members of the Pipeline SDK's `PipelineGet`."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.created_at,
            "name": self.name,
            "path": self.path,
            "environment_id": self.environment_id,
            "input_variables": self.input_variables,
            "output_variables": self.output_variables,
        }


class Pipelines:
    """The documents in a folder. Any number of processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pipeline: Pipeline) -> None:
        """Store a pipeline durably. From now on its name means this pipeline. Raises StorageError, StorageFull."""
        write_durably(self._folder / f"{pipeline.id}.json", asdict(pipeline))
        # Write the name last, so that the pipeline that it means exists.
        write_durably(self._name_path(pipeline.name), {"id": pipeline.id})

    def find(self, reference: str) -> Pipeline:
        """Return the pipeline with an id, or the newest one with a name.

        Raises UnknownPipeline if there is none, StorageError.
        """
        try:
            asked = PipelineReference.parse(reference)
        except InvalidInput:
            raise UnknownPipeline(reference) from None
        found = _read(self._folder / f"{asked.id}.json") if asked.id is not None else None
        if found is None:
            # Pointers are not supported yet, and an upload may have been named like one.
            named = _read(self._name_path(reference))
            found = None if named is None else _read(self._folder / f"{named['id']}.json")
        if found is None:
            raise UnknownPipeline(reference)
        return Pipeline(**found)

    def _name_path(self, name: str) -> Path:
        # The file name is a digest, because the pipeline's name may hold slashes and may be as long as a file name can
        # be.
        return self._folder / "names" / f"{blake3(name.encode(errors='surrogatepass')).hexdigest()}.json"


def _read(path: Path) -> dict[str, Any] | None:
    with storage_errors(path):
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StorageError(str(path), str(error)) from None
    return document
