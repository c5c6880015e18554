"""What numpy calls the arrays that ids and rows lie in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
