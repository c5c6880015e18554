"""What training rows are like, read from the written files in float64: share of positives, means and deviations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.data.dataset.cache import kept_with
from hvdspark.data.dataset.footers import read_footer
from hvdspark.data.readers.slices import read_slices, values_of
from hvdspark.session import session_of
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Read on the driver, in less time than a job takes to start.
_FEW_ROWS = 200_000
# Where nobody says how many task slots there are.
_TASKS = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of some rows: for each input the count, mean, sum of squares about the mean, minimum and maximum, without NaN.

    Attributes:
        inputs: float64 [5, inputs], in that order.
        label: sum of the weighted labels and sum of the weights.
    """

    inputs: Floats
    label: tuple[float, float]

    @property
    def label_mean(self) -> float:
        """Weighted mean of the label; NaN where all weights are 0."""
        total, weight = self.label
        return total / weight if weight else float("nan")

    @property
    def deviation(self) -> Floats:
        """Of each input; infinity where all its values are one value, or there is none."""
        count, _, squares, low, high = self.inputs
        with np.errstate(invalid="ignore"):
            deviation = np.sqrt(squares / np.maximum(count, 1.0))
            spread = np.where(count > 0, high - low, 0.0)
        # Squares of numbers below 1e-160 are 0, and their spread is not.
        deviation = np.where((deviation == 0.0) & (spread > 0.0), spread / 2.0, deviation)
        return np.where(spread > 0.0, deviation, np.inf)


def training_moments(
    spark: SparkSession, store: Store, data: DatasetSpec, numbers: Sequence[str], label: str, weight: str | None
) -> Moments:
    """Moments over the training rows of a dataset, of the `inputs` that stand for the numbers.

    One job over these columns, or none where the rows are few; once as long as the dataset lives. Not while the rows
    are written: Spark's sums in float64 depend on how its tasks are cut, and on their order.

    Args:
        numbers: scalar columns of floats.
        label: scalar column.
        weight: scalar column, or None.
    """
    specs = {column.name: column for column in data.columns}
    weights = None if weight is None else specs[weight]
    of = functools.partial(_of_slices, store.uri, data.path, [specs[name] for name in numbers], specs[label], weights)
    groups = list(data.train)

    def compute() -> Moments:
        # Merged in the order of the rows, however many tasks there are: the same sums on any number of slots.
        parts = of(groups) if data.train_rows <= _FEW_ROWS else _in_tasks(spark, groups, of)
        nothing = moments(np.empty((0, 2 * len(numbers))), np.empty(0), None)
        return functools.reduce(merged, parts, nothing)

    return kept_with(store, data.path, ("moments", tuple(numbers), label, weight), compute)


def _in_tasks(
    spark: SparkSession, groups: Sequence[RowGroup], of: Callable[[Iterable[RowGroup]], Iterator[Moments]]
) -> Iterator[Moments]:
    """`of(groups)`, computed by tasks of Spark."""

    def read(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
        for position, part in enumerate(of(groups[number] for number in numbers)):
            values = [*part.inputs.ravel().tolist(), *part.label]
            yield pa.RecordBatch.from_pydict({"first": [numbers[0]], "position": [position], "moments": [values]})

    tasks = min(len(groups), 4 * session_of(spark).parallelism() or _TASKS)
    read_groups = spark.range(0, len(groups), 1, tasks).mapInArrow(
        read, "first bigint, position bigint, moments array<double>"
    )
    for _, _, values in sorted(read_groups.collect()):
        yield Moments(np.array(values[:-2]).reshape(5, -1), (values[-2], values[-1]))


def moments(values: Floats, label: Floats, weight: Floats | None) -> Moments:
    """Moments of some rows. Values float64 [rows, inputs], label and weight [rows]."""
    known = ~np.isnan(values)
    count = known.sum(axis=0).astype(np.float64)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1.0)
    low = np.where(known, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(known, values, -np.inf).max(axis=0, initial=-np.inf)
    # The mean of equal values is one of them: sums round.
    mean = np.where(count > 0, np.clip(mean, low, high), 0.0)
    squares = np.square(np.where(known, values - mean, 0.0)).sum(axis=0)
    weights = np.ones(len(label)) if weight is None else weight
    return Moments(np.stack([count, mean, squares, low, high]), (float(label @ weights), float(weights.sum())))


def merged(one: Moments, other: Moments) -> Moments:
    """Moments of the rows of both (Chan, Golub, LeVeque 1979)."""
    (n, mean, squares, low, high), (m, mean_2, squares_2, low_2, high_2) = one.inputs, other.inputs
    total = np.maximum(n + m, 1.0)
    difference = mean_2 - mean
    inputs = np.stack(
        [
            n + m,
            np.where(n > 0, mean + difference * (m / total), mean_2),
            squares + squares_2 + np.where((n > 0) & (m > 0), difference**2 * (n * m / total), 0.0),
            np.minimum(low, low_2),
            np.maximum(high, high_2),
        ]
    )
    return Moments(inputs, (one.label[0] + other.label[0], one.label[1] + other.label[1]))


def inputs(numbers: Floats) -> Floats:
    """[rows, N] -> [rows, 2 N]: each number, and then sign(x) log(1 + |x|) of each.

    What "linear_and_log" of `hvdspark.models.numbers` makes of them, in float64, without torch: a test holds the two
    together.
    """
    return np.concatenate([numbers, np.sign(numbers) * np.log1p(np.abs(numbers))], axis=1)


def _of_slices(
    store_uri: str,
    path: str,
    numbers: Sequence[ColumnSpec],
    label: ColumnSpec,
    weight: ColumnSpec | None,
    groups: Iterable[RowGroup],
) -> Iterator[Moments]:
    """Of each slice of the rows of some row groups, in order."""
    store = Store(store_uri)
    footer_of = functools.lru_cache(1)(lambda file: read_footer(store, file))  # row groups of a file stand together
    columns = list(
        {column.name: column for column in (*numbers, label, *([] if weight is None else [weight]))}.values()
    )
    for group in groups:
        file = f"{path}/{group.path}"
        for batch in read_slices(store, file, group, footer_of(file), [column.name for column in columns]):
            values = {
                column.name: values_of(batch.column(column.name), column).astype(np.float64) for column in columns
            }
            raw = [values[column.name] for column in numbers]
            of_rows = inputs(np.stack(raw, axis=1) if raw else np.empty((batch.num_rows, 0)))
            yield moments(of_rows, values[label.name], None if weight is None else values[weight.name])
