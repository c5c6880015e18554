"""Test AUC of architectures on synthetic clicks in the Criteo format, beside the best that anyone could reach.

    python benchmarks/click_ladder.py [--rows 2000000] [--architectures lr,fm,dcn_v2,dlrm]

Each is a `CTRClassifier` on 2 ranks with sharded tables. The last line of each kind is DLRM once more, trained in one
process of plain torch, with its tables as stock `nn.Embedding`s: sharding must not cost anything. The clicks are drawn
from a known model (examples/click_data.py): these are synthetic numbers, not Criteo's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.collectives import LocalCollective
from hvdspark.data.readers.moments import moments
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.kernels import optimizers
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.estimators import CTRClassifier
from hvdspark.estimators.categories import category_key
from hvdspark.estimators.ctr_program import click_program
from hvdspark.models.click import ID_BITS
from hvdspark.train.optimizer import make_optimizer
from hvdspark.train.precision import resolve_precision, training_arithmetic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import click_data
from click_data import CATEGORIES, INTEGERS
from clicks import read_criteo


def classifier(architecture: str, store: str, **changes: Any) -> CTRClassifier:
    """The same settings for every architecture."""
    settings: dict[str, Any] = {
        "architecture": architecture,
        "continuousCols": INTEGERS,
        "categoricalCols": CATEGORIES,
        "handleInvalid": "keep",
        "batchSize": 4096,
        "epochs": 1,
        "learningRate": 2e-3,
        "learningRateSchedule": "constant",
        "embeddingOptimizer": "adam",
        "embeddingLearningRate": 2e-3,
        "storeUri": store,
        "seed": 7,
    }
    return CTRClassifier(**{**settings, **changes})


def auc_of(classifier: CTRClassifier, train: DataFrame, test: DataFrame) -> float:
    return float(BinaryClassificationEvaluator(numBins=0).evaluate(classifier.fit(train).transform(test)))


class UnshardedTables(nn.Module):
    """The tables of a collection as stock `nn.Embedding`s over the ids of the training rows, in one process."""

    def __init__(self, collection: ShardedEmbeddingCollection, columns: dict[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        self._ids = {name: np.unique(columns[table]) for name, table in collection.features.items()}
        self._tables = list(collection.tables.values())
        self._embeddings, self._states = nn.ModuleList(), []
        for table in self._tables:
            ids = torch.from_numpy(self._ids[table.name])
            rows = initial_rows(ids, table.dim, collection.seed, salt_of("table", table.name), table.init)
            self._states.append(optimizers.initial_state(table.optimizer, rows))
            unknown = torch.zeros(1, table.dim)
            self._embeddings.append(
                nn.Embedding(len(ids) + 1, table.dim, sparse=True, _weight=torch.cat([rows, unknown]))
            )

    def stacked(self, ids: dict[str, Tensor]) -> Tensor:
        """[rows, features, D]; zeros for ids that training has not."""
        vectors = []
        for table, embedding in zip(self._tables, self._embeddings, strict=True):
            known, sought = self._ids[table.name], ids[table.name].numpy()
            places = np.minimum(np.searchsorted(known, sought), len(known) - 1)
            vectors.append(embedding(torch.from_numpy(np.where(known[places] == sought, places, len(known)))))
        return torch.stack(vectors, dim=1)

    def step(self) -> None:
        """Update each row that a batch touched once."""
        for table, embedding, state in zip(self._tables, self._embeddings, self._states, strict=True):
            gradient = embedding.weight.grad.coalesce()
            (places,), values = gradient.indices(), gradient.values()
            with torch.no_grad():
                rows = embedding.weight[places]
                some = {name: part[places] for name, part in state.items()}
                optimizers.update(table.optimizer, rows, some, values)
                embedding.weight[places] = rows
                for name, part in state.items():
                    part[places] = some[name]
            embedding.weight.grad = None


def unsharded_auc(settings: CTRClassifier, train: DataFrame, test: DataFrame, scratch: Path) -> float:
    """Test AUC of the same model in a plain loop of torch, with the optimizers and batches of `settings`."""
    parts = []
    for name, data in (("train", train), ("test", test)):
        keys = [category_key(data, column, ID_BITS, "keep").alias(column) for column in CATEGORIES]
        numbers = [F.col(column).cast("double") for column in INTEGERS]
        data.select("label", *numbers, *keys).write.parquet(f"file://{scratch}/{name}.parquet")
        table = pq.read_table(scratch / f"{name}.parquet")
        # Null numbers become NaN.
        parts.append({column: table.column(column).to_pandas().to_numpy() for column in table.column_names})
    rows, held_out = parts
    value = settings.getOrDefault
    raw = np.stack([rows[column].astype(np.float64) for column in INTEGERS], axis=1)
    values = np.concatenate([raw, np.sign(raw) * np.log1p(np.abs(raw))], axis=1)
    batch_size = value("batchSize")
    program = click_program(
        settings,
        INTEGERS,
        CATEGORIES,
        [],
        settings.pace(len(raw)),
        moments(values, rows["label"].astype(np.float64), None),
    )
    model = program.module
    optimizer = make_optimizer(program.optimizer, model, value("learningRate"))  # of the dense layers: no tables yet
    model.rows = tables = UnshardedTables(model.rows, rows)
    precision = resolve_precision("auto", "cpu", LocalCollective())
    order = np.random.default_rng(value("seed")).permutation(len(rows["label"]))
    columns = [*INTEGERS, *CATEGORIES]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [torch.from_numpy(rows[column][chosen]) for column in columns]
        with training_arithmetic(precision, "cpu"):
            logits = model(*batch).float()
        labels = torch.from_numpy(rows["label"][chosen]).float()
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        tables.step()
    model.eval()
    with torch.no_grad():
        scores = [
            model(*(torch.from_numpy(held_out[column][start : start + (1 << 15)]) for column in columns))
            for start in range(0, len(held_out["label"]), 1 << 15)
        ]
    return click_data.exact_auc(torch.cat(scores).numpy(), held_out["label"])


def ladder(spark: SparkSession, rows: int, architectures: list[str], scratch: Path) -> dict[str, float]:
    """Test AUC by architecture, with "dlrm unsharded" and "reachable"."""
    test_clicks = click_data.draw(rows // 5, seed=2)
    click_data.write(click_data.draw(rows - rows // 5, seed=1), scratch / "train.txt")
    click_data.write(test_clicks, scratch / "test.txt")
    train, test = (read_criteo(spark, f"file://{scratch}/{name}.txt") for name in ("train", "test"))
    found = {"reachable": click_data.exact_auc(test_clicks.probability, test_clicks.labels)}
    print(f"{'reachable':16} {found['reachable']:.4f}", flush=True)
    for architecture in architectures:
        started = time.perf_counter()
        found[architecture] = auc_of(classifier(architecture, f"file://{scratch}/store"), train, test)
        print(f"{architecture:16} {found[architecture]:.4f}   {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    found["dlrm unsharded"] = unsharded_auc(classifier("dlrm", f"file://{scratch}/store"), train, test, scratch)
    print(f"{'dlrm unsharded':16} {found['dlrm unsharded']:.4f}   {time.perf_counter() - started:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of which a fifth is the test split")
    parser.add_argument("--architectures", default="lr,fm,dcn_v2,dlrm")
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory(prefix="hvdspark-bench-") as scratch:
        ladder(spark, arguments.rows, arguments.architectures.split(","), Path(scratch))
    spark.stop()


if __name__ == "__main__":
    main()
