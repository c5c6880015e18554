"""Build Horovod 0.28.1 against the torch that is installed here, and keep the wheel.

Horovod has had no release since 2023: its build asks for C++14, torch needs C++17 (horovod#3996, #4014; the fix was
merged in 2024 and never released) and from 2.14 on C++20, and there are no binary wheels. So it is compiled once for
each (Horovod, torch, Python, MPI) combination and the wheel is kept in a cache outside any checkout.

Only the standard library is imported, so that this works in an environment where nothing else does yet.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
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

# Horovod's build enables CUDA wherever it finds an nvcc, and asks for a whole toolkit where torch has CUDA and finds
# one, whether or not it was to use any: an nvcc without the rest then fails the build. For ranks on CPUs this takes the
# place of cmake; it is called with Horovod's source directory first.
_CMAKE_WITHOUT_CUDA = r"""#!/bin/sh
case "$1" in
    -*) ;;
    *)
        sed -i 's/^string(TOUPPER .* Pytorch_CUDA)$/set(Pytorch_CUDA FALSE)/' "$1/cmake/Modules/FindPytorch.cmake"
        set -- "$@" -DCMAKE_CUDA_COMPILER= -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON
        ;;
esac
exec {cmake} "$@"
"""


@dataclass(frozen=True)
class BuildPlan:
    """What would be built and where the wheel is kept; nothing is touched by making one.

    Attributes:
        cuda: with CUDA and NCCL.
        note: what the user should know about the choice, or "".
    """

    torch_version: str
    mpi_version: str | None
    cuda: bool
    wheel_dir: Path
    note: str = ""

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
        with_cuda: None means with CUDA and NCCL where torch has CUDA and nothing that the build needs is missing.

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
    cuda, note = _choose_cuda(with_cuda)
    key = "-".join(
        [
            _key_prefix(torch_version),
            platform.machine(),
            f"mpi{mpi_version}" if mpi_version else "nompi",
            "nccl" if cuda else "cpu",
        ]
    )
    return BuildPlan(torch_version, mpi_version, cuda, (cache or cache_root()) / "wheels" / key, note)


def _choose_cuda(asked: bool | None) -> tuple[bool, str]:
    """Whether to build with CUDA, and what to say about it."""
    if asked is False:
        return False, ""
    torch_cuda = _torch_cuda()
    if torch_cuda is None:
        return bool(asked), "this torch has no CUDA: the build will fail" if asked else ""
    missing = missing_for_cuda(torch_cuda)
    if not missing:
        return True, ""
    if asked:
        return True, f"the build needs what was not found: {'; '.join(missing)}"
    return False, (
        f"torch has CUDA {torch_cuda}, but a Horovod with NCCL cannot be built here, so this one is for ranks on CPUs. "
        f"Not found: {'; '.join(missing)}. --cuda tries it all the same"
    )


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
    compiler = scratch / "cxx"
    # The last -std on the command line wins, so the wrapper appends it.
    release = [int(number) for number in re.findall(r"\d+", build.torch_version)[:2]]
    standard = "c++20" if release >= [2, 14] else "c++17"
    # Since g++ 13 its headers no longer include these for Horovod, which uses them.
    added = f"-std={standard} -include string -include stdexcept"
    compiler.write_text(f'#!/bin/sh\nexec {_tool(os.environ.get("CXX") or "g++")} "$@" {added}\n')
    compiler.chmod(0o755)
    environment = build.environment(os.environ, compiler)
    cmake = _tool("cmake")
    if not build.cuda:
        wrapper = scratch / "bin" / "cmake"
        wrapper.parent.mkdir()
        wrapper.write_text(_CMAKE_WITHOUT_CUDA.format(cmake=cmake))
        wrapper.chmod(0o755)
        environment["PATH"] = f"{wrapper.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    log = build.wheel_dir / "build.log"
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir"),
        *("--no-binary", "horovod", "--wheel-dir", str(scratch), f"horovod=={HOROVOD_VERSION}", "--verbose"),
    ]
    with open(log, "wb") as output:
        code = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT_S,
        ).returncode
    wheels = list(scratch.glob("horovod-*.whl"))
    if code != 0 or not wheels:
        reason, lines = first_error(log), log.read_text(errors="replace").splitlines()[-8:]
        without = "hvdspark install-horovod --no-cuda builds one for ranks on CPUs. " if build.cuda else ""
        raise DependencyError(
            f"the Horovod build failed: {reason}" if reason else "the Horovod build failed",
            value=f"exit code {code}",
            where=str(log),
            hint=f"{without}The whole log is there; its last lines were:\n" + "\n".join(lines),
        )
    return wheels[0]


def first_error(log: Path) -> str:
    """The first line of a build log that says what is wrong, with what follows it where it is CMake's; or ""."""
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if "CMake Error" in line:  # its words stand below it, indented, until an empty line follows
            words = [line.strip()]
            for following in lines[number + 1 : number + 8]:
                if not following.strip() and len(words) > 1:
                    break
                words += [following.strip()] if following.strip() else []
            return " ".join(words)
        if re.search(r"\berror:", line):
            return line.strip()
    return ""


def last_failure(cache: Path | None = None) -> tuple[Path, str] | None:
    """Log and first error of the newest build for this torch and Python, where it left no wheel; else None."""
    directories = ((cache or cache_root()) / "wheels").glob(f"{_key_prefix(_installed_version('torch') or '')}-*")
    logs = sorted((directory / "build.log" for directory in directories), key=_modified)
    if not logs or not logs[-1].exists() or any(logs[-1].parent.glob("horovod-*.whl")):
        return None
    return logs[-1], first_error(logs[-1])


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _key_prefix(torch_version: str) -> str:
    return f"horovod{HOROVOD_VERSION}-torch{torch_version}-cp{sys.version_info.major}{sys.version_info.minor}"


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


def _torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with; None for a CPU build."""
    command = [sys.executable, "-c", "import torch; print(torch.version.cuda or '')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stdout.strip() or None


def missing_for_cuda(torch_cuda: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What a build with CUDA and NCCL needs and this machine does not show, in words.

    Args:
        torch_cuda: the CUDA version of torch, whose first number the compiler must have.
    """
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is None:
        return ["nvcc on PATH"]
    named = [environ.get(name) for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH")]
    # nvcc may be a link or a script that starts the one of the toolkit.
    places = [Path(home) for home in named if home] + [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    homes = [home for home in places if _found(home, "cuda_runtime.h", "libcudart.so*")]
    missing = [] if homes else [f"cuda_runtime.h and libcudart.so of the toolkit of {nvcc} (CUDA_HOME names its place)"]
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
    version = re.search(r"release (\d+)\.", output)
    if version is None or version.group(1) != torch_cuda.split(".")[0]:
        missing.append(
            f"an nvcc of CUDA {torch_cuda.split('.')[0]} (it says {version.group(1) if version else 'nothing'})"
        )
    nccl = [Path(home) for home in (environ.get("HOROVOD_NCCL_HOME"), environ.get("NCCL_HOME")) if home]
    if not any(_found(home, "nccl.h", "libnccl*") for home in [*nccl, *homes, Path("/usr"), Path("/usr/local")]):
        missing.append("nccl.h and libnccl (libnccl-dev; HOROVOD_NCCL_HOME names their place)")
    return missing


def _found(home: Path, header: str, library: str) -> bool:
    headers = [*home.glob(f"include/{header}"), *home.glob(f"targets/*/include/{header}")]
    return bool(headers) and any(
        next(home.glob(f"{folder}/{library}"), None) is not None
        for folder in ("lib64", "lib", "lib/*-linux-gnu", "targets/*/lib")
    )
