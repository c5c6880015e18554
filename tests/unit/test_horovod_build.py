"""Everything but the compilation itself, which `make setup` does on every new machine. pip is a fake here."""

from __future__ import annotations

import dataclasses
import os
import re
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


def toolkit(home: Path, *, release: str = "13.0", complete: bool = True, nccl: bool = True) -> Path:
    """Something like CUDA: an nvcc that says its version, and maybe what belongs to it."""
    files = ["include/cuda_runtime.h", "lib64/libcudart.so.13"] if complete else []
    files += ["include/nccl.h", "lib64/libnccl.so"] if nccl else []
    for name in ("bin/nvcc", *files):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "bin" / "nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    (home / "bin" / "nvcc").chmod(0o755)
    return home


@pytest.mark.parametrize(
    ("torch_cuda", "found", "asked", "cuda", "note"),
    [
        ("13.0", {}, None, True, ""),
        ("13.1", {}, None, True, ""),
        (None, {}, None, False, ""),
        ("12.8", {}, None, False, "an nvcc of CUDA 12"),
        ("13.0", {"complete": False}, None, False, "cuda_runtime.h and libcudart.so"),
        ("13.0", {"nccl": False}, None, False, "nccl.h"),
        ("13.0", {"complete": False, "nccl": False}, False, False, ""),
        ("13.0", {"nccl": False}, True, True, "nccl.h"),
        (None, {}, True, True, "this torch has no CUDA"),
        ("13.0", None, None, False, "nvcc on PATH"),
    ],
)
def test_cuda_is_chosen_where_nothing_that_it_needs_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch_cuda: str | None,
    found: dict[str, Any] | None,
    asked: bool | None,
    cuda: bool,
    note: str,
) -> None:
    real = Path.glob
    here = (tmp_path, sys.prefix)  # what this machine has in its own places does not count

    def glob(self: Path, pattern: str) -> Any:
        return real(self, pattern) if str(self).startswith(tuple(map(str, here))) else iter(())

    monkeypatch.setattr(Path, "glob", glob)
    monkeypatch.setattr(horovod_build, "_torch_cuda", lambda: torch_cuda)
    for name in ("CUDA_HOME", "CUDA_PATH", "HOROVOD_CUDA_HOME", "NCCL_HOME", "HOROVOD_NCCL_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "cuda"
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    if found is not None:
        toolkit(home, **found)
    build = plan(tmp_path, with_mpi=False, with_cuda=asked)
    assert build.cuda is cuda
    assert build.wheel_dir.name.endswith("-nccl" if cuda else "-cpu")
    assert note in build.note
    assert bool(note) == bool(build.note)


def test_a_build_for_cpus_sees_no_cuda(build: BuildPlan, pip: FakePip, tmp_path: Path) -> None:
    """With any nvcc on PATH, Horovod's own build would enable CUDA, and ask for all of it where torch has it."""
    seen: list[str] = []
    source = tmp_path / "horovod"
    module = source / "cmake" / "Modules" / "FindPytorch.cmake"
    module.parent.mkdir(parents=True)
    lines = [f'string(TOUPPER "${{Pytorch_{name}}}" Pytorch_{name})' for name in ("CUDA", "ROCM")]
    module.write_text("\n".join(lines))
    real = tmp_path / "real" / "cmake"
    real.parent.mkdir()
    real.write_text('#!/bin/sh\necho "$@"\n')
    real.chmod(0o755)

    def building(command: list[str], **options: Any) -> Any:
        if "wheel" in command:
            for call in ([str(source), "-DX=1"], ["--build", "."]):
                done = pip.real(["cmake", *call], capture_output=True, text=True, env=options["env"])
                seen.append(done.stdout.strip() or done.stderr)
        return pip(command, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess, "run", building)
        patched.setenv("PATH", f"{real.parent}:/usr/bin:/bin")
        build_wheel(build)
    assert seen[0].startswith(f"{source} -DX=1")
    assert "-DCMAKE_CUDA_COMPILER= " in seen[0]
    assert "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON" in seen[0]
    assert seen[1] == "--build ."
    assert module.read_text().splitlines() == ["set(Pytorch_CUDA FALSE)", lines[1]]


CMAKE = """\
-- Looking for a CUDA compiler - NOTFOUND
CMake Error at /usr/share/cmake/FindPackageHandleStandardArgs.cmake:230 (message):
  Could NOT find CUDAToolkit (missing: CUDAToolkit_INCLUDE_DIR CUDA_CUDART)

Call Stack (most recent call first):
See also "CMakeFiles/CMakeError.log".
error: subprocess-exited-with-error
"""
COMPILER = """\
[ 3%] Building CXX object x.o with -Werror=format
/src/x.cc:7:10: fatal error: Python.h: No such file or directory
make: *** [x.o] Error 1
error: subprocess-exited-with-error
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (CMAKE, r"CMake Error at .*\(message\): Could NOT find CUDAToolkit \(missing: .*CUDA_CUDART\)$"),
        (COMPILER, r"^/src/x.cc:7:10: fatal error: Python.h: No such file or directory$"),
        ("nothing\n", "^$"),
    ],
)
def test_the_line_that_matters_is_found_in_a_log(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "build.log").write_text(log * 3)
    assert re.search(reason, horovod_build.first_error(tmp_path / "build.log"))


def test_what_failed_last_is_remembered_until_it_works(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert horovod_build.last_failure(tmp_path) is None
    build = plan(tmp_path, with_mpi=False, with_cuda=False)
    pip.exit_code = 1
    with pytest.raises(DependencyError, match="the Horovod build failed: error: the reason"):
        build_wheel(build)
    assert horovod_build.last_failure(tmp_path) == (build.wheel_dir / "build.log", "error: the reason")
    pip.exit_code = 0
    build_wheel(build)
    assert horovod_build.last_failure(tmp_path) is None


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
    assert output == "with arguments -std=c++14 a b.cc -std=c++17 -include string -include stdexcept\n"


@pytest.mark.parametrize(("torch", "standard"), [("2.1.2+cu121", "c++17"), ("2.13.0", "c++17"), ("2.14.1", "c++20")])
def test_the_standard_is_the_one_that_torch_asks_for(
    build: BuildPlan, pip: FakePip, monkeypatch: pytest.MonkeyPatch, torch: str, standard: str
) -> None:
    written: list[str] = []
    real = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: written.append(text) or real(path, text))
    build_wheel(dataclasses.replace(build, torch_version=torch))
    assert f'"$@" -std={standard} ' in written[0]


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
