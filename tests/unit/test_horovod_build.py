"""Everything but the compilation itself, which `make setup` does on every new machine. pip is a fake here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hvdspark import horovod_build
from hvdspark.errors import DependencyError
from hvdspark.horovod_build import BuildPlan, build_wheel, cache_root, cached_wheel, plan


class FakePip:
    """Takes the place of subprocess.run for pip: writes what a build would, and remembers how it was called."""

    def __init__(self, exit_code: int = 0, started: threading.Event | None = None) -> None:
        self.exit_code, self.started, self.calls = exit_code, started, []  # type: ignore[var-annotated]
        self.real = subprocess.run

    def __call__(self, command: list[str], **options: Any) -> Any:
        if "pip" not in command:
            return self.real(command, **options)
        self.calls.append((command, options))
        if "wheel" in command:
            options["stdout"].write(b"first line\nerror: the reason\n")
            if self.exit_code == 0:
                directory = Path(command[command.index("--wheel-dir") + 1])
                (directory / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl").write_bytes(b"wheel")
        return subprocess.CompletedProcess(command, self.exit_code)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


@pytest.fixture
def build(tmp_path: Path) -> BuildPlan:
    return BuildPlan("2.13.0", None, False, tmp_path / "wheels" / "key")


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"HVDSPARK_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/hvdspark")),
        ({"HVDSPARK_CACHE": "", "XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "hvdspark"),
    ],
)
def test_cache_root(environ: dict[str, str], root: Path) -> None:
    assert cache_root(environ) == root


def test_the_key_names_everything_that_makes_a_wheel_unusable(tmp_path: Path) -> None:
    key = plan(tmp_path, with_mpi=False, with_cuda=False).wheel_dir.name
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert key.startswith("horovod0.28.1-torch2.")
    assert key.endswith(f"-{python}-{os.uname().machine}-nompi-cpu")


def test_mpi_and_cuda_have_wheels_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_build, "_mpi_version", lambda: "4.1.4")
    plans = [plan(tmp_path, with_mpi=mpi, with_cuda=cuda) for mpi in (False, True) for cuda in (False, True)]
    assert len({build.wheel_dir for build in plans}) == 4
    assert plan(tmp_path, with_cuda=False).mpi_version == "4.1.4"  # without a choice: where mpicc is


def test_environment_of_the_build(build: BuildPlan) -> None:
    environment = build.environment({"PATH": "/bin"}, Path("/c++"))
    assert environment["PATH"] == "/bin"
    assert environment["CXX"] == "/c++"
    assert environment["HOROVOD_WITH_GLOO"] == environment["HOROVOD_WITH_PYTORCH"] == "1"
    assert environment["HOROVOD_WITHOUT_MPI"] == "1"
    assert "HOROVOD_WITH_MPI" not in environment
    assert "HOROVOD_GPU_OPERATIONS" not in environment
    with_all = BuildPlan("2.13.0", "4.1.4", True, build.wheel_dir).environment({}, Path("/c++"))
    assert with_all["HOROVOD_WITH_MPI"] == "1"
    assert with_all["HOROVOD_GPU_OPERATIONS"] == "NCCL"


def test_missing_build_packages_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_build, "_installed_version", lambda name: None if name in ("cffi", "wheel") else "1")
    with pytest.raises(DependencyError, match="cffi, wheel.*Hint: .*pip install cffi wheel"):
        plan()


def test_mpi_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_build, "_mpi_version", lambda: None)
    with pytest.raises(DependencyError, match="mpicc.*Hint: apt-get install libopenmpi-dev"):
        plan(with_mpi=True)


def test_builds_once(build: BuildPlan, pip: FakePip) -> None:
    assert cached_wheel(build) is None
    wheel = build_wheel(build)
    assert wheel.read_bytes() == b"wheel"
    assert build_wheel(build) == wheel == cached_wheel(build)
    assert len(pip.calls) == 1
    command, options = pip.calls[0]
    assert "horovod==0.28.1" in command
    assert "--no-build-isolation" in command  # it must see the torch that it is linked against
    assert options["timeout"] == horovod_build.BUILD_TIMEOUT_S


def test_the_compiler_gets_c17(build: BuildPlan, pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "echo with arguments")
    written: list[str] = []
    real = Path.write_text

    def remember(self: Path, text: str) -> int:
        written.append(text)
        return real(self, text)

    monkeypatch.setattr(Path, "write_text", remember)
    build_wheel(build)
    (tmp_path / "c++").write_text(written[0])
    output = pip.real(["sh", str(tmp_path / "c++"), "-std=c++14", "a b.cc"], capture_output=True, text=True).stdout
    assert output == "with arguments -std=c++14 a b.cc -std=c++17\n"


def test_two_at_once_build_once(build: BuildPlan, pip: FakePip) -> None:
    wheels: list[Path] = []
    threads = [threading.Thread(target=lambda: wheels.append(build_wheel(build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(wheels)) == 1
    assert len(wheels) == 4
    assert len(pip.calls) == 1


def test_what_a_killed_build_left_is_removed(build: BuildPlan, pip: FakePip) -> None:
    (build.wheel_dir / "build-abandoned").mkdir(parents=True)
    (build.wheel_dir / "build-abandoned" / "horovod-half.whl").touch()
    wheel = build_wheel(build)
    assert sorted(path.name for path in build.wheel_dir.iterdir()) == [".lock", "build.log", wheel.name]


def test_failed_build_shows_its_last_lines_and_leaves_no_wheel(build: BuildPlan, pip: FakePip) -> None:
    pip.exit_code = 1
    with pytest.raises(DependencyError, match="(?s)the Horovod build failed.*build.log.*error: the reason"):
        build_wheel(build)
    assert cached_wheel(build) is None
    assert sorted(path.name for path in build.wheel_dir.iterdir()) == [".lock", "build.log"]


@pytest.mark.parametrize("tool", ["g++", "cmake"])
def test_missing_tool(build: BuildPlan, pip: FakePip, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(horovod_build.shutil, "which", lambda name: None if name == tool else f"/bin/{name}")
    with pytest.raises(
        DependencyError, match=rf"{tool.replace('+', '[+]')} is needed.*Hint: apt-get install {tool[0]}"
    ):
        build_wheel(build)
    assert pip.calls == []


def test_install(build: BuildPlan, pip: FakePip) -> None:
    wheel = horovod_build.install(build)
    command, _ = pip.calls[1]
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == str(wheel)
    assert "--no-deps" in command
    pip.exit_code = 1
    with pytest.raises(DependencyError, match="pip could not install.*Hint: .*pip install"):
        horovod_build.install(build)
