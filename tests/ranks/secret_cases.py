"""What a rank can see of the secrets of its run, and who could come in while it runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil

import hvdspark


def look_around() -> dict[str, Any]:
    """Command lines and environments of all processes that this one may look at, and the sockets of its relatives."""
    lines, environments = [], []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                lines.append((process / "cmdline").read_bytes())
                environments.append((process / "environ").read_bytes())
    started_here = subprocess.run(["env"], capture_output=True, check=True).stdout
    keeper = psutil.Process().parent()
    assert keeper is not None
    family = [keeper, *keeper.children(recursive=True)]
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    hvdspark.context().report({"event": "hello"})
    return {
        "command lines": b"\n".join(lines),
        "environments": b"\n".join(environments),
        "environment": repr(dict(os.environ)).encode() + started_here,
        "listening": listening,
    }


def raise_with_environment() -> None:
    raise RuntimeError(f"environment: {dict(os.environ)}")
