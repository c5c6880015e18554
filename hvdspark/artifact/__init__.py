"""What a trained model is on disk, and how a row goes through it; without Spark."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdspark.artifact.model import TrainedModel as TrainedModel
    from hvdspark.artifact.trust import Trust as Trust

__all__ = ["TrainedModel", "Trust"]

_HOMES = {"TrainedModel": "hvdspark.artifact.model", "Trust": "hvdspark.artifact.trust"}


def __getattr__(name: str) -> Any:
    # At first use: what needs a part of this, such as `trust`, does not import tables and models.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hvdspark.artifact' has no attribute {name!r}")
