"""Batch scoring inside the executors' Python workers.

A scoring function gets pandas Series for the feature columns of a batch of rows and hands them as numpy's arrays to
`artifact.inputs` and `artifact.forward`, which need neither pandas nor Spark. The model is loaded once for each Python
worker and kept.
Arithmetic is float32, not bfloat16. Even so the last bits of a score (1e-7 of it) may depend on how many rows share
its batch, because matrix products of another shape add in another order.
"""

from __future__ import annotations

import collections
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from hvdspark.artifact.forward import predictions
from hvdspark.artifact.inputs import Entries, Values, to_tensor
from hvdspark.artifact.tables import load_model
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store

# What errors call the store of a fitted model: whoever loaded one has set none.
MODELS_PLACE = "the model's directory"
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
        most_rows: of one call of the module; None calls it once for each batch that Spark sends.
    """

    store_uri: str
    model_path: str
    fingerprint: str
    skeleton: bytes
    features: tuple[ColumnSpec, ...]
    handle_invalid: str
    most_rows: int | None = None


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
    for batch in batches:
        columns = {
            column.name: to_tensor(column, values_of(column, series), keep)
            for column, series in zip(spec.features, batch, strict=True)
        }
        found = predictions(module, columns, names, len(batch[0]), spec.most_rows)
        yield [_to_series(values) for values in found]


def values_of(column: ColumnSpec, series: pd.Series | pd.DataFrame) -> Values:
    """A column of a batch as numpy has it: numbers [rows], or a list of one 1-d array, or `Entries`, for each row."""
    if isinstance(series, pd.DataFrame):  # of vectors, some of which are sparse
        parts = (series[name] for name in ("size", "indices", "values"))
        return [Entries(*row) for row in zip(*parts, strict=True)]
    values: Values = series.to_numpy() if column.layout == "scalar" else series.tolist()
    return values


def load_module(spec: ScoringSpec) -> nn.Module:
    """The model in evaluation mode, from this process's cache or the store."""
    key = (spec.store_uri, spec.model_path, spec.fingerprint, spec.skeleton)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
        store = Store(spec.store_uri, MODELS_PLACE)
        _cache[key] = load_model(store, spec.model_path, pickle.loads(spec.skeleton), spec.fingerprint)
        while len(_cache) > _MODELS_KEPT:
            _cache.popitem(last=False)
        return _cache[key]


def _to_series(values: NDArray[np.float64]) -> pd.Series:
    if values.ndim > 1:
        return pd.Series(list(values))
    # Of a Series of numbers pyspark makes nulls where they are NaN; of an Arrow array it does not.
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values)))


def use_task_threads() -> None:
    """Give torch the CPU threads of this Spark task, unless the executor sets OMP_NUM_THREADS itself."""
    from pyspark import TaskContext

    task = TaskContext.get()
    if task is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(task.cpus(), 1))
