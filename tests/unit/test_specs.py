from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.ranges import Range
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups, TrainSpec, World, from_json, to_json

DATASET = DatasetSpec(
    path="datasets/abc",
    columns=(ColumnSpec("x", "float32", "fixed", 3), ColumnSpec("y", "int64", "scalar")),
    train=RowGroups.of([RowGroup("part-0.parquet", 0, 10), RowGroup("part-0.parquet", 1, 7)]),
    validation=RowGroups.of([RowGroup("part-1.parquet", 0, 5)]),
)
TRAIN = TrainSpec(
    run_id="r1",
    store_uri="file:///tmp/s",
    dataset=DATASET,
    features=("x",),
    labels=("y",),
    gradient_clip_norm=1.5,
    schedule="step",
    schedule_args={"every": 2.0},
)


@pytest.mark.parametrize("spec", [World(0, 2, 0, 1, 0, 2, "h"), DATASET, TRAIN, DATASET.columns[1], DATASET.train[0]])
def test_round_trip(spec: object) -> None:
    assert from_json(type(spec), to_json(spec)) == spec


names = st.text(max_size=20)
groups = st.lists(st.builds(RowGroup, names, st.integers(0, 9), st.integers(0, 2**60)), max_size=4).map(RowGroups.of)
columns = st.builds(
    ColumnSpec, names, st.sampled_from(["float32", "int64"]), st.just("fixed"), st.none() | st.integers(1, 9)
)


@given(st.builds(DatasetSpec, names, st.tuples(columns), groups, groups))
def test_round_trip_of_any_dataset(spec: DatasetSpec) -> None:
    assert from_json(DatasetSpec, to_json(spec)) == spec


def test_rows_are_summed_over_row_groups() -> None:
    assert (DATASET.train_rows, DATASET.validation_rows) == (17, 5)
    assert dataclasses.replace(DATASET, train=RowGroups.of(), validation=RowGroups.of()).train_rows == 0


def test_equal_specs_have_equal_text() -> None:
    assert to_json(TRAIN) == to_json(dataclasses.replace(TRAIN))
    assert list(json.loads(to_json(TRAIN))) == sorted(json.loads(to_json(TRAIN)))


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRAIN.epochs = 2  # type: ignore[misc]


@pytest.mark.parametrize("text", ['{"rank": 0}', '{"rank": 0, "unknown": 1}'])
def test_text_of_another_class_is_refused(text: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        from_json(World, text)


def test_limits_belong_to_a_range_unless_it_is_open() -> None:
    assert [number in Range(0, 1) for number in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [number in Range(0, open=True) for number in (0, 1e-9, 1e300)] == [False, True, True]
    assert [number in Range(0) for number in (math.inf, -math.inf, math.nan)] == [False, False, False]


def test_row_groups_cannot_be_changed() -> None:
    groups = RowGroups.of([RowGroup("a.parquet", 0, 3)])
    for values in (groups.starts, groups.indexes, groups.rows):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
