"""Ten million embeddings go through a driver of one gigabyte, which is also the executor here: nothing is collected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

_MODEL = """
import resource, sys
from hvdspark.models.click import ID_BITS, ClickModel
from hvdspark.store import Store

ROWS, store = 10**7, Store(sys.argv[1])
module = ClickModel("wide_deep", 0, ["item"], dim=8, hidden=(4,), first_order=True, one_table=True)
"""

WRITE = f"""{_MODEL}
import torch
from hvdspark.artifact.tables import write_tables
from hvdspark.artifact.weights import write_weights
from hvdspark.collectives import LocalCollective

shard = module.rows.shards[0]
for ids in torch.arange(ROWS).split(10**6):
    shard.slots(shard.key_space.fuse(0, ids * 123456789 % (1 << ID_BITS)), insert=True)
write_weights(store, "model", module, {{}}, write_tables(store, "model", module, LocalCollective(), state=False))
print(shard.memory.rows.memory[:ROWS, 3].sum(dtype="float64"))
"""

READ = f"""{_MODEL}
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from hvdspark.estimators import CTRClassificationModel
from hvdspark.estimators.fitted import FittedModule
from hvdspark.specs import ColumnSpec
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import TrainResult

settings = {{"spark.driver.memory": "1g", "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "4"}}
spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
result, column = TrainResult((), 0, 0, None, "model", (), "float32", 0, {{}}), ColumnSpec("item", "int64", "scalar")
model = CTRClassificationModel()
model._fitted = FittedModule(
    store.uri, "model", skeleton(module), (column,), result, {{"item": "bigint"}}, (), ("item",), ID_BITS
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
every = model.embeddings("item")
every.write.parquet(sys.argv[1] + "/vectors")
row = spark.read.parquet(sys.argv[1] + "/vectors").agg(
    F.count("key"), F.countDistinct(F.col("key") % 1000), F.sum(F.col("vector")[3].cast("double"))
).first()
print(row[0], row[1], row[2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def run(script: str, folder: Path) -> list[float]:
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(word) for word in done.stdout.split()]


def test_ten_million_rows_and_a_driver_of_one_gigabyte(tmp_path: Path) -> None:
    (expected,) = run(WRITE, tmp_path)
    rows, keys, total, grown_kib = run(READ, tmp_path)
    assert (rows, keys) == (10**7, 1000)
    assert total == pytest.approx(expected, abs=1e-2)
    assert grown_kib < 100 << 10
