"""From the Params of a CTRClassifier and what its training rows are like to the module and optimizer that it trains."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hvdspark.data.readers.moments import Moments
from hvdspark.estimators.defaults import DensePace, Pace, dense_pace, embedding_pace, set_value
from hvdspark.models.click import ClickModel
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
    tables = embedding_pace(value("embeddingOptimizer"), pace, rate, weight, learning_rate=own)
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
