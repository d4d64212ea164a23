"""The paths of one tree: which may stand in an archive, and which of them can stand together.

One set of rules for what is pushed and what is unpacked. A path is relative, its parts are joined by `/`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from enum import IntEnum

LINK_TARGET_LIMIT = 4095
"""Bytes of UTF-8: what a file system can keep."""
LINKS_FOLLOWED_LIMIT = 40
STEPS_LIMIT = 1000
"""Parts of a path that are walked for one link, those of links on the way included: a million links must not take hours."""

_DRIVE = re.compile(r"[A-Za-z]:")
_SILENT_PART = re.compile(r"(?:^|/)\.?(?:/|$)")


def path_problem(path: str) -> str | None:
    """Why nothing may be written at `path`, or None.

    A back slash is a letter like any other, yet a path that would lead elsewhere if it were none is refused too.
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
    """`path` without the parts that say nothing: empty ones, and `.`."""
    if not _SILENT_PART.search(path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def shown(name: str) -> str:
    """`name` as a message shows it: a very long one is cut."""
    return name if len(name) <= 200 else f"{name[:160]}...{name[-30:]}"


class _Kind(IntEnum):
    IMPLIED = 0
    FOLDER = 1
    LEAF = 2


class Tree:
    """The paths of one tree, named one after the other, in any order."""

    def __init__(self) -> None:
        self._kinds = {"": _Kind.IMPLIED}

    def __len__(self) -> int:
        """Files, links and folders, also those folders that only the paths of others imply. The root is one of them."""
        return len(self._kinds)

    def add(self, path: str, *, is_folder: bool) -> str | None:
        """Take a normalised path in; why it cannot stand beside those that are here, or None."""
        known = self._kinds.get(path)
        if known is _Kind.IMPLIED and is_folder:
            self._kinds[path] = _Kind.FOLDER
            return None
        if known is _Kind.IMPLIED:
            return "others lie in it, so that it must be a folder" if path else "it has no name"
        if known is not None:
            return "its path stands there twice"
        self._kinds[path] = _Kind.FOLDER if is_folder else _Kind.LEAF
        return self._imply_parents(path)

    def has_folder(self, path: str) -> bool:
        """Whether a folder was added at this normalised path by itself, and not only implied by the paths of others."""
        return self._kinds.get(path) is _Kind.FOLDER

    def links_problem(self, targets: Mapping[str, str]) -> tuple[str, str] | None:
        """The first link (path to target) that must not be made, and why. All paths of the tree must have been added."""
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
                return f"{shown(parent)!r}, in which it lies, is no folder"
            if known is not None:
                break  # and so are the folders in which that one lies
            self._kinds[parent] = _Kind.IMPLIED
            end = path.rfind("/", 0, end)
        return None

    def _link_problem(self, path: str, target: str, targets: Mapping[str, str]) -> str | None:
        """Follow a link as an operating system would.

        `..` is allowed only from a folder of the tree: seen from anything else, such as a link whose name differs in case
        only, a file system may have another idea of where it leads.
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
                    return f"the link leads out of the tree, to {shown(target)!r}"
                at.pop()
                continue
            at.append(step)
            inner = targets.get("/".join(at))
            if inner is not None:
                followed += 1
                at.pop()
                ahead.extendleft(reversed(inner.split("/")))
            if followed > LINKS_FOLLOWED_LIMIT or steps > STEPS_LIMIT:
                return f"the link leads round in a circle, or through too many links and folders, to {shown(target)!r}"
        return None

    def _is_folder(self, path: str) -> bool:
        return self._kinds.get(path, _Kind.LEAF) is not _Kind.LEAF


def link_target_problem(target: str) -> str | None:
    """Why no link may have this target, wherever it stands, or None."""
    if not target:
        return "the link has no target"
    if "\0" in target:
        return "the link's target holds a NUL"
    if target.startswith("/"):
        return f"the link's target is absolute, {shown(target)!r}"
    if len(target.encode()) > LINK_TARGET_LIMIT:
        return f"the link's target has more than {LINK_TARGET_LIMIT} bytes"
    return None
