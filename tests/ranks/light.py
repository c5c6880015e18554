"""Ranks that import nothing and compute nothing: for what is between them, their tasks and the driver.

They start in a tenth of a second, say what a rank says, and wait for files in a folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdspark.launch import same_host

# Ends with the number of its generation once there is a file "end". With HANG=exchange it says that it waits in one of
# its own; with HANG=start it is not ready before. Its keeper and its process leave their pids.
_RANK = """
import sys; sys.path[:] = {path!r}; out, parent = {result_fd}, {parent_pid}
import json, os, pickle, signal, time
from pathlib import Path
from hvdspark.launch import frames
from hvdspark.launch.processes import die_with_parent
from hvdspark.launch.pulse import Pulse

die_with_parent(parent, signal.SIGKILL)
folder, began, hang = Path(os.environ["FOLDER"]), time.monotonic(), os.environ.get("HANG")


def leave_pids():
    for name, pid in (("keeper", os.getppid()), ("rank", os.getpid())):
        partial = folder / f"partial-{{generation}}-{{rank}}"
        partial.write_text(str(pid))
        partial.rename(folder / f"{{name}}-{{generation}}-{{rank}}")


with open(out, "wb") as stream:
    while (frame := frames.read_frame(sys.stdin.buffer))[0] != frames.ASSIGNMENT:
        pass
    assignment = json.loads(frame[1])
    rank, generation = assignment["world"]["rank"], assignment["generation"]
    if hang == "start":
        leave_pids()
        while not (folder / "end").exists():
            time.sleep(0.05)
    frames.write_frame(stream, frames.READY, b"")
    while frames.read_frame(sys.stdin.buffer)[0] != frames.GO:
        pass
    leave_pids()
    while not (folder / "end").exists():
        inside = hang == "exchange"
        pulse = Pulse(1, f"of rank {{rank}}", time.monotonic() - began) if inside else Pulse()
        frames.write_frame(stream, frames.PULSE, pulse.to_plain())
        time.sleep(assignment["pulse_every_s"])
    frames.write_frame(stream, frames.RESULT, pickle.dumps(generation))
os._exit(0)
"""


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ranks of `SameHostLauncher` be such ones."""
    rank = repr(_RANK).replace("{", "{{").replace("}", "}}")
    before, _, main = same_host._BOOTSTRAP.partition("from hvdspark.launch.keeper")
    patch = f"from hvdspark.launch import child; child._BOOTSTRAP = {rank}; "
    monkeypatch.setattr(same_host, "_BOOTSTRAP", f"{before}{patch}from hvdspark.launch.keeper{main}")


def pid_in(folder: Path, who: str, rank: int, generation: int = 0) -> int | None:
    """Of the "rank" or the "keeper" of a rank; None before it runs."""
    file = folder / f"{who}-{generation}-{rank}"
    return int(file.read_text()) if file.exists() else None
