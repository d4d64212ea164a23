"""What the upstream says about one revision of a repository. Nothing in it is trusted (I4). No I/O.

Source: `ModelInfo` and `RepoSibling` in `hf_api.py` of the Python client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from filestore.core.records import parse_json, value_count
from filestore.errors import UpstreamFailed

DOCUMENT_LIMIT = 64 << 20
"""The size of the largest document that is read from the upstream, in bytes."""
FILES_LIMIT = 100_000
"""The most files of a repository."""
PATH_LIMIT = 1024
"""The most characters of the path of a file."""
SIZE_LIMIT = 1 << 50
_VALUES_LIMIT = 16 * FILES_LIMIT
_TAGS_LIMIT = 200
_TEXT_LIMIT = 200

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class UpstreamFile(NamedTuple):
    """One file of a repository at the upstream."""

    size: int
    blob_id: str
    """The id of its git blob in hexadecimal digits. For a file that LFS keeps, it is that of the pointer."""
    sha256: str | None
    """In hexadecimal digits. None for a file that LFS does not keep."""
    pointer_size: int = 0

    @property
    def tag(self) -> str:
        """The entity tag of the file, which is what its content is verified with."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    is_private: bool
    is_gated: bool
    files: dict[str, UpstreamFile]
    """By their paths."""
    about: dict[str, Any]
    """The members of the description that clients show: `tags`, `lastModified`, `pipeline_tag`, `library_name`."""

    @property
    def is_open(self) -> bool:
        """Whether anybody may read the files."""
        return not (self.is_private or self.is_gated)

    def as_json(self) -> dict[str, Any]:
        """Return the form in which it is kept. `kept_listing` is the inverse."""
        return {
            "commit": self.commit,
            "is_private": self.is_private,
            "is_gated": self.is_gated,
            "files": [[path, *file] for path, file in self.files.items()],
            "about": self.about,
        }

    def folders(self) -> Iterator[str]:
        """Yield the paths of all folders, some of them more than once."""
        return (folder for path in self.files for folder in _above(path))


def kept_listing(values: Any) -> Listing:
    """Make a listing of its JSON form. Raises KeyError, TypeError, ValueError."""
    files = {path: UpstreamFile(*rest) for path, *rest in values["files"]}
    return Listing(values["commit"], values["is_private"], values["is_gated"], files, values["about"])


def parse_listing(name: str, document: bytes) -> Listing:
    """Read the description of a revision with its blobs, as the upstream sends it. Raises UpstreamFailed."""
    if value_count(document) > _VALUES_LIMIT:
        raise UpstreamFailed(name, "its description has too many members")
    try:
        values = parse_json(document)
    except ValueError:
        raise UpstreamFailed(name, "its description is not JSON, as a page for people is not") from None
    commit, siblings = _member(values, "sha"), _member(values, "siblings")
    if not isinstance(commit, str) or not _COMMIT.match(commit):
        raise UpstreamFailed(name, "its description does not have the commit, of 40 hexadecimal digits")
    if not isinstance(siblings, list) or len(siblings) > FILES_LIMIT:
        raise UpstreamFailed(name, f"its description does not list files, or more than {FILES_LIMIT}")
    files: dict[str, UpstreamFile] = {}
    for sibling in siblings:
        path, file = _file(name, sibling)
        if path in files:
            raise UpstreamFailed(name, f"it lists the path {path!r} twice")
        files[path] = file
    above = {folder for path in files for folder in _above(path)}
    if not above.isdisjoint(files):
        raise UpstreamFailed(name, "it lists a path as a file and as a folder")
    # What is not said clearly counts as closed.
    is_private, is_gated = _member(values, "private") is not False, _member(values, "gated") not in {False, None}
    return Listing(commit, is_private, is_gated, files, _about(values))


def checked_path(text: object) -> str | None:
    """Return `text` if it can be the path of a file. Otherwise return None."""
    if not isinstance(text, str) or not 0 < len(text) <= PATH_LIMIT or not text.isprintable() or "\\" in text:
        return None
    return text if {"", ".", ".."}.isdisjoint(text.split("/")) else None


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _file(name: str, sibling: Any) -> tuple[str, UpstreamFile]:
    path = checked_path(_member(sibling, "rfilename"))
    if path is None:
        raise UpstreamFailed(name, "it lists a path that no file can have")
    size, blob_id, lfs = (_member(sibling, key) for key in ("size", "blobId", "lfs"))
    sha256 = None if lfs is None else _member(lfs, "sha256") or _member(lfs, "oid")
    if lfs is not None and _member(lfs, "size") is not None:
        size = _member(lfs, "size")
    if type(size) is not int or not 0 <= size < SIZE_LIMIT:
        raise UpstreamFailed(name, f"it does not say the size of {path!r}")
    is_known = isinstance(blob_id, str) and _COMMIT.match(blob_id)
    if lfs is None and not is_known:
        raise UpstreamFailed(name, f"it does not say a digest of {path!r}")
    if lfs is not None and not (isinstance(sha256, str) and _SHA256.match(sha256)):
        raise UpstreamFailed(name, f"it does not say the SHA-256 of {path!r}")
    pointer_size = _member(lfs, "pointerSize")
    if type(pointer_size) is not int or not 0 <= pointer_size < SIZE_LIMIT:
        pointer_size = 0
    return path, UpstreamFile(size, str(blob_id) if is_known else "0" * 40, sha256, pointer_size)


def _about(values: Any) -> dict[str, Any]:
    texts = {key: _member(values, key) for key in ("lastModified", "pipeline_tag", "library_name", "author")}
    about: dict[str, Any] = {key: text for key, text in texts.items() if isinstance(text, str) and len(text) <= _TEXT_LIMIT}
    tags = _member(values, "tags")
    listed = tags if isinstance(tags, list) else []
    about["tags"] = [tag for tag in listed[:_TAGS_LIMIT] if isinstance(tag, str) and len(tag) <= _TEXT_LIMIT]
    return about


def _member(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None
