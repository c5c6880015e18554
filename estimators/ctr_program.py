"""From the Params of a CTRClassifier and what its training rows are like to the module and optimizer that it trains."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hvdspark.data.readers.moments import Moments
from hvdspark.embedding.config import SparseOptimizer
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.defaults import DensePace, EmbeddingPace, Pace, dense_pace, embedding_pace, set_value
from hvdspark.models.click import ClickModel
from hvdspark.models.click_tables import TableSettings, tables_of
from hvdspark.train.optimizer import named
from hvdspark.train.program import Program


def click_program(
    params: Any,
    numbers: Sequence[str],
    categories: Sequence[str],
    pooled: Sequence[str],
    pace: Pace,
    rows: Moments | None = None,
) -> Program:
    """The program of a fit, and without the moments of its training rows one that differs in no shape.

    Args:
        params: of the estimator.
        pooled: those of `categories` that hold several in a row.
        rows: moments of the numbers and of the label.
    """
    value = params.getOrDefault
    rate, weight = (0.5, math.inf) if rows is None else (positive_rate(rows), rows.label[1])
    own = set_value(params, "embeddingLearningRate")
    pace_of = functools.partial(embedding_pace, pace=pace, rate=rate, rows=weight, learning_rate=own)
    tables = pace_of(value("embeddingOptimizer"))
    module = ClickModel(
        value("architecture"),
        len(numbers),
        categories,
        pooled,
        pooling=value("pooling"),
        dim=value("embeddingDim"),
        hidden=value("hiddenUnits"),
        dropout=value("dropout"),
        embedding_optimizer=value("embeddingOptimizer"),
        embedding_learning_rate=tables.vectors,
        embedding_initial_accumulator=tables.vector_accumulator,
        embedding_min_count=value("embeddingMinCount"),
        embedding_dtype=value("embeddingDtype"),
        seed=value("seed"),
        number_inputs="linear_and_log",
        first_order=True,
        weight_learning_rate=tables.weights,
        weight_initial_accumulator=tables.weight_accumulator,
        one_table=True,
        shared_tables=value("sharedTables"),
        of_tables=_of_tables(params, categories, pace_of),
        embedding_at_limit=value("embeddingAtLimit"),
    )
    if rows is not None:
        with torch.no_grad():
            module.mean.copy_(torch.from_numpy(rows.inputs[1]))
            module.deviation.copy_(torch.from_numpy(rows.deviation))
        module.begin_at(rate)
    rates = DensePace() if params.isSet("learningRate") else dense_pace(rate, weight, len(numbers))
    optimizer = functools.partial(_adam, module, rates)
    # A last pass over few rows costs little, and what Adam makes of a bias is off by what few positive rows are.
    few = rows is not None and pace.epochs > 1
    return Program(module, "bce_with_logits", optimizer, output_bias=module.bias if few else None)


def _of_tables(
    params: Any, categories: Sequence[str], pace_of: Callable[[str], EmbeddingPace]
) -> dict[str, TableSettings]:
    """What tables have otherwise than the others. ConfigurationError for a table that there is not.

    Args:
        pace_of: learning rates of an optimizer.
    """
    table_of = tables_of(categories, params.getOrDefault("sharedTables"))
    tables = set(table_of.values())
    names = ("embeddingDims", "embeddingOptimizers", "embeddingMinCounts", "embeddingAtLimits")
    maps = {name: params.getOrDefault(name) for name in names}
    for name, given in maps.items():
        for key in given:
            if key not in tables:
                hint = (
                    f"it shares table {table_of[key]!r}: name that"
                    if key in table_of
                    else f"known are {sorted(tables)}"
                )
                raise ConfigurationError(
                    "no column of categories with a table of its own", value=key, where=name, hint=hint
                )
    dims, optimizers, counts, at_limits = maps.values()
    found = {}
    for table in sorted({name for given in maps.values() for name in given}):
        of_vectors = of_weights = None
        if table in optimizers:
            name, rates = optimizers[table], pace_of(optimizers[table])
            of_vectors = SparseOptimizer(name, rates.vectors, initial_accumulator=rates.vector_accumulator)
            of_weights = SparseOptimizer(name, rates.weights, initial_accumulator=rates.weight_accumulator)
        found[table] = TableSettings(dims.get(table), counts.get(table), of_vectors, of_weights, at_limits.get(table))
    return found


def positive_rate(rows: Moments) -> float:
    """Share of positive rows, moved off 0 and 1 as by half a row."""
    mean, weight = rows.label_mean, rows.label[1]
    if np.isnan(mean):
        return 0.5
    return float(np.clip(mean, 0.5 / (weight + 1.0), 1.0 - 0.5 / (weight + 1.0)))


def _adam(module: ClickModel, pace: DensePace, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam with learning rates of their own for the dense first-order weights and the bias."""
    factors: dict[int, float] = {}
    for part in module.first_order_parts():
        factors |= {id(part.weight): pace.first_order, id(part.bias): pace.bias}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(factors.get(id(parameter), pace.deep), []).append(parameter)
    return named("adam", module)([{"params": some, "lr": lr * factor} for factor, some in groups.items()], lr=lr)
