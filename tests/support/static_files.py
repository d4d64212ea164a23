"""Upload a pipeline with static files, and run it twice, by the Pipeline SDK.

Usage: `python static_files.py FILE_ID DIRECTORY_ID URL`, in an environment with the SDK. There are no lazy annotations,
because the SDK takes them for types.
"""

import json
import sys
from typing import Any

from pipeline import File, Pipeline, Variable, entity, pipe
from pipeline.cloud.pipelines import run_pipeline, upload_pipeline
from pipeline.objects import Directory, FileURL


class Model:
    """Reads its files when it starts."""

    def __init__(self) -> None:
        self.starts = 0
        self.read: list[str] = []

    def load(self, weights: File, tree: Directory, labels: FileURL) -> None:
        """Read the contents of its files."""
        self.starts += 1
        paths = (weights.path, tree.path / "inner" / "a.txt", labels.path)
        self.read = [path.read_text() for path in paths]

    def tell(self, what: str) -> Any:
        """Return the question, what was read, and how often it was read."""
        return [what, *self.read, self.starts]


Model.load = pipe(Model.load, on_startup=True, run_once=True)  # type: ignore[method-assign]  # as the decorator does
Model.tell = pipe(Model.tell)  # type: ignore[method-assign]  # as the decorator does

with Pipeline() as builder:
    files = [
        File.from_remote(id=sys.argv[1]),
        Directory.from_remote(id=sys.argv[2]),
        FileURL(sys.argv[3]),
    ]
    what = Variable(str)
    model = entity(Model)()
    model.load(*files)
    builder.output(model.tell(what))

uploaded = upload_pipeline(builder.get_pipeline(), "static-files", environment_id_or_name="default")
results = [run_pipeline(uploaded.id, "now").result.result_array()[0] for _ in range(2)]
print(json.dumps([results[0], results.count(results[0]) - 1]))  # noqa: T201  # what the test reads
