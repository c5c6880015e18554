"""The ids of one feature for a batch of rows, in whatever form they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvdspark.errors import ConfigurationError, DataError, SchemaError

_HOST = torch.device("cpu")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Jagged:
    """One feature of a batch.

    Attributes:
        ids: int64 [n], where they are looked up, of all rows one after the other.
        shape: of the output without its last dimension, which is the table's.
        pooling: "none" (then n = product of shape) | "sum" | "mean" (then shape is [rows]).
        offsets: int64 [rows + 1], row i has ids[offsets[i] : offsets[i + 1]]; None without pooling.
    """

    ids: Tensor
    shape: tuple[int, ...]
    pooling: str
    offsets: Tensor | None

    def to(self, device: torch.device) -> Jagged:
        """On the device where the outputs are made."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, ids=self.ids.to(device), offsets=offsets)


def name_features(inputs: Mapping[str, Any] | Sequence[Any], features: Sequence[str]) -> Mapping[str, Any]:
    """Inputs by feature, also if they come in the order of the features; ConfigurationError if one is missing."""
    if not isinstance(inputs, Mapping):
        inputs = dict(zip(features, inputs, strict=len(inputs) == len(features)))
    for feature in features:
        if feature not in inputs:
            raise ConfigurationError("a feature is missing", value=feature, where="ShardedEmbeddingCollection.forward")
    return inputs


def device_of(value: Any) -> torch.device:
    """Where the ids of a feature are, in whatever form `jagged_of` takes."""
    if isinstance(value, Tensor):
        return value.device
    return value[0].device if isinstance(value, tuple) else value.values.device


def jagged_of(value: Any, pooling: str, feature: str, device: torch.device = _HOST) -> Jagged:
    """Read a feature.

    Args:
        value: an integer tensor [rows] or [rows, k], or values [n] and offsets int64 [rows + 1], as a tuple or as
            attributes of an object (a `Ragged`).
        pooling: of the table.
        device: where the ids are looked up.

    Raises:
        SchemaError: something else.
        DataError: offsets that do not fit the values.
    """
    where = f"feature {feature!r}"
    if isinstance(value, Tensor):
        ids = _integers(value, where, device)
        if ids.dim() not in (1, 2):
            raise SchemaError("ids come as [rows] or [rows, k]", value=tuple(ids.shape), where=where)
        if pooling == "none":
            return Jagged(ids.reshape(-1), tuple(ids.shape), pooling, None)
        rows, width = len(ids), ids.shape[1] if ids.dim() == 2 else 1
        return Jagged(ids.reshape(-1), (rows,), pooling, torch.arange(rows + 1, device=device) * width)
    if isinstance(value, tuple) and len(value) == 2:
        ids, offsets = value
    elif hasattr(value, "values") and hasattr(value, "offsets"):
        ids, offsets = value.values, value.offsets
    else:
        raise SchemaError("ids are neither a tensor nor values and offsets", value=type(value).__name__, where=where)
    ids, offsets = _integers(ids, where, device), _integers(offsets, f"offsets of {where}", device)
    if pooling == "none":
        raise SchemaError(
            "rows of different lengths need pooling", where=where, hint="set pooling='sum' or 'mean' in its TableConfig"
        )
    if ids.dim() != 1 or offsets.dim() != 1:
        raise SchemaError("values and offsets are vectors", value=(tuple(ids.shape), tuple(offsets.shape)), where=where)
    ends = offsets[[0, -1]].tolist() if len(offsets) else []
    if ends != [0, len(ids)] or bool((offsets[1:] < offsets[:-1]).any()):
        raise DataError(
            "offsets must rise from 0 to the number of values", value=f"{ends} for {len(ids)} values", where=where
        )
    return Jagged(ids, (len(offsets) - 1,), pooling, offsets)


def _integers(value: Any, where: str, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
        raise SchemaError(
            "ids must be integers",
            value=str(value.dtype) if isinstance(value, Tensor) else type(value).__name__,
            where=where,
            hint="large ids do not survive a float tensor: keep the column int64 from its source on",
        )
    return value.detach().to(device, torch.int64)
