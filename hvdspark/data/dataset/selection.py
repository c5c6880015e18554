"""Which columns and rows of a DataFrame become a dataset, checked once, before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.data.dataset.schema import SourceColumn, check_columns
from hvdspark.errors import ConfigurationError

HANDLE_INVALID = ("error", "skip", "keep")


@dataclass(frozen=True)
class Selection:
    """Made by `select`, which checks it.

    Attributes:
        columns: the wanted columns: features, then labels, then the weight, each once.
        validation: None; the name of a boolean column (true = validation); or the share of rows in (0, 1). Each row is
            drawn by itself, once, while it is written: equal rows are on both sides. The draw depends on the seed and
            on the row's place, so the same plan over the same files gives the same rows again.
        group: column whose equal values go to the same side together; the share is then one of its values. Null is a
            value, too.
        seed: for the share of validation rows.
        handle_invalid: what to do about null and NaN in features. "error": DataError; "skip": drop the row; "keep":
            null becomes NaN (where a column of numbers can hold it, else DataError). In labels and weights they are
            always an error.
    """

    columns: tuple[SourceColumn, ...]
    validation: str | float | None = None
    group: str | None = None
    seed: int = 0
    handle_invalid: str = "error"


def select(
    schema: Any,
    features: Sequence[str],
    labels: Sequence[str],
    weight: str | None,
    *,
    validation: str | float | None,
    group: str | None = None,
    seed: int,
    handle_invalid: str,
    fixed: Collection[str] = (),
    wide: Collection[str] = (),
    sparse: Collection[str] = (),
) -> Selection:
    """Check what is wanted of a DataFrame against its schema.

    Args:
        schema: a Spark StructType, or pairs of a column name and a type name; the columns are numbers, booleans or
            arrays of them.
        features, labels, weight: the wanted columns; see `schema` for types.
        validation, group, seed, handle_invalid: see `Selection`.
        fixed: array columns whose arrays must all have one length.
        wide: columns of numbers that are written as float64 instead of float32.
        sparse: of `fixed` those whose rows may hold a part of their values; see `schema.SourceColumn`.

    Raises:
        ConfigurationError, SchemaError: it cannot be done.
    """
    if handle_invalid not in HANDLE_INVALID:
        raise ConfigurationError(
            f"unknown value, must be one of {', '.join(HANDLE_INVALID)}", value=handle_invalid, where="handle_invalid"
        )
    if isinstance(validation, int | float) and not 0.0 < validation < 1.0:
        raise ConfigurationError("the share of validation rows must be between 0 and 1", value=validation)
    if group is not None and not isinstance(validation, float):
        raise ConfigurationError(
            "a group column needs a share of rows to draw",
            value=group,
            where="group_column",
            hint="set validation_share; with validation_column the column says itself where a row goes",
        )
    indicator = validation if isinstance(validation, str) else None
    columns = check_columns(schema, features, labels, weight, indicator, fixed, group, wide, sparse)
    return Selection(columns, validation, group, seed, handle_invalid)
