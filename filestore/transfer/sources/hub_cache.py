"""Recognise what the cache of Hugging Face's programs has of a repository of the Hub. Everything blocks.

A repository has a folder there, such as `models--org--name`. Its `snapshots/<revision>` has links to files in `blobs`, and its
`refs/<name>` has the revision that a branch or tag means.

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filestore.core.commits import checked_label
from filestore.core.names import checked_new_full_name
from filestore.errors import InvalidInput, InvalidName, SourceRefused
from filestore.format.zip.tree import for_display
from filestore.system.files import source_error, storage_errors
from filestore.transfer.sources.walk import Symlinks, WalkResult, walk

_FOLDER = re.compile(r"(?:models|datasets|spaces|kernels)--(.+)\Z", re.DOTALL)
_BLOB = re.compile(r"[0-9a-fA-F-]{32,}\Z")
"""Blobs have the names of their digests."""
_REVISION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,249}\Z")
_SNAPSHOTS, _REFS, _BLOBS, _UNFINISHED = "snapshots", "refs", "blobs", ".incomplete"
_REF_LIMIT = 1024
_REFS_LIMIT = 1000
_SHOWN = 5
_INDEX_END = ".index.json"
_INDEX_LIMIT = 64 << 20
_TAG_START = "hf-"
"""A tag must not look like the id of a commit, which a revision is."""


class HubSnapshot(NamedTuple):
    """One revision of a repository of the Hub, as a folder of links."""

    path: Path
    """The folder of the snapshot."""
    name: str
    """The id of the repository, such as `org/name`."""
    revision: str
    tags: tuple[str, ...]
    """The tags for a commit of it: one for the revision, and those of its refs that can be tags."""
    has_unfinished: bool
    """Whether a download into the folder of the repository was interrupted."""

    @property
    def home(self) -> Path:
        """The folder of the repository."""
        return self.path.parent.parent

    def check(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Check that all chosen files are there, and that links lead nowhere but into the folder of the repository.

        The folder of its blobs may be a link. Then only what has the name of a blob is taken from there: whoever made the folder
        of the repository can let that link lead anywhere.

        Raises SourceRefused, which names the file; what `walk` raises.
        """
        home, blobs = (f"{os.path.realpath(folder)}/" for folder in (self.home, self.home / _BLOBS))
        if not f"{os.path.realpath(self.path)}/".startswith(home):
            raise _leads_out(self.path)
        walked = walk(self.path, symlinks=Symlinks.FOLLOW, include=include, exclude=exclude)
        for name, path in walked.elsewhere.items():
            is_blob = path.startswith(blobs) and _BLOB.match(path[len(blobs) :]) is not None
            if not f"{path}/".startswith(home) and not is_blob:
                raise _leads_out(self.path / name)
        if not include and not exclude:
            self._check_parts(walked)

    def _check_parts(self, walked: WalkResult) -> None:
        """Raise SourceRefused if an index of weights names a file that is missing: the download was interrupted before it."""
        names = {entry.name for entry in walked.entries}
        for place, entry in enumerate(walked.entries):
            if not entry.name.endswith(_INDEX_END) or entry.size > _INDEX_LIMIT:
                continue
            folder = entry.name[: entry.name.rfind("/") + 1]
            for part in sorted(_parts_of(Path(walked.path(place)))):
                if folder + part not in names:
                    reason = f"it is missing, and {for_display(entry.name)!r} needs it: its download was interrupted"
                    advice = "download it again, or choose what to push by include and exclude"
                    raise SourceRefused(for_display(str(self.path / folder / part)), f"{reason}; {advice}")


def _leads_out(link: Path) -> SourceRefused:
    reason = f"it is a link that leads out of the cache of its repository, to {os.path.realpath(link)!r}"
    return SourceRefused(for_display(str(link)), reason)


def find_snapshot(path: Path) -> HubSnapshot | None:
    """Return the snapshot that is at `path`, or that is meant by the folder of a repository. Return None for anything else.

    Of several snapshots, the one is meant that `refs/main` names. Raises SourceRefused if that does not decide, SourceUnreadable.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  # without following a link, and without `..`
    with storage_errors(path, translate=source_error):
        if not path.is_dir():
            return None
        if path.parent.name == _SNAPSHOTS and (name := _name_of(path.parent.parent)) and _REVISION.match(path.name):
            return _snapshot(path, name)
        name = _name_of(path)
        if name is None or not (path / _SNAPSHOTS).is_dir():
            return None
        return _snapshot(_choose(path), name)


def _name_of(folder: Path) -> str | None:
    """Return the id of the repository that a folder of the cache is for, or None."""
    found = _FOLDER.match(folder.name)
    if found is None:
        return None
    name = found[1].replace("--", "/")
    with suppress(InvalidName):
        return checked_new_full_name(name)
    return None


def _choose(home: Path) -> Path:
    """Return the folder of the snapshot that the folder of a repository means."""
    revisions = sorted(each.name for each in (home / _SNAPSHOTS).iterdir() if each.is_dir() and _REVISION.match(each.name))
    if not revisions:
        raise SourceRefused(for_display(str(home)), "no snapshot is in it: its download was interrupted; download it again")
    main = _ref(home / _REFS / "main")
    if len(revisions) > 1 and main not in revisions:
        known = ", ".join(for_display(str(home / _SNAPSHOTS / each)) for each in revisions[:_SHOWN])
        more = f" and {len(revisions) - _SHOWN} more" if len(revisions) > _SHOWN else ""
        raise SourceRefused(
            for_display(str(home)),
            f"it has {len(revisions)} snapshots, and refs/main names none of them; give one: {known}{more}",
        )
    return home / _SNAPSHOTS / (main if main in revisions else revisions[0])


def _snapshot(path: Path, name: str) -> HubSnapshot:
    home = path.parent.parent
    tags = [_TAG_START + path.name]
    for folder, _, files in os.walk(home / _REFS):
        for file in sorted(files)[:_REFS_LIMIT]:
            ref = os.path.relpath(f"{folder}/{file}", home / _REFS)
            # `main`, and refs of pull requests, cannot be tags.
            with suppress(InvalidInput):
                if _ref(Path(folder, file)) == path.name:
                    tags.append(checked_label(ref))
    blobs = home / _BLOBS
    has_unfinished = blobs.is_dir() and any(each.name.endswith(_UNFINISHED) for each in blobs.iterdir())
    return HubSnapshot(path, name, path.name, tuple(tags), has_unfinished)


def _ref(path: Path) -> str | None:
    """Return the revision in the file of a ref, or None."""
    with suppress(OSError, UnicodeDecodeError):
        with path.open("rb") as file:
            text = file.read(_REF_LIMIT).decode().strip()
        return text if _REVISION.match(text) else None
    return None


def _parts_of(path: Path) -> set[str]:
    """Return the names of the files that an index of weights names. It is empty for another file."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_bytes())
        weights = values.get("weight_map") if isinstance(values, dict) else None
        if isinstance(weights, dict):
            return {part for part in weights.values() if isinstance(part, str)}
    return set()
