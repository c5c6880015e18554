"""Batch scoring inside the executors' Python workers.

A scoring function gets pandas Series for the feature columns of a batch of rows, builds the tensors that training
builds, and calls the one forward of `train.forward`. The model is loaded once for each Python worker and kept.
Arithmetic is float32, not bfloat16. Even so the last bits of a score (1e-7 of it) may depend on how many rows share
its batch, because matrix products of another shape add in another order.
"""

from __future__ import annotations

import collections
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from hvdspark.artifact.forward import Input, as_prediction, forward, inputs_of
from hvdspark.artifact.tables import load_model
from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store

_MODELS_KEPT = 3  # for each Python worker; what pyspark's predict_batch_udf keeps
_cache: collections.OrderedDict[tuple[str, str, str, bytes], nn.Module] = collections.OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class ScoringSpec:
    """What a Python worker needs to score; kilobytes, because weights stay in the store.

    Attributes:
        store_uri, model_path: where the committed model lies (`weights.safetensors` and its manifest).
        fingerprint: of the weights that were there when the plan was made; others are refused.
        skeleton: `train.pickling.skeleton` of the module.
        features: columns in the order of the module's arguments.
        handle_invalid: "keep" scores null and NaN of float columns as NaN; "error" and "skip" refuse them (for
            "skip", the Spark plan has dropped these rows before).
    """

    store_uri: str
    model_path: str
    fingerprint: str
    skeleton: bytes
    features: tuple[ColumnSpec, ...]
    handle_invalid: str


def score(spec: ScoringSpec, batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[list[pd.Series]]:
    """Predictions of each batch, one Series for each output: float64, or arrays of them for [rows, k] outputs.

    Raises:
        DataError: an array has not the length that the model was trained with, or a value is null or NaN.
        CheckpointError: the weights are missing, are others than when the plan was made, or do not fit the module.
    """
    keep = spec.handle_invalid == "keep"
    names = [column.name for column in spec.features]
    use_task_threads()
    module = load_module(spec)
    with torch.inference_mode():
        for batch in batches:
            rows = len(batch[0])
            columns = {
                column.name: to_tensor(column, series, keep)
                for column, series in zip(spec.features, batch, strict=True)
            }
            outputs = forward(module, inputs_of(columns, names, "cpu"), rows, names).tensors
            yield [_to_series(output) for output in outputs]


def to_tensor(column: ColumnSpec, series: pd.Series, keep: bool = False) -> Input:
    """A batch of one column as the module takes it; the same dtypes and shapes as the training loader's.

    Args:
        series: numbers, or one 1-d array for each row.
        keep: whether null and NaN of float columns become NaN; else they raise.

    Raises:
        DataError: null or NaN that cannot be kept, or an array of another length than all were in training.
    """
    if column.layout == "scalar":
        return _from_numpy(_checked(column, series.to_numpy(), keep))  # [rows]
    arrays: Sequence[np.ndarray[Any, Any]] = series.tolist()
    try:
        lengths = np.fromiter((len(array) for array in arrays), np.int64, len(arrays))
    except TypeError:  # None has no length
        raise _invalid(column, "null", keep) from None
    values = _checked(column, np.concatenate(arrays) if arrays else np.empty(0, column.dtype), keep)
    if column.layout == "ragged":
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(_from_numpy(values), torch.from_numpy(offsets))
    if (lengths != column.width).any():
        raise DataError(
            f"the model was trained with arrays of length {column.width}",
            value=int(lengths[lengths != column.width][0]),
            where=column.name,
            hint="every row must have that length",
        )
    return _from_numpy(values).reshape(len(arrays), column.width or 0)  # [rows, width]


def _checked(column: ColumnSpec, values: np.ndarray[Any, Any], keep: bool) -> np.ndarray[Any, Any]:
    """All values of a column in its dtype; null and NaN are NaN if they are kept, and raise DataError if not."""
    if column.dtype == "int64":
        if values.dtype.kind != "i" and len(values):  # Arrow makes integers floats where there is a null
            raise _invalid(column, "null", keep)
    elif not keep and np.isnan(values.astype(column.dtype, copy=False)).any():
        raise _invalid(column, "null or NaN", keep)
    return values.astype(column.dtype, copy=False)


def _invalid(column: ColumnSpec, what: str, keep: bool) -> DataError:
    hint = "fill it, or set handleInvalid to 'skip' to drop these rows"
    if keep:
        hint += "; 'keep' is for numbers that are not integers, as NaN"
    elif column.dtype != "int64":
        hint += " or to 'keep' to go on with NaN (CTRClassifier: with the mean)"
    return DataError(f"{what} in feature column {column.name!r}", hint=hint)


def load_module(spec: ScoringSpec) -> nn.Module:
    """The model in evaluation mode, from this process's cache or the store."""
    key = (spec.store_uri, spec.model_path, spec.fingerprint, spec.skeleton)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
        _cache[key] = load_model(Store(spec.store_uri), spec.model_path, pickle.loads(spec.skeleton), spec.fingerprint)
        while len(_cache) > _MODELS_KEPT:
            _cache.popitem(last=False)
        return _cache[key]


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    # Arrow hands out read-only memory, which torch would warn about; modules may write into their inputs.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _to_series(output: Tensor) -> pd.Series:
    values = as_prediction(output).double().numpy()
    if values.ndim > 1:
        return pd.Series(list(values.reshape(len(values), -1)))
    # Of a Series of numbers pyspark makes nulls where they are NaN; of an Arrow array it does not.
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values)))


def use_task_threads() -> None:
    """Give torch the CPU threads of this Spark task, unless the executor sets OMP_NUM_THREADS itself."""
    from pyspark import TaskContext

    task = TaskContext.get()
    if task is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(task.cpus(), 1))
