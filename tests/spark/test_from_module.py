"""A module that was trained elsewhere is a Transformer: image files to features, vectors to numbers."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.data import Ragged
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.errors import ConfigurationError, DataError, HvdSparkError, SchemaError
from hvdspark.estimators import TorchModel
from tests.spark.toys import files_in, separable

pytestmark = pytest.mark.spark

PICTURES, SIDE = 2400, 12


class Pictures(nn.Module):
    """PNG files -> mean brightness and two features. Notes each loading of its weights, and its largest batch."""

    def __init__(self, notes: str) -> None:
        super().__init__()
        self.notes = notes
        self.layer = nn.Linear(SIDE * SIDE, 2)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        with open(self.notes, "a") as notes:
            notes.write(f"loaded {os.getpid()}\n")

    def forward(self, files: Ragged) -> Tensor:
        from PIL import Image

        with open(self.notes, "a") as notes:
            notes.write(f"rows {len(files.offsets) - 1}\n")
        cut = zip(files.offsets[:-1].tolist(), files.offsets[1:].tolist(), strict=True)
        pixels = [np.asarray(Image.open(io.BytesIO(files.values[a:b].numpy().tobytes()))) for a, b in cut]
        flat = torch.from_numpy(np.stack(pixels)).flatten(1).float() / 255.0  # [rows, pixels]
        return torch.cat([flat.mean(dim=1, keepdim=True), self.layer(flat)], dim=1)


def write_pictures(folder: Path) -> list[float]:
    """Parquet files of PNGs; the brightness of each picture."""
    from PIL import Image

    drawn = np.random.default_rng(4).integers(0, 256, (PICTURES, SIDE, SIDE), dtype=np.uint8)
    files = []
    for picture in drawn:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    folder.mkdir()
    for part in range(6):
        pd.DataFrame({"id": range(part, PICTURES, 6), "png": files[part::6]}).to_parquet(folder / f"{part}.parquet")
    return [float(picture.mean() / 255.0) for picture in drawn]


@pytest.mark.slow
def test_thousands_of_pictures_become_features(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    brightness, notes = write_pictures(tmp_path / "pictures"), tmp_path / "notes"
    data = spark.read.parquet(str(tmp_path / "pictures")).repartition(6)
    module = Pictures(str(notes))
    model = TorchModel.fromModule(
        module, inputCols=["png"], example=data, outputCols=["features"], batchSize=100, storeUri=store_uri
    )
    assert not model.hasSummary
    assert "trained elsewhere" in repr(model)
    PipelineModel(stages=[model]).save(str(tmp_path / "saved"))
    notes.unlink()
    scored = PipelineModel.load(str(tmp_path / "saved")).transform(data)
    assert not notes.exists(), "transform only adds to the plan"
    found = {row["id"]: row["features"].toArray() for row in scored.select("id", "features").collect()}

    assert len(found) == PICTURES
    first = [found[id][0] for id in range(PICTURES)]
    assert first == pytest.approx(brightness, abs=1e-6)
    said = Counter(notes.read_text().splitlines())
    loaded = {line: times for line, times in said.items() if line.startswith("loaded")}
    assert 1 <= len(loaded) <= 3, "one for each Python worker"
    assert set(loaded.values()) == {1}
    assert max(int(line.split()[1]) for line in said if line.startswith("rows")) <= 100


def test_numbers_and_vectors_and_what_is_no_value(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(3, 1)
    model = TorchModel.fromModule(layer, inputCols=["x"], example=separable(spark), storeUri=store_uri)
    model.save(str(tmp_path / "m"))
    loaded = TorchModel.load(str(tmp_path / "m"))
    rows = loaded.transform(separable(spark)).select("x", "prediction").collect()
    with torch.no_grad():
        expected = layer(torch.tensor([row["x"].toArray() for row in rows], dtype=torch.float32)).squeeze(1).tolist()
    assert [row["prediction"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert (loaded.getFeatureCols(), loaded.getBatchSize()) == (["x"], 64)  # type: ignore[attr-defined]
    assert not loaded.hasSummary
    with pytest.raises(ConfigurationError, match="without a fit"):
        _ = loaded.summary


class Sizes(nn.Module):
    def forward(self, files: Ragged) -> Tensor:
        return files.offsets.diff().float()


def test_files_that_are_null(spark: SparkSession, store_uri: str) -> None:
    data = spark.sql("SELECT 0L AS id, CAST('abc' AS binary) AS f UNION ALL SELECT 1L, NULL").coalesce(1)
    example = data.where("f IS NOT NULL")
    model = TorchModel.fromModule(Sizes(), inputCols=["f"], example=example, storeUri=store_uri)
    with pytest.raises(Exception, match="DataError: null in feature column 'f'.*Hint: .*'skip'"):
        model.transform(data).collect()
    skipping = model.copy({model.handleInvalid: "skip"}).transform(data)
    assert [(row["id"], row["prediction"]) for row in skipping.collect()] == [(0, 3.0)]
    with pytest.raises(SchemaError, match="trained on binary here: 'string'.*Hint"):
        model.transform(data.withColumn("f", F.col("f").cast("string")))


def sharded() -> nn.Module:
    collection = ShardedEmbeddingCollection([TableConfig("t", 2)], {"id": "t"}, seed=0, name="c")
    return nn.Sequential(collection)


@pytest.mark.parametrize(
    ("error", "message", "module", "columns"),
    [
        (ConfigurationError, "not a torch.nn.Module.*Hint", nn.Linear, ["x"]),
        (ConfigurationError, "parameters without a shape.*Hint: call it once", nn.LazyLinear(1), ["x"]),
        (ConfigurationError, r"sharded tables.*Hint: .*TorchModel.load\(path\)", sharded(), ["x"]),
        (ConfigurationError, r"failed on the first rows.*float32 \[8, 3\]", nn.Linear(7, 1), ["x"]),
        (SchemaError, "'xx'.*did you mean 'x'", nn.Linear(3, 1), ["xx"]),
        (ConfigurationError, "one row for each of the 8 input rows.*Hint", nn.Flatten(0), ["x"]),
    ],
)
def test_what_is_no_trained_module_is_refused_and_leaves_nothing(
    spark: SparkSession, tmp_path: Path, error: type[HvdSparkError], message: str, module: Any, columns: list[str]
) -> None:
    store = tmp_path / "store"
    with pytest.raises(error, match=message):
        TorchModel.fromModule(module, inputCols=columns, example=separable(spark), storeUri=store.as_uri())
    assert files_in(store) == []


def test_an_example_without_rows_is_refused(spark: SparkSession, store_uri: str) -> None:
    none = spark.createDataFrame([(Vectors.dense([1.0]),)], ["x"]).limit(0)
    with pytest.raises(DataError, match="no rows to call the module with.*Hint"):
        TorchModel.fromModule(nn.Linear(1, 1), inputCols=["x"], example=none, storeUri=store_uri)
