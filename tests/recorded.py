"""Predictions that were written down on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def numbers(nested: Any) -> list[float]:
    """Those in lists, tuples and values of dicts, in their order."""
    if isinstance(nested, Mapping):
        nested = list(nested.values())
    return [each for part in nested for each in numbers(part)] if isinstance(nested, list | tuple) else [float(nested)]


def as_recorded(nested: Any) -> Any:
    """Equals the numbers of what was computed here: processors add the products of a layer in another order, and some
    round a product and its sum at once. That is a few times 6e-8, half of what float32 tells apart at 1."""
    return pytest.approx(numbers(nested), rel=0, abs=1e-6)
