"""What all events have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FitEvent:
    """Base class of all events.

    Attributes:
        run_id: which fit it is of, because fits of one listener may run side by side (CrossValidator); unique.
    """

    run_id: str = field(default="", kw_only=True)
