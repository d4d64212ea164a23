"""Classes that are called as the Pipeline SDK's are, in a module of that name; its real ones run in the e2e tests."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse


class File:
    """The members that a `File` of version 2 has; version 1 has no `url`."""

    def __init__(self, *, path: Path | None = None, remote_id: str | None = None, url: str | None = None) -> None:
        self.path = path
        self.remote_id = remote_id
        self.url = None if url is None else urlparse(url)


class Directory(File):
    """A directory."""


class FileURL(File):
    """That of version 1, whose path is its URL, mangled."""

    def __init__(self, url: str) -> None:
        super().__init__(path=Path(url))
        self.url = url  # type: ignore[assignment]  # as theirs is


class InputSchema:
    """What classes of inputs are made from."""


for _class in (File, Directory, FileURL, InputSchema):
    _class.__module__ = "pipeline.objects.graph"
