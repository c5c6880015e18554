"""`nothing_left_behind` is only worth something if a leak of each kind is seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.footprint import RUN_MARKER, Footprint, leaks_after_settling

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_nothing_changed_is_no_leak(nothing_left_behind: None) -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)


def test_child_process() -> None:
    before = Footprint.take()
    child = subprocess.Popen(SLEEPER)
    try:
        (leak,) = leaks_after_settling(before, timeout_s=0.5)
        assert leak.startswith(f"process {child.pid}:")
    finally:
        child.kill()
        child.wait()
    assert leaks_after_settling(before) == []


def test_orphan_that_nobody_is_the_parent_of() -> None:
    before = Footprint.take()
    start = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, check=True).stdout)
    try:
        assert any(leak.startswith(f"process {pid}:") for leak in Footprint.take().leaks_since(before))
    finally:
        os.kill(pid, 9)
    assert leaks_after_settling(before) == []


def test_listening_port_thread_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Footprint.take()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left-over", args=(30,))
    thread.start()
    with socket.create_server(("127.0.0.1", 0)) as server, open(tmp_path / "open", "w") as file:
        monkeypatch.setenv("LEFT_OVER", "1")
        leaks = "\n".join(Footprint.take().leaks_since(before))
        assert f"port {server.getsockname()[1]} of" in leaks
        assert f"open file {file.name}" in leaks
        assert "thread left-over" in leaks
        assert "environment variable LEFT_OVER" in leaks
    monkeypatch.undo()
    release.set()
    thread.join()
    assert Footprint.take().leaks_since(before) == []


def test_changed_variable_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Footprint.take()
    monkeypatch.setenv(RUN_MARKER, "changed")
    assert Footprint.take().leaks_since(before) == [f"environment variable {RUN_MARKER}"]
