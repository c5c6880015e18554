"""What the kernel says of processes that it has ended because memory ran out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdspark.launch.machine import out_of_memory_kills

EVENTS = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"


@pytest.mark.parametrize(
    ("groups", "files", "kills"),
    [
        (None, {}, 0),
        ("0::/pod/container", {"pod/container/memory.events": EVENTS}, 2),
        ("0::/../only/known/outside", {"memory.events": EVENTS}, 2),
        ("4:memory:/pod", {"memory/pod/memory.oom_control": CONTROL}, 4),
        ("4:memory:/pod", {"memory/pod/memory.oom_control": "oom_kill_disable 0\n"}, 0),
        ("5:cpu:/pod", {"memory.events": EVENTS}, 0),
    ],
)
def test_kills_of_the_own_group(groups: str | None, files: dict[str, str], kills: int, tmp_path: Path) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert out_of_memory_kills(tmp_path) == kills
