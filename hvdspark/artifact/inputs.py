"""Columns of rows, as numpy has them, on their way to the tensors that a module takes.

A column is one value for each row, or one sequence of values for each row. Raw columns (of a click model) come as the
user has them; others in the types that the module was trained on.
"""

from __future__ import annotations

import decimal
import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.data.feed.batch import Column, Ragged, Sparse
from hvdspark.data.readers.protocol import pack_entries
from hvdspark.embedding.arrays import Int64Array, objects_of
from hvdspark.embedding.ids.categories import category_ids
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec

Values = NDArray[Any] | Sequence[Any]

# Of a column that holds bytes in each row, such as the content of a file: a module gets them as Ragged of uint8.
BYTES = "uint8"


class Entries(NamedTuple):
    """A vector by what of it is not 0, with the names that Spark ML's SparseVector has.

    Attributes:
        size: its length.
        indices: where the values belong; None where all are there.
        values: 1-d; None where there is no vector.
    """

    size: int | None
    indices: NDArray[np.int32] | None
    values: NDArray[Any] | None


# The smallest double that becomes infinite as a float32.
BEYOND_FLOAT32 = 2.0**128 - 2.0**103
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating, decimal.Decimal, type(None))


@dataclass(frozen=True)
class Inputs:
    """What a module takes, and what it is made of.

    Attributes:
        features: columns in the order of the module's arguments.
        types: Spark's types of the columns in training, by name; empty where the model was saved without.
        numbers: those of `features` that come as raw numbers.
        categories: those of `features` that come as raw categories.
        id_bits: of the ids that the categories become.
    """

    features: tuple[ColumnSpec, ...]
    types: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    id_bits: int = 0

    def tensors(self, columns: Mapping[str, Values], *, keep: bool = False) -> dict[str, Column]:
        """The module's arguments by name, of rows that come as `score` describes them.

        Args:
            keep: whether a missing number is NaN to the module, and a missing category one of its own; else both raise.

        Raises:
            DataError: a column is missing or longer than another one, a value is of another kind than in training, or
                null that is not kept.
        """
        if missing := [column.name for column in self.features if column.name not in columns]:
            raise DataError("a feature column is missing", value=missing, hint=f"given are {sorted(columns)}")
        _check_rows({column.name: columns[column.name] for column in self.features})
        return {column.name: self._tensor(column, columns[column.name], keep) for column in self.features}

    def _tensor(self, column: ColumnSpec, values: Values, keep: bool) -> Column:
        if column.name in self.numbers:
            return to_tensor(column, numbers(values, column.name), keep)
        if column.name not in self.categories:
            return to_tensor(column, values, keep)
        trained = self.types.get(column.name, "")
        if column.layout == "scalar":
            return torch.from_numpy(self._ids(column, values, trained, keep))
        if not keep and any(row is None for row in values):
            raise _invalid(column, "null", keep, raw=True)
        flat, offsets = flattened(column, [() if row is None else row for row in values], keep)
        return Ragged(torch.from_numpy(self._ids(column, flat, trained, keep)), torch.from_numpy(offsets))

    def _ids(self, column: ColumnSpec, values: Values, trained: str, keep: bool) -> Int64Array:
        try:
            ids, null = category_ids(values, self.id_bits, trained)
        except DataError as error:
            raise DataError(f"feature column {column.name!r}: {error}") from error
        if null.any() and not keep:
            raise _invalid(column, "null", keep, raw=True)
        return ids


def _check_rows(columns: Mapping[str, Values]) -> None:
    """DataError where columns have different numbers of rows: torch would repeat a row that is alone."""
    first, expected = "", 0
    for name, values in columns.items():
        unlike = isinstance(values, str | bytes | Set | Mapping)
        if unlike or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
            raise DataError("a column is one value for each row", value=type(values).__name__, where=f"column {name!r}")
        if first and len(values) != expected:
            raise DataError(
                "columns have different numbers of rows", value=f"{expected} in {first!r}, {len(values)} in {name!r}"
            )
        first, expected = name, len(values)


def numbers(values: Values, name: str = "") -> NDArray[np.float64]:
    """Raw numbers or booleans as float64 [n]; NaN where null, infinite or beyond the float32 range (3.4e38).

    Args:
        name: of the column, for the error.

    Raises:
        DataError: something is no number.
    """
    column = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if column.dtype.kind == "O":
        if column.ndim != 1 or not all(isinstance(value, _NUMBERS) for value in column):
            raise _not_a_number(name)
        column = np.array([np.nan if value is None else float(value) for value in column], dtype=np.float64)
    if column.ndim != 1 or column.dtype.kind not in "iufb":
        raise _not_a_number(name)
    found = column.astype(np.float64)
    found[np.abs(found) >= BEYOND_FLOAT32] = np.nan
    return found


def _not_a_number(name: str) -> DataError:
    return DataError("a continuous column must hold one number in each row", where=f"column {name!r}")


def to_tensor(column: ColumnSpec, values: Values, keep: bool = False) -> Column:
    """A column as the module takes it; the same dtypes and shapes as the training loader's.

    Args:
        values: numbers, or one 1-d array for each row; of a sparse column also one vector with `size`, `indices` and
            `values`, as Spark ML's have them; of a column of bytes, one `bytes`.
        keep: whether null and NaN of float columns become NaN; else they raise.

    Raises:
        DataError: null or NaN that cannot be kept, or an array of another length than all were in training.
    """
    if column.dtype == BYTES:
        return _of_bytes(column, values, keep)
    if column.layout == "scalar":
        return _from_numpy(_checked(column, _scalars(column, values), keep))  # [rows]
    arrays = values if isinstance(values, list) else list(values)
    if column.layout == "sparse":
        return _sparse(column, arrays, keep)
    flat, offsets = flattened(column, arrays, keep)
    checked = _checked(column, flat, keep)
    if column.layout == "ragged":
        return Ragged(_from_numpy(checked), torch.from_numpy(offsets))
    lengths = np.diff(offsets)
    if (lengths != column.width).any():
        raise _other_length(column, int(lengths[lengths != column.width][0]))
    return _from_numpy(checked).reshape(len(arrays), column.width or 0)  # [rows, width]


def _sparse(column: ColumnSpec, rows: Sequence[Any], keep: bool) -> Sparse:
    """Vectors, each a 1-d array of all values, or with `size`, `indices` and `values` of what is not 0."""
    entries = [row if isinstance(row, Entries) else _entries(row) for row in rows]
    flat, offsets = flattened(column, [values for _, _, values in entries], keep)
    checked = _checked(column, flat, keep)
    width = column.width or 0
    if wrong := [size for size, _, _ in entries if size != width]:
        raise _other_length(column, wrong[0])
    positions = [np.arange(width) if where is None else where for _, where, _ in entries]
    packed = pack_entries(np.concatenate(positions) if positions else np.empty(0, np.int64), checked)
    return Sparse(Ragged(torch.from_numpy(packed), torch.from_numpy(offsets)), width)


def _entries(row: Any) -> Entries:
    """Of an array of all values, or one of Spark ML's vectors."""
    if hasattr(row, "indices"):
        return Entries(int(row.size), row.indices, row.values)
    values = row.toArray() if hasattr(row, "toArray") else row
    return Entries(len(values) if hasattr(values, "__len__") else None, None, values)


def _other_length(column: ColumnSpec, length: int | None) -> DataError:
    return DataError(
        f"the model was trained with arrays of length {column.width}",
        value=length,
        where=column.name,
        hint="every row must have that length",
    )


def _of_bytes(column: ColumnSpec, rows: Values, keep: bool) -> Ragged:
    """The bytes of all rows one after the other: uint8."""
    if strangers := sorted({type(row).__name__ for row in rows} - {"bytes", "bytearray"}):
        if "NoneType" in strangers:
            raise _invalid(column, "null", keep)
        raise DataError("not bytes", value=strangers, where=f"feature column {column.name!r}")
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    values = np.frombuffer(b"".join(rows), dtype=np.uint8)
    return Ragged(_from_numpy(values), torch.from_numpy(offsets))


def _scalars(column: ColumnSpec, values: Values) -> NDArray[Any]:
    """One number for each row. DataError where rows have several."""
    try:
        found = np.asarray(values)
    except ValueError:  # lists of different lengths
        found = np.empty((0, 0))
    if found.ndim != 1:
        raise DataError(
            "the model was trained with one number in each row",
            value=type(values[0]).__name__,
            where=f"feature column {column.name!r}",
        )
    return found


def flattened(column: ColumnSpec, rows: Sequence[Any], keep: bool) -> tuple[NDArray[Any], Int64Array]:
    """The elements of all rows one after the other, and where each row begins: int64 [rows + 1].

    Raises:
        DataError: a row is null, or no list of values.
    """
    try:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    except TypeError:  # None has no length
        if any(row is None for row in rows):
            raise _invalid(column, "null", keep) from None
        raise _not_a_list(column, next(row for row in rows if not hasattr(row, "__len__"))) from None
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    # An empty array may be of any type.
    kept = rows if lengths.all() else list(itertools.compress(rows, lengths.tolist()))
    if not len(kept):
        return np.empty(0, column.dtype), offsets
    if all(isinstance(row, np.ndarray) and row.ndim == 1 for row in kept):
        return np.concatenate(kept), offsets
    if texts := [row for row in kept if isinstance(row, str | bytes)]:  # not a list of its letters
        raise _not_a_list(column, texts[0])
    return objects_of([value for row in kept for value in row]), offsets


def _checked(column: ColumnSpec, values: NDArray[Any], keep: bool) -> NDArray[Any]:
    """All values of a column in its dtype; null and NaN are NaN if they are kept, and raise DataError if not."""
    if values.dtype.kind == "O":
        values = _of_objects(column, values, keep)
    if values.dtype.kind not in "iufb":
        raise DataError("not numbers", value=str(values.dtype), where=f"feature column {column.name!r}")
    if column.dtype == "int64":
        if values.dtype.kind == "f" and len(values):
            if not np.isnan(values).any():
                raise DataError("not integers", value=str(values.dtype), where=f"feature column {column.name!r}")
            raise _invalid(column, "null", keep)  # Arrow makes integers floats where there is a null
    elif not keep and np.isnan(values.astype(column.dtype, copy=False)).any():
        raise _invalid(column, "null or NaN", keep)
    return values.astype(column.dtype, copy=False)


def _of_objects(column: ColumnSpec, values: NDArray[np.object_], keep: bool) -> NDArray[Any]:
    """Python's numbers as numpy's: integers of 64 bits, or doubles with NaN for None."""
    whole = column.dtype == "int64"
    if whole and any(value is None for value in values):
        raise _invalid(column, "null", keep)
    if not whole:
        return floats_of(column, values)
    _check_kinds(column, values, (bool, int, np.bool_, np.integer), "integers")
    return values.astype(np.int64)


def floats_of(column: ColumnSpec, values: NDArray[np.object_]) -> NDArray[np.float64]:
    """Python's numbers as doubles, NaN for None. DataError where one is no number."""
    _check_kinds(column, values, _NUMBERS, "numbers")
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _check_kinds(column: ColumnSpec, values: NDArray[np.object_], known: tuple[type, ...], what: str) -> None:
    if strangers := {type(value).__name__ for value in values if not isinstance(value, known)}:
        raise DataError(f"not {what}", value=sorted(strangers), where=f"feature column {column.name!r}")


def _not_a_list(column: ColumnSpec, row: Any) -> DataError:
    return DataError(
        "the model was trained with a list of values in each row",
        value=type(row).__name__,
        where=f"feature column {column.name!r}",
    )


def _invalid(column: ColumnSpec, what: str, keep: bool, *, raw: bool = False) -> DataError:
    """The error for a null or NaN that is not kept; `raw`: of a category, which could be."""
    hint = "fill it, or set handleInvalid to 'skip' to drop these rows"
    kept = "or to 'keep' (TrainedModel.predict: keep=True)"
    if keep:
        hint += "; 'keep' is for numbers that are not integers, as NaN"
    elif raw:
        hint += f" {kept}, which makes null a category of its own"
    elif column.dtype not in ("int64", BYTES):
        hint += f" {kept} to go on with NaN (CTRClassifier: with the mean)"
    return DataError(f"{what} in feature column {column.name!r}", hint=hint)


def _from_numpy(array: NDArray[Any]) -> Tensor:
    # Arrow hands out read-only memory, which torch would warn about; modules may write into their inputs.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
