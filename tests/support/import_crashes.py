"""Kill the import of pipelines at its n-th system call or SQL statement, for every n.

`python -m tests.support.import_crashes FOLDER` works on FOLDER/<n>, and prints the number of runs. The last run is not
killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

from filestore.runtime.database import open_database
from filestore.runtime.pipelines import Pipelines
from tests.support.crashes import Fuse, kill_at_every_call, light

NAMES = ("team/model", "alone", "team/model", "team/model")
"""The names of pipelines in the order of their uploads."""
NEWEST = 2
"""The place of the upload that its name meant. A clock was set back, so a later one has an earlier time."""


def pipeline_id(place: int) -> str:
    """Return the id of the pipeline that was uploaded at a place."""
    return f"pipeline_{place:032x}"


def write_documents(folder: Path) -> None:
    """Write the documents of these pipelines as earlier versions of filestore did."""
    pipelines = folder / "pipelines"
    (pipelines / "names").mkdir(parents=True)
    for place, name in enumerate(NAMES):
        members: dict[str, Any] = {
            "id": pipeline_id(place),
            "name": name,
            "environment_id": "default",
            "created_at": f"2026-11-24T05:57:4{place}.535263Z",
            "graph_id": f"file_{place:032x}",
            "path": f"pipeline_files/{place}",
            "input_variables": [{"run_io_type": "string"}],
            "output_variables": [],
        }
        (pipelines / f"{members['id']}.json").write_text(json.dumps(members))
    for name, place in {"team/model": NEWEST, "alone": 1}.items():
        path = pipelines / "names" / f"{blake3(name.encode()).hexdigest()}.json"
        path.write_text(json.dumps({"id": pipeline_id(place)}))


@contextmanager
def opened_pipelines(folder: Path) -> Iterator[Pipelines]:
    """Open the pipelines of a runtime that keeps them in `folder`."""
    with closing(open_database(folder)) as database:
        yield Pipelines(database, folder / "pipelines")


def _main(folder: Path) -> None:
    def attempt(place: int, fuse: Fuse) -> None:
        write_documents(folder / str(place))
        light(fuse)
        with opened_pipelines(folder / str(place)):
            pass

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
