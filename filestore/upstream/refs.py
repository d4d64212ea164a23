"""The branches and tags of a repository of the upstream, as it lists them. Nothing in that is trusted (I4). No I/O.

Source: `list_repo_refs` in `hf_api.py` of the Python client.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from filestore.core.records import parse_json, value_count
from filestore.errors import UpstreamFailed

REFS_LIMIT = 10_000
"""The most refs of a repository. Further ones are left out."""
KINDS = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
"""The lists in an answer, and how the refs in each of them begin."""
_VALUES_LIMIT = 8 * REFS_LIMIT
_NAME_LIMIT = 255
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


class UpstreamRef(NamedTuple):
    """A branch or a tag."""

    kind: str
    """A key of `KINDS`."""
    name: str
    commit: str


def parse_refs(name: str, document: bytes) -> list[UpstreamRef]:
    """Read the refs of a repository. One that no request could name is left out. Raises UpstreamFailed."""
    if value_count(document) > _VALUES_LIMIT:
        raise UpstreamFailed(name, "its list of branches and tags has too many members")
    try:
        values = parse_json(document)
    except ValueError:
        raise UpstreamFailed(name, "its list of branches and tags is not JSON") from None
    return kept_refs(values)


def kept_refs(values: Any) -> list[UpstreamRef]:
    """Make refs of the JSON that the upstream sends, or of what `refs_document` makes."""
    lists = values if isinstance(values, dict) else {}
    found = []
    for kind in KINDS:
        listed = lists.get(kind)
        for each in listed if isinstance(listed, list) else []:
            name, commit = (each.get("name"), each.get("targetCommit")) if isinstance(each, dict) else (None, None)
            is_name = isinstance(name, str) and 0 < len(name) <= _NAME_LIMIT and name.isprintable()
            if is_name and isinstance(commit, str) and _COMMIT.match(commit):
                found.append(UpstreamRef(kind, str(name), commit))
    return found[:REFS_LIMIT]


def refs_document(refs: list[UpstreamRef]) -> dict[str, list[dict[str, str]]]:
    """Return the JSON of refs, as clients expect it."""
    return {
        kind: [
            {"name": each.name, "ref": f"{prefix}{each.name}", "targetCommit": each.commit} for each in refs if each.kind == kind
        ]
        for kind, prefix in KINDS.items()
    }
