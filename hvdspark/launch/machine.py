"""The memory of the machine or container that this process runs in, and whom the kernel has ended to free some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from hvdspark.launch.budget import MemoryBudget

_HERE = Path("/")


def machine_memory(root: Path = _HERE) -> MemoryBudget:
    """Memory of the machine or container that this process runs in. `root` is where /proc and /sys are."""
    physical = MemoryBudget(psutil.virtual_memory().total, "this machine's memory")
    limits = [MemoryBudget(limit, "the cgroup's memory limit") for limit in _cgroup_limits(root)]
    return min([physical, *limits], key=lambda limit: limit.bytes)


def out_of_memory_kills(root: Path = _HERE) -> int:
    """How many processes of this process's control group the kernel has killed because memory ran out; 0 where it does
    not say."""
    for folder, is_v2 in _groups(root):
        name = "memory.events" if is_v2 else "memory.oom_control"
        for line in _read(folder / name).splitlines():
            key, _, count = line.partition(" ")
            if key == "oom_kill" and count.isdecimal():
                return int(count)
    return 0


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Limits of this process's control group and of all groups around it, cgroup v1 and v2."""
    for folder, is_v2 in _groups(root):
        text = _read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).strip()
        if text.isdecimal():  # not where it is not visible here; "max" is no limit
            yield int(text)


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control group and of all groups around it, and whether they are of cgroup v2."""
    for line in _read(root / "proc/self/cgroup").splitlines():  # none where this is not Linux
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        # A container may see its own group as the mount's root, under a path that is only known outside ("/../x" too).
        folder = base.joinpath(*(part for part in path.split("/") if part != ".."))
        for group in (folder, *folder.parents):
            if group.is_relative_to(base):
                yield group, controllers == ""


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
