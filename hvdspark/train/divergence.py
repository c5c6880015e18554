"""Training that ended in NaN or infinity, in words that name the cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvdspark.artifact.forward import Input
from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import TrainingDivergedError
from hvdspark.specs import TrainSpec


@dataclass
class Divergence:
    """What one rank knows about it.

    Attributes:
        what, value: the first number that was not finite.
        step: of the epoch.
        columns: features and labels that have NaN or infinity in this rank's rows.
    """

    what: str
    value: float | None
    step: int
    columns: list[str]


def columns_with_nan(columns: dict[str, Input]) -> list[str]:
    """Names of the columns that are not finite everywhere."""
    values = {name: column.values if isinstance(column, Ragged) else column for name, column in columns.items()}
    return [name for name, tensor in values.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]


def diverged(what: str, value: Any, where: str, spec: TrainSpec, columns: list[str]) -> TrainingDivergedError:
    """The error, with a hint that names the columns where they are known."""
    if columns:
        hint = (
            f"there is NaN or infinity, or a number beyond the float32 range (3.4e38), in the columns "
            f"{', '.join(columns)}: fill, filter or scale it"
        )
    else:
        hint = f"lower learningRate (now {spec.learning_rate:g}), set gradientClipNorm, scale the feature columns" + (
            ", use compression none" if spec.compression != "none" else ""
        )
    return TrainingDivergedError(what, value=value, where=where, hint=hint)
