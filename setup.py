"""Compiles the kernels of `hvdspark.embedding.kernels` into the wheel: plain C calls, one library for every Python.

Everything else that there is to say about the package is in pyproject.toml. Without a C++ compiler, hvdspark is
installed without them, and runs their references, as `hvdspark doctor` reports.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("hvdspark/embedding/kernels")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]


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
            "hvdspark.embedding.kernels.compiled",
            sources=sorted(str(path) for path in (KERNELS / "native").glob("*.cpp")),
            depends=[str(KERNELS / "native" / "kernels.h")],
            define_macros=[("KERNELS_FINGERPRINT", fingerprint)],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
)
