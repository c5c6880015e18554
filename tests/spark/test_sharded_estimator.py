"""Sharded embeddings in `TorchEstimator` and in `hvdspark.run`: real ranks, real kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.embedding import ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.estimators import TorchEstimator, TorchModel
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.toys import files_in, scores

pytestmark = pytest.mark.spark


class TwoTables(nn.Module):
    """An unbounded and a bounded sharded table beside one number."""

    def __init__(self, pages: int = 50, dim: int = 4) -> None:
        super().__init__()
        self.pages, self.dim = pages, dim
        optimizer = SparseOptimizer("adam", 0.05)
        self.tables = ShardedEmbeddingCollection(
            [
                TableConfig("users", dim, optimizer=optimizer),
                TableConfig("pages", dim, pages, optimizer=optimizer, placement="row"),
            ],
            {"user": "users", "page": "pages"},
            seed=4,
        )
        self.out = nn.Linear(2 * dim + 1, 1)

    def forward(self, number: Tensor, user: Tensor, page: Tensor) -> Tensor:
        vectors = self.tables({"user": user, "page": page})
        return self.out(torch.cat([number.unsqueeze(1), vectors["user"], vectors["page"]], dim=1)).squeeze(1)


def visits(spark: SparkSession, rows: int = 800) -> DataFrame:
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) / 1000.0 for k in range(3)]
    user, page = (draw[0] * 60).cast("bigint") * 10**15, (draw[1] * 50).cast("int")
    return spark.range(0, rows, 1, 3).select(
        "id",
        draw[2].alias("number"),
        user.alias("user"),
        page.alias("page"),
        ((user / 10**15) % 2 + page % 2 > 0).cast("int").alias("y"),
    )


def estimator(**changes: Any) -> TorchEstimator:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "model": TwoTables(),
        "loss": "bce_with_logits",
        "featureCols": ["number", "user", "page"],
        "labelCol": "y",
        "batchSize": 100,
        "epochs": 3,
        "learningRate": 0.02,
        "precision": "float32",
        "numWorkers": 2,
    }
    return TorchEstimator(**{**settings, **changes})


@pytest.mark.slow  # test_ctr.py scores, test_any_session.py saves and loads
def test_transform_is_the_module_also_when_saved_and_loaded(
    spark: SparkSession, store_uri: str, tmp_path: Path, nothing_left_behind: None
) -> None:
    data = visits(spark)
    model = estimator(storeUri=store_uri, epochs=8).fit(data)
    assert model.summary.history[-1]["train_loss"] < 0.5 * model.summary.history[0]["train_loss"]
    seen = scores(model.transform(data))
    frame = data.toPandas()
    columns = [torch.tensor(frame[name].to_numpy()) for name in ("number", "user", "page")]
    with torch.no_grad():
        expected = model.module()(columns[0].float(), *columns[1:])
    assert torch.allclose(torch.tensor([seen[id] for id in frame["id"]]).float(), expected, atol=1e-6)
    model.write().save(str(tmp_path / "saved"))
    loaded = TorchModel.load(str(tmp_path / "saved"))
    assert scores(loaded.transform(data)) == seen
    # Ids that training never met: zeros in the unbounded table, the initial row in the bounded one.
    assert len(scores(loaded.transform(data.withColumn("user", F.lit(123))))) == 800


class DieWhileSaving(Callback):
    """Rank 1 is killed in the middle of writing its rows of epoch 2, the first time it gets there."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def on_epoch_end(self, state: TrainState) -> None:
        if state.epoch != 2 or state.rank != 1 or os.path.exists(self.marker):
            return
        open_write = Store.open_write

        @contextmanager
        def dying(store: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
            with open_write(store, path, **options) as file:
                if "/rows/" not in path or "epoch-00002" not in path:  # the one before is still being written
                    yield file
                    return
                file.write(b"half a file")
                file.flush()
                Path(self.marker).write_text(path)
                os.kill(os.getpid(), signal.SIGKILL)
                yield file

        Store.open_write = dying  # type: ignore[method-assign]


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save_and_resumed_is_never_interrupted(
    spark: SparkSession, store_uri: str, tmp_path: Path
) -> None:
    data = visits(spark)
    straight = estimator(storeUri=store_uri, epochs=4).fit(data)
    marker = tmp_path / "died"
    resumed = estimator(storeUri=store_uri, epochs=4, callbacks=[DieWhileSaving(str(marker))], maxRestarts=1).fit(data)
    assert marker.exists()
    assert len(resumed.summary.history) == 4
    one, other = scores(straight.transform(data)), scores(resumed.transform(data))
    assert max(abs(one[id] - other[id]) for id in one) < 1e-6
    left = files_in(Path(store_uri.removeprefix("file://")))
    assert {name.split("/")[2] for name in left} == {"model"}
    assert not [name for name in left if ".tmp" in name]


def test_a_bad_id_of_one_row_is_named_on_the_driver(spark: SparkSession, store_uri: str) -> None:
    data = visits(spark)
    for bad, said, ranks in ((-3, "it is negative", 1), (50, "it is larger", 2)):
        broken = data.withColumn("page", F.when(F.col("id") == 17, bad).otherwise(F.col("page")))
        with pytest.raises(DataError, match=rf"{said} .*feature 'page' of table 'pages'"):
            estimator(storeUri=store_uri, numWorkers=ranks).fit(broken)
    assert files_in(Path(store_uri.removeprefix("file://"))) == []


@pytest.fixture(scope="module")
def hardly_trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    store = tmp_path_factory.mktemp("store").as_uri()
    return estimator(storeUri=store, epochs=1, numWorkers=1).fit(visits(spark, 100))


def test_a_bad_id_at_scoring_is_named(spark: SparkSession, hardly_trained: TorchModel) -> None:
    data = visits(spark, 200)
    with pytest.raises(Exception, match="feature 'page' of table 'pages'"):
        hardly_trained.transform(data.withColumn("page", F.lit(50))).agg(F.sum("prediction")).collect()


def test_a_table_larger_than_memory_is_refused_before_anything_is_written(spark: SparkSession, store_uri: str) -> None:
    model = TwoTables(pages=10**10, dim=64)
    with pytest.raises(ConfigurationError, match="TiB on rank.*table 'pages'.*Hint: raise .*memory"):
        estimator(model=model, storeUri=store_uri).fit(visits(spark, 10))
    assert files_in(Path(store_uri.removeprefix("file://"))) == []


def test_a_row_alone_scores_as_among_others(spark: SparkSession, hardly_trained: TorchModel) -> None:
    data = visits(spark, 100)
    together = scores(hardly_trained.transform(data))
    alone = pd.concat([hardly_trained.transform(data.filter(F.col("id") == id)).toPandas() for id in (3, 57)])
    assert [together[3], together[57]] == pytest.approx(alone["prediction"].tolist(), abs=1e-6)
