"""What the footers say, and what the checks make of it. Files are written here with pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hvdspark.data.dataset import footers
from hvdspark.data.dataset.checks import check_array, check_column, check_sizes
from hvdspark.data.dataset.footers import ColumnEvidence, Evidence, count_where, read_footers
from hvdspark.data.dataset.schema import SourceColumn
from hvdspark.errors import DataError, StoreError
from hvdspark.specs import RowGroup, RowGroups, from_json, to_json
from hvdspark.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def write(store: Store, path: str, columns: dict[str, Any], group: int = 100) -> None:
    store.make_directory(path.rpartition("/")[0])
    pq.write_table(pa.table(columns), store.local_path(path), row_group_size=group)


def test_row_groups_and_evidence(store: Store) -> None:
    write(store, "d/data/b.parquet", {"x": [5, None, 7], "a": [[1, None], [], None]}, group=2)
    write(store, "d/data/a.parquet", {"x": [1, 2], "a": [[3], [4]]})
    write(store, "d/data/empty.parquet", {"x": pa.array([], pa.int64()), "a": pa.array([], pa.list_(pa.int64()))})
    store.write_text("d/data/_SUCCESS", "")
    evidence = read_footers(store, "d", ["data", "missing"])
    assert [(group.path, group.index, group.rows) for group in evidence.groups[0]] == [
        ("data/a.parquet", 0, 2),
        ("data/b.parquet", 0, 2),
        ("data/b.parquet", 1, 1),
    ]
    assert len(evidence.groups[1]) == 0
    assert evidence.rows == [5, 0]
    assert evidence.columns[0] == ColumnEvidence(nulls=1, minimum=1, maximum=7)
    assert evidence.columns[1] == ColumnEvidence(nulls=3, minimum=1, maximum=4), "null element, empty and null array"


def test_no_rows_no_evidence(store: Store) -> None:
    assert read_footers(store, "d", ["data"]) == Evidence([RowGroups.of()], [])


def test_a_damaged_file_is_named(store: Store) -> None:
    store.write_bytes("d/data/a.parquet", b"PAR1 or not")
    with pytest.raises(StoreError, match=r"d/data/a\.parquet"):
        read_footers(store, "d", ["data"])


def test_counting(store: Store) -> None:
    nan = float("nan")
    write(store, "d/a.parquet", {"x": [nan, 1.0, None], "a": [[nan, nan], None, [1.0, None]], "n": [0, 2, 0]})
    assert count_where(store, "d", ["a.parquet", "a.parquet"], "x", "nan") == 2
    assert count_where(store, "d", ["a.parquet"], "a", "nan") == 2
    assert count_where(store, "d", ["a.parquet"], "n", "zero") == 2


class Statistics:
    def __init__(self, **values: Any) -> None:
        self.has_null_count, self.null_count, self.has_min_max, self.min, self.max = True, 0, True, 0.0, 1.0
        self.__dict__.update(values)


class Chunk:
    """A column chunk's metadata, for what pyarrow does not write."""

    path_in_schema, num_values = "x", 10

    def __init__(self, statistics: Statistics | None) -> None:
        self.statistics = statistics


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        (Statistics(), ColumnEvidence(0, 0.0, 1.0)),
        (Statistics(null_count=10, has_min_max=False), ColumnEvidence(nulls=10)),
        (Statistics(max=float("nan")), ColumnEvidence(unordered=True)),  # as Spark writes NaN
        (Statistics(has_min_max=False), ColumnEvidence(unordered=True)),  # as others do
    ],
)
def test_evidence_of_nan(statistics: Statistics, expected: ColumnEvidence) -> None:
    found = ColumnEvidence()
    found.add(Chunk(statistics))
    assert found == expected


def test_a_file_without_statistics_is_not_trusted() -> None:
    for statistics in (None, Statistics(has_null_count=False)):
        with pytest.raises(DataError, match="without statistics"):
            ColumnEvidence().add(Chunk(statistics))


def column(role: str = "feature", dtype: str = "float32", array: bool = False, fixed: bool = False) -> SourceColumn:
    return SourceColumn("c", role, dtype, array, fixed)


def three(name: str, condition: str) -> int:
    return 3


GOOD = ColumnEvidence(0, 1, 2)


@pytest.mark.parametrize(
    ("role", "found", "keep", "says"),
    [
        ("feature", GOOD, False, None),
        ("feature", ColumnEvidence(unordered=True), True, None),
        ("feature", ColumnEvidence(0, -float("inf"), 1.0), False, None),
        ("feature", ColumnEvidence(2, 1, 2), False, "nulls in a feature column: 2"),
        ("feature", ColumnEvidence(unordered=True), False, "NaN in a feature column: 3"),
        ("label", ColumnEvidence(2, 1, 2), True, "handle_invalid is about features only"),
        ("label", ColumnEvidence(unordered=True), True, "NaN in a label column: 3"),
        ("weight", ColumnEvidence(0, -1.0, 2.0), False, "negative weights"),
        ("weight", ColumnEvidence(0, 0.0, 0.0), False, "all weights are 0"),
        ("weight", ColumnEvidence(0, 0.0, 1.0), False, None),
    ],
)
def test_scalar_columns(role: str, found: ColumnEvidence, keep: bool, says: str | None) -> None:
    if says is None:
        check_column(column(role), found, keep, three)
        return
    with pytest.raises(DataError, match=says) as refused:
        check_column(column(role), found, keep, three)
    assert "column 'c'" in str(refused.value)


@pytest.mark.parametrize(
    ("elements", "lengths", "fixed", "keep", "says"),
    [
        (GOOD, ColumnEvidence(0, 2, 2), True, False, None),
        (GOOD, ColumnEvidence(0, 0, 2), False, False, None),
        (ColumnEvidence(3, 1, 2), ColumnEvidence(0, 0, 2), False, False, None),  # three empty arrays
        (ColumnEvidence(5, 1, 2), ColumnEvidence(0, 0, 2), False, False, "null elements in an array column: 2"),
        (ColumnEvidence(5, 1, 2), ColumnEvidence(0, 1, 2), False, False, "null elements in an array column: 5"),
        (ColumnEvidence(1, 1, 2), ColumnEvidence(1, 2, 2), False, True, "null arrays in a feature column: 1"),
        (GOOD, ColumnEvidence(0, 2, 3), True, False, "vectors of different lengths: 2 to 3 elements"),
        (GOOD, ColumnEvidence(0, 0, 0), True, False, "vectors without elements"),
        (ColumnEvidence(unordered=True), ColumnEvidence(0, 2, 2), False, False, "NaN elements in an array column: 3"),
        (ColumnEvidence(unordered=True), ColumnEvidence(0, 2, 2), False, True, None),
    ],
)
def test_array_columns(
    elements: ColumnEvidence, lengths: ColumnEvidence, fixed: bool, keep: bool, says: str | None
) -> None:
    array = column(array=True, fixed=fixed)
    if says is None:
        check_array(array, elements, lengths, keep, three, "length")
        return
    with pytest.raises(DataError, match=says):
        check_array(array, elements, lengths, keep, three, "length")


def test_infinite_elements_are_no_labels() -> None:
    lengths, infinite = ColumnEvidence(0, 2, 2), ColumnEvidence(0, 1.0, float("inf"))
    with pytest.raises(DataError, match="infinite elements in a label column.*'c'"):
        check_array(column("label", array=True), infinite, lengths, False, three, "length")
    check_array(column("feature", array=True), infinite, lengths, False, three, "length")


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((10, 3, 0, 0), None),
        ((10, None, 5, 0), None),
        ((0, None, 0, 0), "the DataFrame is empty"),
        ((0, 7, 0, 0), "all 7 rows are validation rows"),
        ((0, None, 9, 0), "dropped all 9 rows"),
        ((10, 0, 0, 0), "no rows to validate on"),
        ((10, 3, 0, 2), "nulls in the validation column: 2"),
    ],
)
def test_sizes(sizes: tuple[Any, ...], says: str | None) -> None:
    if says is None:
        check_sizes(*sizes)
        return
    with pytest.raises(DataError, match=says):
        check_sizes(*sizes)


def test_row_group_of_a_spec_is_what_was_written(store: Store) -> None:
    write(store, "d/data/a.parquet", {"x": [1, 2, 3]}, group=2)
    evidence = read_footers(store, "d", ["data"])
    assert list(evidence.groups[0]) == [RowGroup("data/a.parquet", 0, 2), RowGroup("data/a.parquet", 1, 1)]
    assert evidence.row_bytes == 8


def test_a_row_counts_with_what_it_takes_in_memory(store: Store) -> None:
    rows = 10_000
    columns = {"x": np.zeros(rows, np.float32), "ids": [[7] * 30] * rows, "length": np.full(rows, 30, np.int32)}
    write(store, "d/data/a.parquet", columns, group=rows)
    path = store.local_path("d/data/a.parquet")
    assert path is not None
    assert path.stat().st_size < rows, "next to nothing in the file"
    assert read_footers(store, "d", ["data"]).row_bytes == 4 + 30 * 8 + 4


def test_evidence_of_parts_is_evidence_of_the_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "d/a/0.parquet", {"x": pa.array([None, None], pa.int64()), "y": [float("nan"), 1.0]})
    write(store, "d/a/1.parquet", {"x": pa.array([], pa.int64()), "y": pa.array([], pa.float64())})
    write(store, "d/b/0.parquet", {"x": [3, 9], "y": [2.5, 0.5]}, group=1)
    write(store, "d/b/1.parquet", {"x": [-1], "y": [float("inf")]})
    expected = read_footers(store, "d", ["a", "b"])
    assert expected.columns[0] == ColumnEvidence(nulls=2, minimum=-1, maximum=9)
    monkeypatch.setattr(footers, "_BLOCK_FILES", 1)
    assert read_footers(store, "d", ["a", "b"]) == expected
    assert from_json(Evidence, to_json(expected)) == expected
