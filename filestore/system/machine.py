"""Find out how many cores and how much memory this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@cache
def core_count() -> int:
    """Return the number of cores that this process may keep busy, at least 1. It is found out once.

    A container or a service may have less: a quota of 1.5 cores counts as 2, and one of half a core as 1.
    """
    return min([_allowed_cores(), *map(math.ceil, _core_quotas(_CGROUPS, _OWN_CGROUP))])


def memory_size() -> int:
    """Return the bytes of memory of this machine, or of the container or the service if it has a smaller limit."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_memory_limits(_CGROUPS, _OWN_CGROUP)])


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _core_quotas(cgroups: Path, own: Path) -> list[float]:
    """Return how many cores each control group of this process may keep busy, as far as it is limited.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), and scheduler/sched-bwc.rst (version 1).
    """
    quotas = []
    for folder, version in _groups(cgroups, own, controller="cpu"):
        try:
            if version == 1:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):  # a group that is not visible, or "max"
            continue
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return quotas


def _memory_limits(cgroups: Path, own: Path) -> list[int]:
    """Return the limits of the control groups of this process, in bytes.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst.
    """
    limits = []
    for folder, version in _groups(cgroups, own, controller="memory"):
        name = "memory.limit_in_bytes" if version == 1 else "memory.max"
        try:
            limits.append(int((folder / name).read_text()))
        except (OSError, ValueError):  # a group that is not visible, or "max"
            continue
    return limits


def _groups(cgroups: Path, own: Path, *, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folder of each control group that limits this process, and the version of control groups, 1 or 2.

    A group is also limited by the groups that it is in. In a container, only the inner ones may be visible.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        root = cgroups / controller if controllers else cgroups
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield folder, version
