"""Which rows `handleInvalid="skip"` drops where there is no Spark: those that `estimators.columns` filters out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hvdspark.artifact.inputs import BYTES, Inputs, Values, flattened, floats_of, numbers
from hvdspark.embedding.arrays import BoolArray, objects_of
from hvdspark.embedding.ids.categories import category_ids
from hvdspark.specs import ColumnSpec


def valid_rows(inputs: Inputs, columns: Mapping[str, Values]) -> BoolArray:
    """Rows whose features all have a value. bool [rows]

    Args:
        columns: by name, as `Inputs.tensors` takes them.

    Raises:
        DataError: a value is of another kind than in training.
    """
    valid = np.ones(len(columns[inputs.features[0].name]), dtype=bool)
    for column in inputs.features:
        valid &= ~_invalid(inputs, column, columns[column.name])
    return valid


def _invalid(inputs: Inputs, column: ColumnSpec, values: Values) -> BoolArray:
    if column.name in inputs.numbers:
        return np.isnan(numbers(values, column.name))
    if column.layout == "scalar":
        return _missing(inputs, column, values)
    rows = [row.values if hasattr(row, "indices") else row for row in values]  # of a sparse vector, what is not 0
    without = np.fromiter((row is None for row in rows), bool, len(rows))
    if column.dtype == BYTES:
        return without
    elements, offsets = flattened(column, [() if row is None else row for row in rows], True)
    row_of = np.repeat(np.arange(len(rows)), np.diff(offsets))
    gaps = np.bincount(row_of[_missing(inputs, column, elements)], minlength=len(rows))
    return without | (gaps > 0)


def _missing(inputs: Inputs, column: ColumnSpec, values: Values) -> BoolArray:
    """Of values, not of arrays of them: null, and NaN where they are numbers; of integers infinity, too. bool [n]"""
    if column.name in inputs.categories:
        return category_ids(values, inputs.id_bits, inputs.types.get(column.name, ""))[1]
    found = values if isinstance(values, np.ndarray) else objects_of(values)
    if found.dtype.kind == "O":
        found = floats_of(column, found)
    if found.dtype.kind != "f":
        return np.zeros(len(found), dtype=bool)
    return ~np.isfinite(found) if column.dtype == "int64" else np.isnan(found)
