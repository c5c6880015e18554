"""A program that fits, scores, fails and looks around with rows, and settings, that hold planted values.

`test_canary.py` runs it and reads everything that it leaves and says. Arguments: a folder, and the address of an MLflow
server.
"""

from __future__ import annotations

import logging
import secrets
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

import hvdspark
from hvdspark.errors import HvdSparkError
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchModel, TorchRegressor
from hvdspark.events import FitListener
from tests.spark.mlflow_runs import written

# As they are searched for. None is likely to come about by chance.
TEXT, NUMBER, ID, LABEL, WEIGHT = "canaryzq81", 8675309.125, 918273645546372819, 71717171.5, 5353535.25
PLANTED = (TEXT, "8675309", "918273645546372819", "71717171", "5353535")
# What an environment variable of ranks is set to.
VALUE = "canaryenvq73"
SECRET = "5ec2e7" * 5


class Poisoned(nn.Module):
    """Fails on the planted number, with an error that does not repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(1, 2)

    def forward(self, number: Tensor) -> Tensor:
        if self.training and bool((number > 1e6).any()):
            raise ValueError("a row cannot be used")
        output: Tensor = self.out(number.unsqueeze(1))
        return output


class Remembering(FitListener):
    """Prints every event."""

    def on_event(self, event: Any) -> None:
        print("event", repr(event), flush=True)


def write_rows(path: Path) -> None:
    """Without Spark, so that no plan of it has a planted value as a literal."""
    planted, ids = np.arange(400) % 50 == 7, np.arange(400)
    pages = [TEXT if hit else f"p{number % 5}" for number, hit in zip(ids.tolist(), planted.tolist(), strict=True)]
    columns = {
        "number": np.where(planted, NUMBER, ids * 1.0),
        "user": np.where(planted, ID, ids % 9),
        "page": pages,
        "page_or_null": [page if page != "p3" else None for page in pages],
        "clicked": (ids % 2).astype(np.int32),
        "odd_label": np.where(planted, LABEL, 1.0),
        "odd_weight": np.where(planted, -WEIGHT, 1.0),
    }
    pq.write_table(pa.table(columns), path)


def fails(what: str, act: Callable[[], Any]) -> None:
    """Print how it fails, as a user would see it."""
    try:
        act()
    except Exception as error:
        kind = "ours" if isinstance(error, HvdSparkError) else "another"
        print(f"failed as it should: {what} ({kind})", "".join(traceback.format_exception(error)), flush=True)
    else:
        print(f"DID NOT FAIL: {what}", flush=True)


def main(folder: Path, tracking: str) -> None:
    secrets.token_hex = lambda nbytes=None: SECRET
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    logging.getLogger("py4j").setLevel(logging.INFO)  # at DEBUG it prints whole closures (SECURITY.md)
    store = (folder / "store").as_uri()
    settings: dict[str, Any] = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": (folder / "events").as_uri(),
        "spark.local.dir": str(folder / "local"),
        "spark.ui.enabled": "true",
        "spark.ui.port": "0",
    }
    spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    spark.sparkContext.setLogLevel("INFO")
    write_rows(folder / "rows.parquet")
    data = spark.read.parquet((folder / "rows.parquet").as_uri())
    common: dict[str, Any] = {
        "storeUri": store,
        "numWorkers": 1,
        "batchSize": 100,
        "epochs": 1,
        "listeners": [Remembering()],
        "env": {"TOKEN_OF_MINE": VALUE},
    }
    columns: dict[str, Any] = {"continuousCols": ["number"], "categoricalCols": ["user", "page"], "labelCol": "clicked"}
    tracked: dict[str, Any] = {"trackingUri": tracking}
    model = CTRClassifier(architecture="lr", **columns, **common, **tracked).fit(data)
    explained = model.explainParams().replace(VALUE, "")  # it says what Params are set to, to who asks
    print(model.summary, repr(model), explained, flush=True)
    print("scored", model.transform(data).agg(F.sum("prediction")).first(), flush=True)

    module: dict[str, Any] = {"featureCols": ["number"], **common}
    fails("training", lambda: TorchClassifier(model=Poisoned(), labelCol="clicked", **module).fit(data))
    fails("labels", lambda: TorchClassifier(model=Poisoned(), labelCol="odd_label", **module).fit(data))
    regressor = TorchRegressor(model=nn.Linear(1, 1), labelCol="odd_label", weightCol="odd_weight", **module)
    fails("weights", lambda: regressor.fit(data))
    embedded = TorchClassifier(model=nn.Embedding(10, 2), featureCols=["user"], labelCol="clicked", **common)
    fails("an id", lambda: embedded.fit(data))
    calm = data.where("user < 10")
    looked_up = TorchModel.fromModule(nn.Embedding(10, 2), inputCols=["user"], example=calm, storeUri=store)
    fails("scoring", lambda: looked_up.transform(data).collect())
    as_fraction = data.withColumn("user", F.col("number"))
    fails("scoring fractions", lambda: looked_up.transform(as_fraction).collect())
    nulls = data.withColumn("page", F.col("page_or_null"))
    fails("null", lambda: model.transform(nulls).collect())
    fails("materialising", lambda: CTRClassifier(architecture="lr", **columns, **common).fit(nulls))
    print("run", hvdspark.run(len, (TEXT,), num_workers=2), flush=True)
    written()
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
