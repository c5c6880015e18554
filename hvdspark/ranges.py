"""What a number may be."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; without `low` itself where that is `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.open else self.low <= number) and number <= self.high and number < math.inf

    def __str__(self) -> str:
        lowest = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return lowest if self.high == math.inf else f"{lowest} and at most {self.high:g}"

    def demand(self, number: float) -> str:
        """What is asked of a number that is not among these."""
        return f"must be {self}{' and finite' if math.isinf(number) else ''}"
