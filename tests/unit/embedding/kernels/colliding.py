"""Keys that a hash index has trouble with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.kernels.index import first_cells


def keys_of_few_cells(count: int, cells: int = 1 << 10) -> NDArray[np.int64]:
    """Distinct keys that all want one of the last cells of a table of so many."""
    keys = np.arange(count * 2 * cells // 16, dtype=np.int64)
    return keys[first_cells(keys, cells - 1) >= cells - 16][:count]
