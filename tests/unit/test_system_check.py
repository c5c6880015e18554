"""`.ci/system-check` on made-up machines: a PATH of fakes decides what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"
JAVA_11 = "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2"


class Machine:
    """Has everything that is needed, and records what apt-get is asked; "install" brings Java."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "apt.log"
        self.bin.mkdir()
        for tool in ("bash", "env", "sed", "mkdir", "ls", "ln", "head"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.put(PYTHON, f'exec "{sys.executable}" "$@"')
        self.put("java", JAVA_17)
        self.put("id", "echo 0")
        for tool in ("g++", "cmake", "mpicc"):
            self.put(tool, "")
        java = self.bin / "java"
        self.put(
            "apt-get", f'echo "$@" >> {self.log}\n[ "$1" = update ] || [ -e {java} ] || ln -s {folder}/new-java {java}'
        )
        self.put("../new-java", JAVA_17)

    def put(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def lacks(self, *names: str) -> Machine:
        for name in names:
            (self.bin / name).unlink()
        return self

    def check(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "bash"), str(ROOT / ".ci" / "system-check"), *arguments]
        environ = {"PATH": str(self.bin), **environ}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    def apt(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_where_nothing_is_missing(machine: Machine) -> None:
    result = machine.check()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert machine.apt() == []


def test_root_gets_what_is_missing(machine: Machine) -> None:
    result = machine.lacks("java", "g++", "cmake").check()
    assert result.returncode == 0, result.stderr
    update, install = machine.apt()
    assert update.startswith("update")
    assert install.split()[-3:] == ["openjdk-17-jre-headless", "g++", "cmake"]
    assert "-y" in install.split()


@pytest.mark.parametrize("missing", ["java", "g++", "cmake"])
def test_others_are_told_the_command(machine: Machine, missing: str) -> None:
    machine.put("id", "echo 1000")
    result = machine.lacks(missing).check()
    package = {"java": "openjdk-17-jre-headless"}.get(missing, missing)
    assert result.returncode == 1
    assert f"sudo apt-get install {package} " in result.stderr
    assert machine.apt() == []


def test_no_apt_get_no_installation(machine: Machine) -> None:
    result = machine.lacks("cmake", "apt-get").check()
    assert result.returncode == 1
    assert "missing: cmake" in result.stderr


def test_too_old_java_counts_as_missing(machine: Machine) -> None:
    machine.put("java", JAVA_11)
    machine.put("id", "echo 1000")
    assert "openjdk-17-jre-headless" in machine.check().stderr


def test_java_home_that_names_an_old_java(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "jdk11" / "bin").mkdir(parents=True)
    machine.put("../jdk11/bin/java", JAVA_11)
    result = machine.check(JAVA_HOME=str(tmp_path / "jdk11"))
    assert result.returncode == 1
    assert f"Spark would use: {tmp_path}/jdk11/bin/java" in result.stderr
    assert "export JAVA_HOME=" in result.stderr


@pytest.mark.parametrize("can_install", [True, False])
def test_mpi_is_optional(machine: Machine, can_install: bool) -> None:
    if can_install:
        machine.put("apt-get", "exit 100")
    else:
        machine.put("id", "echo 1000")
    result = machine.lacks("mpicc").check()
    assert result.returncode == 0
    assert "note: no MPI" in result.stderr


def test_failed_installation_stops(machine: Machine) -> None:
    machine.put("apt-get", "exit 100")
    assert machine.lacks("java").check().returncode != 0


def test_python_is_tried_by_running_it(machine: Machine) -> None:
    # What pyenv puts on PATH for a version that is installed but not chosen.
    other = "python3.11" if PYTHON == "python3.10" else "python3.10"
    machine.put(other, "echo 'command not found' >&2; exit 127")
    result = machine.check("--python")
    assert result.stdout == f"{machine.bin / PYTHON}\n"


def test_no_python_that_works(machine: Machine) -> None:
    machine.put("python3", '[ "$1" = --version ] && echo Python 3.13.0; exit 1')
    result = machine.lacks(PYTHON).check()
    assert result.returncode == 1
    assert "needs Python 3.10 or 3.11" in result.stderr
    assert "Python 3.13.0" in result.stderr
