"""Define classes with the names of the Pipeline SDK's, in a module of that name. The e2e tests use the real ones."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse


class File:
    """Has the members of `File` of version 2. Version 1 has no `url`."""

    def __init__(self, *, path: Path | None = None, remote_id: str | None = None, url: str | None = None) -> None:
        self.path = path
        self.remote_id = remote_id
        self.url = None if url is None else urlparse(url)


class Directory(File):
    """Has the members of `Directory`."""


class FileURL(File):
    """Has the members of version 1, whose path is its URL in a changed form."""

    def __init__(self, url: str) -> None:
        super().__init__(path=Path(url))
        self.url = url  # type: ignore[assignment]  # as in the SDK


class InputSchema:
    """The base of classes of inputs."""


for _class in (File, Directory, FileURL, InputSchema):
    _class.__module__ = "pipeline.objects.graph"
