"""What this process may use, by files as Linux has them."""

from __future__ import annotations

from pathlib import Path

from filestore.system.machine import _core_quotas, _memory_limits, core_count, memory_size


def files(folder: Path, contents: dict[str, str]) -> Path:
    """Make files with these contents."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_the_limits_of_all_groups_of_a_process_hold(tmp_path: Path) -> None:
    """Its own group, and those that this is in, in version 2 of control groups."""
    contents = {"memory.max": "max\n", "a/memory.max": "8000\n", "a/b/memory.max": "9000\n", "c/memory.max": "1\n"}
    cgroups = files(tmp_path / "cgroup", contents)
    own = files(tmp_path, {"own": "0::/a/b\n"}) / "own"

    assert [9000, 8000] == _memory_limits(cgroups, own)


def test_the_limits_of_older_groups_hold(tmp_path: Path) -> None:
    """In a container of version 1, the group that the path names is not visible, but its root is."""
    cgroups = files(tmp_path / "cgroup", {"memory/memory.limit_in_bytes": "7000\n", "memory.max": "1\n"})
    own = files(tmp_path, {"own": "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n"}) / "own"

    assert [7000] == _memory_limits(cgroups, own)


def test_without_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    """The file is missing, as on other systems than Linux."""
    assert [] == _memory_limits(tmp_path, tmp_path / "none")
    assert memory_size() > 64 << 20
    assert core_count() >= 1


def test_a_quota_of_cores_is_found_in_all_groups(tmp_path: Path) -> None:
    """Half a core, and one and a half, in both versions of control groups."""
    contents = {
        "cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "50000 100000\n",
        "cpu/x/cpu.cfs_quota_us": "-1\n",
        "cpu/x/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "250000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    cgroups = files(tmp_path / "cgroup", contents)

    assert [0.5, 1.5] == _core_quotas(cgroups, files(tmp_path, {"two": "0::/a/b\n"}) / "two")
    assert [2.5] == _core_quotas(cgroups, files(tmp_path, {"one": "4:cpu,cpuacct:/x\n"}) / "one")
    assert [] == _core_quotas(cgroups, tmp_path / "none")
