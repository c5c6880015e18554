"""Recommendation architectures as plain modules: numbers and looked-up embeddings in, one logit for each row out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from hvdspark.checks import one_of
from hvdspark.models.architecture import Architecture
from hvdspark.models.dcn import DCNv2
from hvdspark.models.deepfm import DeepFM
from hvdspark.models.dlrm import DLRM
from hvdspark.models.fm import FactorizationMachine
from hvdspark.models.lr import LogisticRegression
from hvdspark.models.wide_deep import WideAndDeep

ARCHITECTURES: dict[str, type[Architecture]] = {
    "lr": LogisticRegression,
    "fm": FactorizationMachine,
    "wide_deep": WideAndDeep,
    "deepfm": DeepFM,
    "dcn_v2": DCNv2,
    "dlrm": DLRM,
}


def make_model(
    architecture: str,
    *,
    numbers: int,
    fields: int,
    dim: int | Sequence[int],
    hidden: Sequence[int],
    dropout: float = 0.0,
) -> Architecture:
    """An architecture by its name, with fresh weights from torch's generator.

    Args:
        architecture: a key of ARCHITECTURES.
        numbers, fields, dim: as in `Architecture`.
        hidden: units of each hidden layer.
        dropout: probability with which a hidden unit is dropped in training.

    Of these, an architecture takes those it knows: a factorization machine has no hidden layers.

    Raises:
        ConfigurationError: unknown name, sizes out of range.
    """
    one_of("architecture", architecture, tuple(ARCHITECTURES), "make_model")
    cls = ARCHITECTURES[architecture]
    arguments: dict[str, Any] = {"numbers": numbers, "fields": fields, "dim": dim, "hidden": hidden, "dropout": dropout}
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in arguments.items() if name in known})


__all__ = [
    "ARCHITECTURES",
    "DLRM",
    "Architecture",
    "DCNv2",
    "DeepFM",
    "FactorizationMachine",
    "LogisticRegression",
    "WideAndDeep",
    "make_model",
]
