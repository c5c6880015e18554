"""Build Horovod 0.28.1 against the torch that is installed here, and keep the wheel.

Horovod has had no release since 2023: its build asks for C++14, torch needs C++17 (horovod#3996, #4014; the
fix was merged in 2024 and never released), and there are no binary wheels. So it is compiled once for each
(Horovod, torch, Python, MPI) combination and the wheel is kept in a cache outside any checkout.

Only the standard library is imported, so that this works in an environment where nothing else does yet.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hvdspark.errors import DependencyError

HOROVOD_VERSION = "0.28.1"

# What the build imports. `--no-build-isolation` is needed so that it sees the torch it must link against.
BUILD_REQUIREMENTS = ("torch", "cffi", "packaging", "psutil", "pyyaml", "cloudpickle", "setuptools", "wheel")

BUILD_TIMEOUT_S = 3600.0  # about 120 s on 2 cores; this limit is for a compiler that hangs


@dataclass(frozen=True)
class BuildPlan:
    """What would be built and where the wheel is kept; nothing is touched by making one."""

    torch_version: str
    mpi_version: str | None
    cuda: bool
    wheel_dir: Path

    def environment(self, base: Mapping[str, str], compiler: Path) -> dict[str, str]:
        """The build's environment variables, on top of `base`."""
        choices = {
            "CXX": str(compiler),
            "HOROVOD_WITH_PYTORCH": "1",
            "HOROVOD_WITH_GLOO": "1",
            "HOROVOD_WITHOUT_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITH_MPI" if self.mpi_version else "HOROVOD_WITHOUT_MPI": "1",
            "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
            # Horovod's bundled projects declare a minimum that CMake 4 no longer accepts.
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        }
        if self.cuda:
            choices["HOROVOD_GPU_OPERATIONS"] = "NCCL"
        return {**base, **choices}


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """`$HVDSPARK_CACHE`, else `$XDG_CACHE_HOME/hvdspark`, else `~/.cache/hvdspark`."""
    if environ.get("HVDSPARK_CACHE"):
        return Path(environ["HVDSPARK_CACHE"])
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvdspark"


def plan(cache: Path | None = None, with_mpi: bool | None = None, with_cuda: bool | None = None) -> BuildPlan:
    """Decide what to build.

    Args:
        cache: where wheels are kept; None means `cache_root()`.
        with_mpi: None means with MPI where `mpicc` is.
        with_cuda: None means with NCCL where torch has CUDA and `nvcc` is.

    Raises:
        DependencyError: a package that the build imports is missing, or MPI was asked for and is not there.
    """
    missing = [name for name in BUILD_REQUIREMENTS if _installed_version(name) is None]
    if missing:
        raise DependencyError(
            "Horovod cannot be built: Python packages are missing",
            value=", ".join(missing),
            hint=f"{sys.executable} -m pip install {' '.join(missing)}",
        )
    torch_version = _installed_version("torch") or ""
    mpi_version = _mpi_version() if with_mpi is not False else None
    if with_mpi and mpi_version is None:
        raise DependencyError(
            "MPI was asked for but mpicc is not on PATH", hint="apt-get install libopenmpi-dev openmpi-bin"
        )
    cuda = shutil.which("nvcc") is not None and _torch_has_cuda() if with_cuda is None else with_cuda
    key = "-".join(
        [
            f"horovod{HOROVOD_VERSION}",
            f"torch{torch_version}",
            f"cp{sys.version_info.major}{sys.version_info.minor}",
            platform.machine(),
            f"mpi{mpi_version}" if mpi_version else "nompi",
            "nccl" if cuda else "cpu",
        ]
    )
    return BuildPlan(torch_version, mpi_version, cuda, (cache or cache_root()) / "wheels" / key)


def cached_wheel(build: BuildPlan) -> Path | None:
    """The wheel of an earlier build of the same plan, or None."""
    return next(iter(sorted(build.wheel_dir.glob("horovod-*.whl"))), None)


def build_wheel(build: BuildPlan) -> Path:
    """Return the wheel of `build`, compiling it first if this is the first time (about 2 minutes on 2 cores).

    Safe when several processes ask at once: one builds, the others wait for its lock. A build that is killed
    leaves no wheel behind, because the wheel is moved into the cache only when it is complete.
    """
    build.wheel_dir.mkdir(parents=True, exist_ok=True)
    with open(build.wheel_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheel = cached_wheel(build)
        if wheel is not None:
            return wheel
        for abandoned in build.wheel_dir.glob("build-*"):  # by a build that was killed: we hold the lock
            shutil.rmtree(abandoned)
        # In the cache itself, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix="build-", dir=build.wheel_dir) as scratch:
            built = _compile(build, Path(scratch))
            final = build.wheel_dir / built.name
            built.rename(final)
        return final


def install(build: BuildPlan) -> Path:
    """Build if needed, then pip-install the wheel into the running interpreter. Returns the wheel."""
    wheel = build_wheel(build)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=BUILD_TIMEOUT_S).returncode
    if code != 0:
        raise DependencyError(
            "pip could not install the Horovod wheel",
            value=f"exit code {code}",
            where=str(wheel),
            hint=shlex.join(command),
        )
    return wheel


def _compile(build: BuildPlan, scratch: Path) -> Path:
    compiler = scratch / "cxx17"
    # The last -std on the command line wins, so the wrapper appends it.
    compiler.write_text(f'#!/bin/sh\nexec {_tool(os.environ.get("CXX") or "g++")} "$@" -std=c++17\n')
    compiler.chmod(0o755)
    _tool("cmake")
    log = build.wheel_dir / "build.log"
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir"),
        *("--no-binary", "horovod", "--wheel-dir", str(scratch), f"horovod=={HOROVOD_VERSION}", "--verbose"),
    ]
    with open(log, "wb") as output:
        code = subprocess.run(
            command,
            env=build.environment(os.environ, compiler),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT_S,
        ).returncode
    wheels = list(scratch.glob("horovod-*.whl"))
    if code != 0 or not wheels:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise DependencyError(
            "the Horovod build failed", value=f"exit code {code}", where=str(log), hint=f"its last lines were:\n{tail}"
        )
    return wheels[0]


def _tool(command: str) -> str:
    """`command`, which may have arguments as CXX may, with its program as an absolute path, quoted for sh."""
    program, *arguments = shlex.split(command)
    path = shutil.which(program)
    if path is None:
        raise DependencyError(
            f"{program} is needed to build Horovod and is not on PATH", hint=f"apt-get install {program}"
        )
    return shlex.join([path, *arguments])


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _mpi_version() -> str | None:
    mpirun = shutil.which("mpirun")
    if shutil.which("mpicc") is None or mpirun is None:
        return None
    words = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60).stdout.split()
    return next((word for word in words if word[:1].isdigit()), "unknown")


def _torch_has_cuda() -> bool:
    code = "import torch, sys; sys.exit(0 if torch.version.cuda else 1)"
    return subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
