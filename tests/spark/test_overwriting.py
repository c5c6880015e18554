"""What is saved over the directory that it was loaded from keeps its tables, in a Pipeline too, and is always whole.

The models are those that hvdspark 0.1.0 saved: no fit is needed to have embedding tables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession

import tests.unit.artifact.saved_before  # noqa: F401  a class that is imported is one that a save may name
from hvdspark.estimators import CTRClassificationModel, CTRClassifier, persistence
from tests.spark.test_models_of_before import FOLDER, KNOWN, predicted

pytestmark = pytest.mark.spark
LOADS: dict[str, Any] = {"pipeline": PipelineModel, "deepfm": CTRClassificationModel}


@pytest.fixture
def rows(spark: SparkSession) -> DataFrame:
    data = [tuple(row.values()) for row in KNOWN["rows"]]
    return spark.createDataFrame(data, KNOWN["schema"]).coalesce(1)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], str]:
    def copy(name: str) -> str:
        return str(shutil.copytree(FOLDER / name, tmp_path / name))

    return copy


@pytest.mark.parametrize("name", [pytest.param("pipeline", marks=pytest.mark.slow), "deepfm"])
def test_saved_over_itself_it_keeps_its_tables(
    rows: DataFrame, copied: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    path = copied(name)
    model = LOADS[name].load(path)
    before = predicted(model.transform(rows))
    for _ in range(2):  # the model goes on with what it has saved
        model.write().overwrite().save(path)
        assert predicted(model.transform(rows)) == before
    assert predicted(LOADS[name].load(path).transform(rows)) == before
    assert os.listdir(tmp_path) == [name], "nothing is left beside it"


@pytest.mark.parametrize("name", LOADS)
def test_a_save_that_fails_in_the_middle_leaves_what_was_there(
    rows: DataFrame, copied: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("in the middle")

    path = copied(name)
    model = LOADS[name].load(path)
    before = predicted(model.transform(rows))
    with monkeypatch.context() as broken:
        broken.setattr(persistence, "copy_tables", fails)
        with pytest.raises(RuntimeError, match="in the middle"):
            model.write().overwrite().save(path)
    assert os.listdir(tmp_path) == [name], "nothing half-written stays"
    assert predicted(LOADS[name].load(path).transform(rows)) == before


def test_pipelines_of_others_are_saved_as_ever(spark: SparkSession, tmp_path: Path) -> None:
    path, beside = str(tmp_path / "p"), str(tmp_path / "new")
    assembler = VectorAssembler(inputCols=["a"], outputCol="v")
    for stages in ([assembler], [assembler, CTRClassifier(categoricalCols=["user"])], [assembler]):
        Pipeline(stages=stages).write().overwrite().save(path)
        assert len(Pipeline.load(path).getStages()) == len(stages)
    writer = Pipeline(stages=[CTRClassifier(categoricalCols=["user"])]).write().overwrite()
    for place in (path, beside):
        writer.save(place)
        assert isinstance(Pipeline.load(place).getStages()[0], CTRClassifier)
    assert sorted(os.listdir(tmp_path)) == ["new", "p"]
