"""The one forward pass that training, validation and scoring share.

A module is called with one positional argument for each feature column, in the order of `featureCols`. What it returns
is normalised to named tensors here, so that no other file asks what the module looks like.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hvdspark.data.feed.batch import Batch, Column, Ragged, Sparse, rows_of
from hvdspark.errors import ConfigurationError, HvdSparkError

Input: TypeAlias = Tensor | Ragged


@dataclass(frozen=True)
class OutputSpec:
    """One tensor that the module returns.

    Attributes:
        name: the key where the module returns a dict, else None.
        shape: sizes after the row dimension; `()` for [rows].
        dtype: "float32", "int64", ...
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Outputs:
    """What a module returned.

    Attributes:
        names: dict keys, or None for the outputs of a module that returns a tensor, tuple or list.
        tensors: [rows, ...] each; never 16-bit floats.
    """

    names: tuple[str | None, ...]
    tensors: tuple[Tensor, ...]

    def describe(self) -> tuple[OutputSpec, ...]:
        """Name, shape after the rows, and dtype of each output."""
        return tuple(
            OutputSpec(name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in zip(self.names, self.tensors, strict=True)
        )


# Of the dense rows that scoring makes at a time of vectors of which few values are not 0.
_DENSE_BYTES = 64 << 20


def inputs_of(columns: Mapping[str, Column], features: Sequence[str], device: str) -> list[Input]:
    """The module's arguments, on its device: [rows], [rows, width] or Ragged for each feature, in order."""
    moved = [columns[name].to(device) for name in features]
    return [column.dense() if isinstance(column, Sparse) else column for column in moved]


def on_device(batch: Batch, device: str) -> Batch:
    """The batch where the module is; all scalar columns of a dtype go in one copy."""
    return batch if device == "cpu" else batch.to(device)


def forward(module: nn.Module, inputs: Sequence[Input], rows: int, features: Sequence[str] = ()) -> Outputs:
    """Call the module. 16-bit outputs (autocast) come back as float32, so that losses are computed in float32.

    Args:
        inputs: the module's arguments, from `inputs_of`.
        rows: of each input.
        features: names of the inputs, for messages; without them their positions.

    Raises:
        ConfigurationError: the module does not return tensors, or not one row for each input row; or it takes for a
            tensor what is Ragged.
    """
    try:
        raw = module(*inputs)
    except Exception as error:
        names = features or [f"argument {position}" for position in range(len(inputs))]
        ragged = [name for name, value in zip(names, inputs, strict=True) if isinstance(value, Ragged)]
        if not ragged or not _may_be_about_ragged(error):
            raise
        raise ConfigurationError(
            f"the module failed on arrays of different lengths: {type(error).__name__}: {error}",
            value=ragged,
            where="featureCols",
            hint="not all arrays of these columns have the same length (an empty one is enough), so they arrive as "
            "hvdspark.data.Ragged(values, offsets): make all arrays equally long, or let the module take Ragged",
        ) from error
    named: list[tuple[str | None, Tensor]]
    if isinstance(raw, Mapping):
        named = [(str(key), value) for key, value in raw.items()]
    else:
        named = [(None, value) for value in (raw if isinstance(raw, tuple | list) else (raw,))]
    if not named:
        raise ConfigurationError("the module returned nothing", where=type(module).__name__)
    for position, (_, output) in enumerate(named):
        where = f"output {position} of {type(module).__name__}"
        if not isinstance(output, Tensor):
            raise ConfigurationError(
                "the module must return a tensor, or a tuple, list or dict of tensors",
                value=type(output).__name__,
                where=where,
            )
        if output.dim() == 0 or output.shape[0] != rows:
            raise ConfigurationError(
                f"the output must have one row for each of the {rows} input rows",
                value=f"shape {tuple(output.shape)}",
                where=where,
                hint="keep the first dimension; do not average over rows inside the module",
            )
    names, tensors = zip(*named, strict=True)
    return Outputs(names, tuple(_at_least_float32(tensor) for tensor in tensors))


def as_prediction(output: Tensor) -> Tensor:
    """The output as a prediction column sees it: [rows, 1] is [rows], everything else is left as it is."""
    return output.squeeze(1) if output.dim() == 2 and output.shape[1] == 1 else output


def predictions(
    module: nn.Module, columns: Mapping[str, Column], features: Sequence[str], rows: int, most_rows: int | None = None
) -> list[NDArray[np.float64]]:
    """What prediction columns hold, for each output: float64 [rows], or [rows, k] of more than one number in a row.

    Args:
        module: on the CPU, in evaluation mode.
        columns: by name, for each of `features`.
        most_rows: of one call of the module.

    Raises: as `forward`.
    """
    width = sum(column.width for name in features if isinstance(column := columns[name], Sparse))
    at_a_time = max(1, _DENSE_BYTES // (4 * width)) if width else max(rows, 1)
    at_a_time = min(at_a_time, most_rows or at_a_time)
    parts = []
    for first in range(0, max(rows, 1), at_a_time):
        last = min(first + at_a_time, rows)
        some = columns if last - first == rows else {name: rows_of(columns[name], first, last) for name in features}
        with torch.inference_mode():
            outputs = forward(module, inputs_of(some, features, "cpu"), last - first, features).tensors
            values = [as_prediction(output).double().numpy() for output in outputs]
        parts.append(
            [found if found.ndim == 1 else found.reshape(len(found), math.prod(found.shape[1:])) for found in values]
        )
    return parts[0] if len(parts) == 1 else [np.concatenate(found) for found in zip(*parts, strict=True)]


@contextlib.contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; afterwards each layer is in the mode that it was in."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _may_be_about_ragged(error: Exception) -> bool:
    # torch names the type that it did not expect, in errors of several classes.
    if isinstance(error, HvdSparkError):
        return False
    return isinstance(error, TypeError | AttributeError) or Ragged.__name__ in str(error)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
