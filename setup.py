"""Compiles the kernels of `hvdspark.embedding.kernels` into the wheel: plain C calls, libraries for every Python.

Everything else that there is to say about the package is in pyproject.toml. Without a C++ compiler, hvdspark is
installed without them, and runs their references, as `hvdspark doctor` reports.
"""

from __future__ import annotations

import platform
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("hvdspark/embedding/kernels")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# One library for each kind of processor, of which library.py takes the best that the one at hand can run. Not
# `target_clones`: gcc's compares the name of the processor, and gives one that it does not know the oldest code.
PROCESSORS = {"compiled": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2"]
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
    PROCESSORS |= {"compiled_avx2": avx2, "compiled_avx512": [*avx2, *avx512]}


class Library(build_ext):
    """A library that ctypes loads: no module of one Python's, and so without its name in the file's."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class Wheel(bdist_wheel):
    """For one platform, and any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


# By path: importing the package would need all that it imports.
fingerprint = runpy.run_path(str(KERNELS / "fingerprint.py"))["fingerprint"](Path(__file__).parent / KERNELS / "native")
setup(
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            f"hvdspark.embedding.kernels.{name}",
            sources=sorted(str(path) for path in (KERNELS / "native").glob("*.cpp")),
            depends=sorted(str(path) for path in (KERNELS / "native").glob("*.h")),
            define_macros=[("KERNELS_FINGERPRINT", fingerprint)],
            extra_compile_args=[*FLAGS, *for_processor],
            language="c++",
            optional=True,
        )
        for name, for_processor in PROCESSORS.items()
    ],
)
