"""The paths of one tree: which paths an archive may have, and which of them fit together.

The same rules apply to pushing and to unpacking. A path is relative, and its parts are joined by `/`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from enum import IntEnum

LINK_TARGET_LIMIT = 4095
"""Bytes of UTF-8 that a file system can keep."""
LINKS_FOLLOWED_LIMIT = 40
STEPS_LIMIT = 1000
"""The parts of paths that are walked for one link, including those of other links on the way. A million links must not
take hours."""

_DRIVE = re.compile(r"[A-Za-z]:")
_SILENT_PART = re.compile(r"(?:^|/)\.?(?:/|$)")


def path_problem(path: str) -> str | None:
    """Return why nothing may be written at `path`, or None.

    A back slash is an ordinary character. A path is refused too if it would lead out of the tree with back slashes as
    separators.
    """
    if "\0" in path:
        return "it holds a NUL"
    if _DRIVE.match(path):
        return "it begins with a drive letter"
    if path.startswith(("/", "\\")):
        return "it is absolute"
    if ".." in path and ".." in path.replace("\\", "/").split("/"):
        return "it leads out of its folder"
    return None


def normalised(path: str) -> str:
    """Return `path` without empty parts and without `.`."""
    if not _SILENT_PART.search(path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def for_display(name: str) -> str:
    """Return `name` for a message. A very long name is shortened."""
    return name if len(name) <= 200 else f"{name[:160]}...{name[-30:]}"


class _Kind(IntEnum):
    IMPLIED = 0
    FOLDER = 1
    LEAF = 2


class Tree:
    """Holds the paths of one tree, added one after the other in any order."""

    def __init__(self) -> None:
        self._kinds = {"": _Kind.IMPLIED}

    def __len__(self) -> int:
        """The number of files, links and folders, with the root and the folders that are only implied by paths."""
        return len(self._kinds)

    def add(self, path: str, *, is_folder: bool) -> str | None:
        """Add a normalised path; return why it does not fit with the paths so far, or None."""
        known = self._kinds.get(path)
        if known is _Kind.IMPLIED and is_folder:
            self._kinds[path] = _Kind.FOLDER
            return None
        if known is _Kind.IMPLIED:
            return "other entries are in it, so it must be a folder" if path else "it has no name"
        if known is not None:
            return "its path occurs twice"
        self._kinds[path] = _Kind.FOLDER if is_folder else _Kind.LEAF
        return self._imply_parents(path)

    def has_folder(self, path: str) -> bool:
        """Return whether a folder was added at this normalised path itself, not only implied by other paths."""
        return self._kinds.get(path) is _Kind.FOLDER

    def links_problem(self, targets: Mapping[str, str]) -> tuple[str, str] | None:
        """Return the first link (path to target) that must not be made, and why. Add all paths of the tree before."""
        for path, target in targets.items():
            if reason := self._link_problem(path, target, targets):
                return path, reason
        return None

    def _imply_parents(self, path: str) -> str | None:
        end = path.rfind("/")
        while end >= 0:
            parent = path[:end]
            known = self._kinds.get(parent)
            if known is _Kind.LEAF:
                return f"its parent {for_display(parent)!r} is not a folder"
            if known is not None:
                break  # all parents of a known folder are known too
            self._kinds[parent] = _Kind.IMPLIED
            end = path.rfind("/", 0, end)
        return None

    def _link_problem(self, path: str, target: str, targets: Mapping[str, str]) -> str | None:
        """Follow a link as an operating system does; return why it must not be made, or None.

        `..` is allowed only from a folder of the tree. From another path, such as a link whose name differs only in
        case, a file system may resolve it in another way.
        """
        at = path.split("/")[:-1]
        ahead = deque(target.split("/"))
        followed = steps = 0
        while ahead:
            steps += 1
            step = ahead.popleft()
            if step in ("", "."):
                continue
            if step == "..":
                if not at or not self._is_folder("/".join(at)):
                    return f"the link leads out of the tree, to {for_display(target)!r}"
                at.pop()
                continue
            at.append(step)
            inner = targets.get("/".join(at))
            if inner is not None:
                followed += 1
                at.pop()
                ahead.extendleft(reversed(inner.split("/")))
            if followed > LINKS_FOLLOWED_LIMIT or steps > STEPS_LIMIT:
                return f"the link to {for_display(target)!r} leads in a circle, or through too many links and folders"
        return None

    def _is_folder(self, path: str) -> bool:
        return self._kinds.get(path, _Kind.LEAF) is not _Kind.LEAF


def link_target_problem(target: str) -> str | None:
    """Return why no link may have this target, at any path, or None."""
    if not target:
        return "the link has no target"
    if "\0" in target:
        return "the link's target holds a NUL"
    if target.startswith("/"):
        return f"the link's target is absolute, {for_display(target)!r}"
    if len(target.encode()) > LINK_TARGET_LIMIT:
        return f"the link's target has more than {LINK_TARGET_LIMIT} bytes"
    return None
