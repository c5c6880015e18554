"""The compiled kernels: libraries of plain C calls beside this file, made when hvdspark is installed (`setup.py`).

Which of them runs is decided once in a process, when the first kernel is imported: the one for the newest kind of
processor that this one is. Compiled kernels and their references give the same bits, so nobody has to know which of
them runs, but `hvdspark doctor` says it. The environment variable HVDSPARK_KERNELS wants another one: `reference`,
`baseline`, `avx2` or `avx512`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.kernels.fingerprint import fingerprint

_FOLDER = Path(__file__).parent
_SOURCES = _FOLDER / "native"  # in a checkout; wheels have the libraries alone
# By what `kernels_processor` returns: what it has beyond those before.
PROCESSORS = {"baseline": "compiled.so", "avx2": "compiled_avx2.so", "avx512": "compiled_avx512.so"}
_REFERENCE = "reference"

ADDRESS, INTEGER, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
Kernel = TypeVar("Kernel")


class Loaded(NamedTuple):
    """A library, the key of PROCESSORS it is for, and ""; or None, "reference", and why."""

    library: ctypes.CDLL | None
    processor: str
    absence: str


def _load(wanted: str = "") -> Loaded:
    """The library for this processor.

    Args:
        wanted: a key of PROCESSORS, "reference", or "" for the best.
    """
    if wanted == _REFERENCE:
        return _absent(f"HVDSPARK_KERNELS={wanted}")
    if wanted and wanted not in PROCESSORS:
        return _absent(f"HVDSPARK_KERNELS={wanted}: known are {_REFERENCE}, {', '.join(PROCESSORS)}")
    baseline = _open("baseline")
    if baseline.library is None:
        return baseline
    possible = list(PROCESSORS)[: 1 + baseline.library.kernels_processor()]
    if wanted:
        return _open(wanted) if wanted in possible else _absent(f"HVDSPARK_KERNELS={wanted}: not this processor")
    # One for newer processors may be missing where the compiler was older than they are.
    return next(found for found in map(_open, reversed(possible)) if found.library is not None)


def _open(processor: str) -> Loaded:
    file = _FOLDER / PROCESSORS[processor]
    if not file.exists():
        return _absent("not compiled: there was no C++ compiler when hvdspark was installed")
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return _absent(f"not loadable: {error}")
    library.kernels_fingerprint.restype = ctypes.c_char_p
    # Arguments of another version would be read as something else: nothing checks them behind this line.
    if _SOURCES.exists() and library.kernels_fingerprint().decode() != fingerprint(_SOURCES):
        return _absent("compiled from other sources than those of this checkout; `make setup` compiles them anew")
    return Loaded(library, processor, "")


def _absent(reason: str) -> Loaded:
    return Loaded(None, _REFERENCE, reason)


_LOADED = _load(os.environ.get("HVDSPARK_KERNELS", ""))


def processor() -> str:
    """The key of PROCESSORS whose loops run; "reference" where none of them does."""
    return _LOADED.processor


def absence() -> str:
    """Why the references run instead of compiled kernels; "" where compiled ones do."""
    return _LOADED.absence


def function(name: str, arguments: Sequence[Any], result: Any = None) -> Any:
    """A C function of the library; something that is never called where there is no library."""
    if _LOADED.library is None:
        return None
    found = _LOADED.library[name]
    found.argtypes, found.restype = list(arguments), result
    return found


def choose(compiled: Kernel, reference: Kernel) -> Kernel:
    """The one of two functions with the same results that runs in this process."""
    return reference if _LOADED.library is None else compiled


def address(array: NDArray[Any], dtype: Any) -> int:
    """Where an array begins; TypeError unless it is what compiled code takes it for."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"a kernel wants a C-contiguous array of {np.dtype(dtype)}, not {array.dtype} {array.strides}")
    return array.ctypes.data
