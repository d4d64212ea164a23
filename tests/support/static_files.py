"""Upload a pipeline with static files, and run it twice, by the Pipeline SDK.

Usage: `python static_files.py FILE_ID DIRECTORY_ID URL PATH`, in an environment with the SDK. PATH is a file for both
runs. There are no lazy annotations, because the SDK takes them for types.
"""

import json
import sys
from typing import Any

from pipeline import File, Pipeline, Variable, entity, pipe
from pipeline.cloud.pipelines import run_pipeline, upload_pipeline
from pipeline.objects import Directory

try:
    from pipeline.objects import FileURL

    stored_file, stored_directory, file_of_url = File.from_remote, Directory.from_remote, FileURL
except ImportError:
    # Later versions of the SDK have neither.
    FileURL = File

    def stored_file(*, id: str) -> File:  # noqa: A002  # as the SDK has it
        """Return a file that is stored already."""
        return File(remote_id=id)

    def stored_directory(*, id: str) -> Directory:  # noqa: A002  # as the SDK has it
        """Return a directory that is stored already."""
        return Directory(remote_id=id)

    def file_of_url(url: str) -> File:
        """Return a file of another site."""
        return File(url=url)


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

    def tell(self, what: str, file: File) -> Any:
        """Return the question, the content of its file, what was read, and how often it was read."""
        return [what, file.path.read_text(), *self.read, self.starts]


Model.load = pipe(Model.load, on_startup=True, run_once=True)  # type: ignore[method-assign]  # as the decorator does
Model.tell = pipe(Model.tell)  # type: ignore[method-assign]  # as the decorator does

with Pipeline() as builder:
    files = [
        stored_file(id=sys.argv[1]),
        stored_directory(id=sys.argv[2]),
        file_of_url(sys.argv[3]),
    ]
    what, given = Variable(str), Variable(File)
    model = entity(Model)()
    model.load(*files)
    builder.output(model.tell(what, given))

uploaded = upload_pipeline(builder.get_pipeline(), "static-files", environment_id_or_name="default")
results = [run_pipeline(uploaded.id, "now", File(path=sys.argv[4])).result.result_array()[0] for _ in range(2)]
print(json.dumps([results[0], results.count(results[0]) - 1]))  # noqa: T201  # what the test reads
