"""Vectors of which few values are not 0, from files to the tensors that a module takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hvdspark.artifact.forward import inputs_of
from hvdspark.data.dataset.schema import POSITIONS
from hvdspark.data.feed.batch import Batch, Layout, Ragged, Sparse, rows_of
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import plan_epoch
from hvdspark.data.readers.protocol import pack_entries
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups
from hvdspark.store import Store
from hvdspark.train.labels import tensor_column

WIDTH, ROWS = 300_000, 50
SPEC = ColumnSpec("v.x", "float32", "sparse", WIDTH)


@pytest.fixture(scope="module")
def vectors() -> list[dict[int, float]]:
    """By position; one row has nothing but a zero, one all of its values."""
    random = np.random.default_rng(0)
    some = [dict(zip(random.integers(0, WIDTH, 4).tolist(), random.random(4).tolist(), strict=True)) for _ in range(48)]
    return [*some, {0: 0.0}, dict(enumerate(random.random(WIDTH).tolist()))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, vectors: list[dict[int, float]]) -> tuple[Store, DatasetSpec]:
    folder = tmp_path_factory.mktemp("store")
    positions = [sorted(vector) if len(vector) < WIDTH else None for vector in vectors]
    values = [[vector[position] for position in sorted(vector)] for vector in vectors]
    table = pa.table(
        {
            "v.x": pa.array(values, pa.list_(pa.float32())),
            f"{POSITIONS}v.x": pa.array(positions, pa.list_(pa.int32())),
            "n": pa.array(range(ROWS), pa.int64()),
        }
    )
    (folder / "d").mkdir()
    pq.write_table(table, folder / "d" / "file.parquet", row_group_size=30)
    groups = RowGroups.of([RowGroup("file.parquet", 0, 30), RowGroup("file.parquet", 1, 20)])
    return Store(folder.as_uri()), DatasetSpec("d", (SPEC, ColumnSpec("n", "int64", "scalar")), groups)


def dense(vector: dict[int, float]) -> torch.Tensor:
    row = torch.zeros(WIDTH)
    row[list(vector)] = torch.tensor(list(vector.values()), dtype=torch.float32)
    return row


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_batches_are_sparse_until_the_module_is_called(
    dataset: tuple[Store, DatasetSpec], vectors: list[dict[int, float]], shuffle: bool, size: int
) -> None:
    store, spec = dataset
    seen = []
    for rank in range(size):
        plan = plan_epoch(spec.train.rows, 8, size, rank, 1, epoch=0, shuffle=shuffle)
        with load_batches(
            store, spec, "train", plan, ["v.x", "n"], shuffle_rows=40, seed=1, epoch=0, shuffle=shuffle
        ) as batches:
            for batch in batches:
                column = batch.columns["v.x"]
                assert isinstance(column, Sparse)
                (tensor,) = inputs_of(batch.columns, ["v.x"], "cpu")
                assert isinstance(tensor, torch.Tensor)
                assert (tensor.shape, tensor.dtype) == ((batch.rows, WIDTH), torch.float32)
                numbers = tensor_column(batch, "n").tolist()
                for row, number in zip(tensor, numbers, strict=True):
                    assert torch.equal(row, dense(vectors[number]))
                seen += numbers
    assert sorted(seen) == list(range(ROWS))


def test_rows_batches_and_labels_of_sparse_columns() -> None:
    packed = pack_entries(np.array([3, 0, 1, 2]), np.array([0.5, -1.0, np.nan, 2.0], np.float32))
    column = Sparse(Ragged(torch.from_numpy(packed), torch.tensor([0, 1, 1, 4])), 4)
    nan = float("nan")
    whole = torch.tensor([[0, 0, 0, 0.5], [0, 0, 0, 0], [-1, nan, 2, 0]])
    torch.testing.assert_close(column.dense(), whole, equal_nan=True)
    for first, last in ((0, 3), (1, 3), (0, 2), (2, 2)):
        part = rows_of(column, first, last)
        assert isinstance(part, Sparse)
        torch.testing.assert_close(part.dense(), whole[first:last], equal_nan=True)
    layout = Layout.of([ColumnSpec("v", "float32", "sparse", 4)])
    batch = Batch.of_blocks(layout, [], {"v": column.entries}, 3)
    joined = Batch.joined(layout, [batch, batch])
    torch.testing.assert_close(tensor_column(joined, "v"), torch.cat([whole, whole]), equal_nan=True)
    torch.testing.assert_close(tensor_column(batch.to("cpu"), "v"), whole, equal_nan=True)
