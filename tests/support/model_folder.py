"""Upload a pipeline with a folder as a static `Directory`, and print how its first run ended, by the Pipeline SDK.

Usage: `python model_folder.py FOLDER`, or `python model_folder.py ID` of a stored folder, in an environment with the SDK.
There are no lazy annotations, because the SDK takes them for types.
"""

import json
import sys
from typing import Any

from pipeline import Pipeline, Variable, pipe
from pipeline.cloud.pipelines import run_pipeline, upload_pipeline
from pipeline.objects import Directory


class Model:
    """Reads the configurations of a model of sentence-transformers."""

    def __init__(self) -> None:
        self.read: Any = None

    def load(self, model: Directory) -> None:
        """Read the two files that have the same name."""
        configurations = [model.path / "config.json", model.path / "1_Pooling" / "config.json"]
        self.read = [min(json.loads(path.read_text())) for path in configurations]

    def tell(self, what: str) -> Any:
        """Return the input, and the first name of each."""
        return [what, *self.read]


if __name__ == "__main__":
    from pipeline import entity

    Model.load = pipe(Model.load, on_startup=True, run_once=True)  # type: ignore[method-assign]  # as the decorator does
    Model.tell = pipe(Model.tell)  # type: ignore[method-assign]  # as the decorator does
    given = sys.argv[1]
    with Pipeline() as builder:
        folder = Directory.from_remote(id=given) if given.startswith("file_") else Directory(path=given)
        what = Variable(str)
        model = entity(Model)()
        model.load(folder)
        builder.output(model.tell(what))
    uploaded = upload_pipeline(builder.get_pipeline(), "model-folder", environment_id_or_name="default")
    run = run_pipeline(uploaded.id, "now")
    ended = run.error.exception if run.result is None else run.result.result_array()[0]
    print(json.dumps([folder.remote_id, ended]))  # noqa: T201  # what the test reads
