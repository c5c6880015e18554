"""The arrays that ids and rows lie in: what numpy calls them, how they are made, whether their numbers are finite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Of stored ids, counts and rows.
NUMPY_DTYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,  # numpy has no bfloat16; the same 16 bits
    torch.int64: np.int64,
    torch.int32: np.int32,
}


def objects_of(values: Collection[Any]) -> NDArray[np.object_]:
    """Values as they are, [n]. A list among them stays one; assigned to an array, numpy would take it apart."""
    return np.fromiter(values, dtype=object, count=len(values))


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity among floating-point numbers of any shape."""
    # A sum reads each number once and keeps every NaN and infinity; only its own overflow needs a second look.
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
