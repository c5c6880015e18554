"""One whole way: DataFrame -> Parquet -> the batches of three ranks, one rank after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from hvdspark.data.dataset.materialize import materialize
from hvdspark.data.dataset.selection import select
from hvdspark.data.feed.loader import Ragged, load_batches
from hvdspark.data.feed.plan import plan_epoch
from hvdspark.specs import ColumnSpec, DatasetSpec
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

BIG = 1 << 62
ROWS = 7001


@pytest.fixture
def uneven(spark: SparkSession) -> DataFrame:
    """ROWS rows in partitions of very different sizes, some of them empty. Every column follows from the id."""
    sizes = [0, 1, 5000, 0, 700, 300, 1000, 0]
    assert sum(sizes) == ROWS
    bounds = [(sum(sizes[:part]), size) for part, size in enumerate(sizes)]
    rows = spark.sparkContext.parallelize(bounds, len(bounds)).flatMap(lambda bound: range(bound[0], sum(bound)))
    return (
        rows.map(lambda row: (row + BIG,))
        .toDF("id long")
        .selectExpr(
            "id",
            "id % 1000 / 8D AS x",
            "array(id % 7, id % 11) AS pair",
            "slice(array(id, id + 1, id + 2), 1, cast(id % 4 AS int)) AS history",
            "id % 3 = 0 AS label",
            "id % 5 AS weight",
            "id % 10 = 0 AS holdout",
        )
    )


def read(
    store: Store, dataset: DatasetSpec, split: str, world: int, epoch: int, shuffle: bool = True
) -> list[torch.Tensor]:
    """The ids of each rank, after checking every other column against them."""
    groups = dataset.train if split == "train" else dataset.validation
    ids = []
    for rank in range(world):
        plan = plan_epoch(groups.rows, 512, world, rank, 3, epoch, shuffle)
        names = [column.name for column in dataset.columns]
        with load_batches(
            store, dataset, split, plan, names, shuffle_rows=2000, seed=3, epoch=epoch, shuffle=shuffle
        ) as batches:
            seen = []
            for batch, rows in zip(batches, plan.batch_rows, strict=True):
                row = batch.columns["id"]
                assert isinstance(row, torch.Tensor)
                assert (batch.rows, row.shape, row.dtype) == (rows, (rows,), torch.int64)
                assert torch.equal(batch.columns["x"], (row % 1000 / 8).float())
                assert torch.equal(batch.columns["pair"], torch.stack([row % 7, row % 11], 1))
                assert torch.equal(batch.columns["label"], (row % 3 == 0).float())
                assert torch.equal(batch.columns["weight"], (row % 5).float())
                history = batch.columns["history"]
                assert isinstance(history, Ragged)
                lengths = (row % 4).clamp(max=3)
                assert torch.equal(history.offsets.diff(), lengths)
                start = torch.repeat_interleave(history.offsets[:-1], lengths)
                steps = torch.arange(len(history.values)) - start
                assert torch.equal(history.values, torch.repeat_interleave(row, lengths) + steps)
                seen.append(row)
            ids.append(torch.cat(seen))
    return ids


def test_every_row_exactly_once_over_three_ranks(uneven: DataFrame, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "my store"))
    selection = select(
        uneven.schema,
        ["id", "x", "pair", "history"],
        ["label"],
        "weight",
        validation="holdout",
        seed=1,
        handle_invalid="error",
    )
    with materialize(uneven, selection, store, num_workers=3) as dataset:
        assert dataset.columns == (
            ColumnSpec("id", "int64", "scalar"),
            ColumnSpec("x", "float32", "scalar"),
            ColumnSpec("pair", "int64", "fixed", 2),
            ColumnSpec("history", "int64", "ragged"),
            ColumnSpec("label", "float32", "scalar"),
            ColumnSpec("weight", "float32", "scalar"),
        )
        every = torch.arange(ROWS) + BIG
        holdout = every % 10 == 0
        epochs = []
        for epoch in range(2):
            ids = read(store, dataset, "train", 3, epoch)
            assert torch.equal(torch.cat(ids).sort().values, every[~holdout])
            epochs.append(ids)
        assert not torch.equal(epochs[0][0], epochs[1][0])
        assert torch.equal(
            torch.cat(read(store, dataset, "train", 3, 1)), torch.cat(epochs[1])
        ), "same seed, same order"
        (alone,) = read(store, dataset, "validation", 1, 0, shuffle=False)
        assert torch.equal(alone, every[holdout])
    assert store.list("datasets") == [], "what a Python function makes may be other rows next time: it is not kept"


def test_petastorm_itself_reads_the_dataset(uneven: DataFrame, tmp_path: Path) -> None:
    from petastorm import make_batch_reader

    store = Store(str(tmp_path))
    selection = select(uneven.schema, ["id", "x"], ["label"], None, validation=None, seed=1, handle_invalid="error")
    with (
        materialize(uneven, selection, store, num_workers=2) as dataset,
        make_batch_reader(store.petastorm_uri(f"{dataset.path}/data")) as reader,
    ):
        ids = torch.cat([torch.from_numpy(batch.id.copy()) for batch in reader])
    assert torch.equal(ids.sort().values, torch.arange(ROWS) + BIG)
