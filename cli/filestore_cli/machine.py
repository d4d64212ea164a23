"""Find out how many cores and how much memory this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def core_count() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_size() -> int:
    """Return the bytes of memory of this machine, or of the container or the service if it has a smaller limit."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_memory_limits(_CGROUPS, _OWN_CGROUP)])


def _memory_limits(cgroups: Path, own: Path) -> list[int]:
    """Return the limits of the control groups of this process, in bytes.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        root, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
        # A group is also limited by the groups that it is in. In a container, only the inner ones may be visible.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                try:
                    limits.append(int((folder / name).read_text()))
                except (OSError, ValueError):  # a group that is not visible, or "max"
                    continue
    return limits
