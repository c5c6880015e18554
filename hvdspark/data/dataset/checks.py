"""Whether the rows that were written can be trained on: checks the evidence of `footers`, raises DataError if not."""

from __future__ import annotations

from collections.abc import Callable

from hvdspark.data.dataset.footers import ColumnEvidence
from hvdspark.data.dataset.schema import SourceColumn
from hvdspark.errors import DataError

# (column name, condition) -> how many; reads the column, so it is only called when something is wrong.
Count = Callable[[str, str], int]


def check_sizes(train: int, validation: int | None, dropped: int, undefined: int) -> None:
    """Check that there is something to train on.

    Args:
        train: rows to train on.
        validation: rows to validate on; None if no split was asked for.
        dropped: rows that handle_invalid="skip" removed.
        undefined: rows with null in the validation column.

    Raises:
        DataError: a split is empty, or some rows belong to none.
    """
    if undefined:
        raise DataError(
            "nulls in the validation column",
            value=undefined,
            where="validation_column",
            hint="fill them: true marks validation rows, false training rows",
        )
    if train == 0:
        hint = "the DataFrame is empty; look at its filters and joins"
        if dropped:
            hint = f"handle_invalid='skip' dropped all {dropped} rows; find the column that is always null"
        elif validation:
            hint = f"all {validation} rows are validation rows"
        raise DataError("no rows to train on", hint=hint)
    if validation == 0:
        raise DataError(
            "no rows to validate on",
            where="validation",
            hint=f"all {train} rows are training rows; mark some, raise the fraction, or ask for no validation",
        )


def check_column(column: SourceColumn, found: ColumnEvidence, keep: bool, count: Count) -> None:
    """Check a scalar column.

    Raises:
        DataError: null or NaN where there must be none, or a weight that is no weight.
    """
    where = f"column {column.name!r}"
    if found.nulls:
        raise DataError(f"nulls in a {column.role} column", value=found.nulls, where=where, hint=_hint(column, keep))
    if column.role == "feature":
        if found.unordered and not keep and (nans := count(column.name, "nan")):
            raise DataError("NaN in a feature column", value=nans, where=where, hint=_hint(column, keep))
        return
    if not found.finite:
        nans = count(column.name, "nan")
        what = f"NaN in a {column.role} column" if nans else f"infinite values in a {column.role} column"
        raise DataError(what, value=nans or None, where=where, hint="filter or fill these rows first")
    if column.role == "weight":
        if found.minimum is not None and found.minimum < 0:
            raise DataError("negative weights", where=where, hint="a weight is 0 or more")
        if found.maximum == 0:
            raise DataError("all weights are 0", where=where, hint="no row would be trained on")


def check_array(
    column: SourceColumn, elements: ColumnEvidence, lengths: ColumnEvidence, keep: bool, count: Count, length_name: str
) -> None:
    """Check an array column by its elements and its column of lengths.

    Raises:
        DataError: null arrays, null or NaN elements, infinite labels, or different lengths where one is required.
    """
    where = f"column {column.name!r}"
    if lengths.nulls:
        hint = "use handle_invalid='skip', or fill them with array()" if column.role == "feature" else None
        raise DataError(f"null arrays in a {column.role} column", value=lengths.nulls, where=where, hint=hint)
    if column.must_be_fixed and lengths.minimum != lengths.maximum:
        raise DataError(
            "vectors of different lengths",
            value=f"{lengths.minimum} to {lengths.maximum} elements",
            where=where,
            hint="all rows of a vector column need the same length; groupBy(size(vector_to_array(...))).count() shows "
            "which there are: pad or filter the others",
        )
    if column.must_be_fixed and lengths.maximum == 0:
        raise DataError("vectors without elements", where=where)
    # Parquet counts an empty array as a null, too.
    empty = count(length_name, "zero") if elements.nulls and lengths.minimum == 0 else 0
    if elements.nulls > empty:
        hint = _hint(column, keep)
        raise DataError("null elements in an array column", value=elements.nulls - empty, where=where, hint=hint)
    if elements.unordered and not (keep and column.role == "feature") and (nans := count(column.name, "nan")):
        raise DataError("NaN elements in an array column", value=nans, where=where, hint=_hint(column, keep))
    if column.role == "label" and not elements.unordered and not elements.finite:
        raise DataError("infinite elements in a label column", where=where, hint="filter or fill these rows first")


def _hint(column: SourceColumn, keep: bool) -> str:
    if column.role != "feature":
        return "filter or fill these rows first; handle_invalid is about features only"
    if column.dtype == "int64":
        prefix = "an integer has no NaN to stand for null: " if keep else ""
        return f"{prefix}use handle_invalid='skip', or fill them with an id of their own"
    return (
        "use handle_invalid='skip' to drop these rows or 'keep' to go on with NaN (CTRClassifier: with the mean), or "
        "fill them with an Imputer"
    )
