"""Rows in, the columns that `transform` adds out: what a server of a saved model does, and the MLflow flavor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.artifact.classes import ClassRule
from hvdspark.artifact.inputs import Values
from hvdspark.artifact.invalid import valid_rows
from hvdspark.artifact.model import TrainedModel
from hvdspark.embedding.arrays import BoolArray
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec

# Rows of one forward pass: memory does not grow with the rows that somebody sends at once.
_ROWS = 1 << 16
# Above, a double leaves integers out.
_EXACT = 2.0**53

OUTPUT, RAW, PROBABILITY, CLASS = "output", "raw", "probability", "prediction"


@dataclass(frozen=True)
class ScoredColumn:
    """A column that scoring adds.

    Attributes:
        name: of the column.
        what: OUTPUT (the k-th of these is the k-th output of the module), or of a classifier RAW, PROBABILITY or CLASS.
        is_vector: whether it holds several numbers for each row.
    """

    name: str
    what: str
    is_vector: bool


@dataclass(frozen=True)
class Scoring:
    """How a fitted model scores rows: its Params, as far as that depends on them. Survives JSON.

    Attributes:
        columns: what is added, in order.
        handle_invalid: "error", "skip" or "keep", see `explainParams()`.
        rule: how classes are read off what the module returns; None where no column wants it.
    """

    columns: tuple[ScoredColumn, ...]
    handle_invalid: str
    rule: ClassRule | None = None


def score(
    model: TrainedModel, scoring: Scoring, columns: Mapping[str, Values]
) -> tuple[BoolArray, dict[str, NDArray[np.float64]]]:
    """Which rows are kept (with "skip" not all are): bool [rows]; and of these, by name, float64 [kept] or [kept, k].

    Args:
        columns: the feature columns by name, as `TrainedModel.predict` takes them; columns of integers may have become
            fractions, as where null was among them.

    Raises:
        DataError: a column is missing or longer than another one, or a value is null or of another kind than in
            training.
    """
    features = model.inputs.features
    if missing := [column.name for column in features if column.name not in columns]:
        raise DataError("a feature column is missing", value=missing, hint=f"given are {sorted(map(str, columns))}")
    given = {column.name: columns[column.name] for column in features}
    rows = len(given[features[0].name])
    kept = valid_rows(model.inputs, given) if scoring.handle_invalid == "skip" else np.ones(rows, dtype=bool)
    raw = {*model.inputs.numbers, *model.inputs.categories}
    taken = {
        column.name: _taken(given[column.name], kept) if column.name in raw else _as_trained(column, given, kept)
        for column in features
    }
    parts = [
        _outputs(model, scoring, {name: values[start : start + _ROWS] for name, values in taken.items()})
        for start in range(0, int(kept.sum()), _ROWS)
    ]
    found = {
        column.name: np.concatenate([part[column.name] for part in parts])
        if parts
        else np.empty((0, 0) if column.is_vector else 0)
        for column in scoring.columns
    }
    return kept, found


def _outputs(model: TrainedModel, scoring: Scoring, rows: Mapping[str, Values]) -> dict[str, NDArray[np.float64]]:
    outputs = model.predict(rows, keep=scoring.handle_invalid == "keep")
    named: dict[str, list[NDArray[np.float64]]] = {OUTPUT: outputs}
    if scoring.rule is not None:
        classes = scoring.rule.classes(outputs[0])
        named |= {RAW: [classes.raw], PROBABILITY: [classes.probability], CLASS: [classes.prediction]}
    taken = {what: iter(values) for what, values in named.items()}
    return {column.name: next(taken[column.what]) for column in scoring.columns}


def _taken(values: Values, kept: BoolArray) -> Values:
    """The values of rows that are kept."""
    if kept.all():
        return values
    if isinstance(values, np.ndarray):
        return values[kept]
    return [value for value, keep in zip(values, kept, strict=True) if keep]


def _as_trained(column: ColumnSpec, given: Mapping[str, Values], kept: BoolArray) -> Values:
    """Integers that came as fractions are integers again, as `transform` takes them."""
    values = _taken(given[column.name], kept)
    if column.dtype != "int64":
        return values
    if column.layout == "scalar":
        whole: Values = _whole(values)
        return whole
    return [None if row is None else _whole(row) for row in values]


def _whole(values: Any) -> Any:
    try:
        numbers = np.asarray(values)
    except ValueError:  # lists of different lengths; the model's checks name them
        return values
    if numbers.ndim != 1 or numbers.dtype.kind != "f":
        return values
    if not (np.abs(numbers) < _EXACT).all() or (numbers % 1 != 0).any():
        return values
    return numbers.astype(np.int64)
