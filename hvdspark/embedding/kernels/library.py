"""The compiled kernels: a library of plain C calls beside this file, made when hvdspark is installed (`setup.py`).

Whether it is there is decided once in a process, when the first kernel is imported: compiled kernels and their
references give the same bits, so nobody has to know which of them runs, but `hvdspark doctor` says it. The environment
variable HVDSPARK_KERNELS=reference leaves the compiled ones alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.kernels.fingerprint import fingerprint

_FILE = Path(__file__).with_name("compiled.so")
_SOURCES = Path(__file__).with_name("native")  # in a checkout; wheels have the library alone

ADDRESS, INTEGER, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
Kernel = TypeVar("Kernel")


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library; or None, and why."""
    if os.environ.get("HVDSPARK_KERNELS") == "reference":
        return None, "HVDSPARK_KERNELS=reference"
    if not _FILE.exists():
        return None, "not compiled: there was no C++ compiler when hvdspark was installed"
    try:
        library = ctypes.CDLL(str(_FILE))
    except OSError as error:
        return None, f"not loadable: {error}"
    library.kernels_fingerprint.restype = ctypes.c_char_p
    # Arguments of another version would be read as something else: nothing checks them behind this line.
    if _SOURCES.exists() and library.kernels_fingerprint().decode() != fingerprint(_SOURCES):
        return None, "compiled from other sources than those of this checkout; `make setup` compiles them anew"
    return library, ""


_LIBRARY, _REASON = _load()


def absence() -> str:
    """Why the references run instead of compiled kernels; "" where compiled ones do."""
    return _REASON


def function(name: str, arguments: Sequence[Any], result: Any = None) -> Any:
    """A C function of the library; something that is never called where there is no library."""
    if _LIBRARY is None:
        return None
    found = _LIBRARY[name]
    found.argtypes, found.restype = list(arguments), result
    return found


def choose(compiled: Kernel, reference: Kernel) -> Kernel:
    """The one of two functions with the same results that runs in this process."""
    return reference if _LIBRARY is None else compiled


def address(array: NDArray[Any], dtype: Any) -> int:
    """Where an array begins; TypeError unless it is what compiled code takes it for."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"a kernel wants a C-contiguous array of {np.dtype(dtype)}, not {array.dtype} {array.strides}")
    return array.ctypes.data
