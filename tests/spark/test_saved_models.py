"""What is saved predicts the same bits wherever it is loaded, and loading runs no code that was not asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit, TrainValidationSplitModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.errors import PersistenceError
from hvdspark.estimators import TorchEstimator, TorchModel
from hvdspark.specs import ColumnSpec
from tests.manifests import said_in
from tests.spark.toys import as_fitted, linear, scores
from tests.unit.train import ordinary

pytestmark = pytest.mark.spark

X = ColumnSpec("x", "float32", "fixed", 3)
TRUSTED = "spark.hvdspark.trustedPackages"
ANOTHER_PROCESS = """
import json, sys
from pyspark.ml import PipelineModel
from pyspark.ml.tuning import TrainValidationSplitModel
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
folder = sys.argv[1]
assert "hvdspark" not in sys.modules
PipelineModel.load(f"{folder}/pipeline")
from hvdspark.estimators import TorchModel
import tests.unit.train.ordinary
from tests.spark.test_saved_models import predicted, rows
classes = {"pipeline": PipelineModel, "tuned": TrainValidationSplitModel}
names = json.loads(sys.argv[2])
print(json.dumps({name: predicted(classes.get(name, TorchModel).load(f"{folder}/{name}").transform(rows(spark)))
                  for name in names}))
"""


def rows(spark: SparkSession) -> DataFrame:
    parts = [((F.hash("id", F.lit(k)) % 1000) / 997.0).cast("double") for k in range(3)]
    return spark.range(0, 50, 1, 1).select("id", array_to_vector(F.array(*parts)).alias("x"))


def predicted(frame: DataFrame) -> dict[str, Any]:
    """Predictions by id, as JSON has them: repr() of a float is exact."""
    found = scores(frame)
    return {str(id): [*map(float, score)] if hasattr(score, "toArray") else score for id, score in found.items()}


def manifest_of(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / "data" / "manifest.json"
    return file, said_in(file)


def tuned(best: TorchModel) -> TrainValidationSplitModel:
    estimator = linear()
    grid = ParamGridBuilder().addGrid(estimator.batchSize, [16, 32]).build()
    search = TrainValidationSplit(
        estimator=estimator, estimatorParamMaps=grid, evaluator=RegressionEvaluator(labelCol="y")
    )
    return search._copyValues(TrainValidationSplitModel(best, [0.5, 0.25]))


@pytest.mark.slow  # tests/unit/train/test_saved_modules.py does it for each kind of module, without a Pipeline
def test_models_predict_the_same_bits_in_another_process(
    spark: SparkSession, fitted: TorchModel, store_uri: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    widths = {"arguments that are not kept": 5, "buffers of all kinds": 3, "frozen batch norm": 2}
    models = {
        name: as_fitted(ordinary.MODULES[name](), [X], store_uri, width=width, directory=name)
        for name, width in widths.items()
    }
    written = {**models, "pipeline": PipelineModel(stages=[fitted]), "tuned": tuned(fitted)}
    for name, model in written.items():
        model.save(str(tmp_path / name))
    finished = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path), json.dumps(list(written))],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 0, finished.stderr
    there = json.loads(finished.stdout.splitlines()[-1])
    data = rows(spark)
    for name, model in written.items():
        assert there[name] == predicted(model.transform(data)), name


def test_a_fitted_model_has_the_params_of_its_estimator(fitted: TorchModel, tmp_path: Path) -> None:
    fitted.save(str(tmp_path / "m"))
    for model in (fitted, fitted.copy(), TorchModel.load(str(tmp_path / "m"))):
        assert model.getOrDefault("epochs") == model.getEpochs() == 8
        assert model.getOrDefault("learningRate") == 1e-3
        assert model.getLabelCol() == "y"
        assert model.getOrDefault("validationIndicatorCol") == "is_validation"
    assert not hasattr(fitted, "setLearningRate")  # it would change nothing
    assert fitted.copy().setPredictionCol("p").setAllowPickle(True).getAllowPickle()


def test_estimators_come_back_as_they_were(spark: SparkSession, tmp_path: Path) -> None:
    frozen = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    frozen[0].requires_grad_(False)
    frozen[1].eval()
    losses = {
        "cross entropy": nn.CrossEntropyLoss(weight=torch.tensor([0.25, 0.75]), ignore_index=1),
        "list": [nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 1.0])), "mse"],
        "bound method": ordinary.Hooked().enlarge,
    }
    for name, loss in losses.items():
        optimizer = torch.optim.SGD(frozen.parameters(), lr=0.5, momentum=0.9)
        linear(model=frozen, loss=loss, optimizer=optimizer, callbacks=[ordinary.Every(7)]).save(str(tmp_path / name))
        loaded = TorchEstimator.load(str(tmp_path / name))
        module, optimizer = loaded.getModel(), loaded.getOptimizer()
        assert isinstance(module, nn.Module)
        assert [p.requires_grad for p in module.parameters()] == [False, False, True, True, True, True]
        assert [part.training for part in module.modules()] == [True, True, False, True]
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in module.parameters()]
        assert optimizer.param_groups[0]["momentum"] == 0.9
        assert torch.equal(module[2].weight, frozen[2].weight)
        (callback,) = loaded.getCallbacks()
        assert isinstance(callback, ordinary.Every)
        assert (callback.steps, callback.seen) == (7, {"rows": [1, 2]})
        again = loaded.getLoss()
        if name == "cross entropy":
            assert torch.equal(again.weight, torch.tensor([0.25, 0.75]))
            assert again.ignore_index == 1
        elif name == "list":
            assert isinstance(again, list)
            assert torch.equal(again[0].pos_weight, torch.tensor([3.0, 1.0]))
        else:
            assert again.__self__.factor == 5.0


def test_what_was_saved_by_constructor_arguments_is_still_loaded(
    spark: SparkSession, fitted: TorchModel, tmp_path: Path
) -> None:
    fitted.save(str(tmp_path / "m"))
    file, manifest = manifest_of(tmp_path / "m")
    arguments = {"in_features": 3, "out_features": 1, "bias": True}
    layer = {"module": "torch.nn.modules.linear:Linear", "arguments": arguments, "training": True}
    manifest["state"]["objects"]["module"] = {
        "module": "torch.nn.modules.container:Sequential",
        "children": [["0", layer]],
    }
    file.write_text(json.dumps(manifest))
    assert scores(TorchModel.load(str(tmp_path / "m")).transform(rows(spark))) == scores(fitted.transform(rows(spark)))


def test_no_code_is_run_because_a_file_names_it(spark: SparkSession, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    linear().save(str(tmp_path / "e"))
    file, manifest = manifest_of(tmp_path / "e")
    for name in ("optimizer", "loss", "callbacks"):
        changed = json.loads(json.dumps(manifest))
        changed["state"]["objects"][name] = {
            "partial": "subprocess:call",
            "args": [["touch", str(touched)]],
            "kwargs": {},
        }
        file.write_text(json.dumps(changed))
        with pytest.raises(PersistenceError, match="does not trust.*subprocess:call.*Hint"):
            TorchEstimator.load(str(tmp_path / "e"))
    assert not touched.exists()


def test_functions_of_ones_own_are_loaded_where_their_package_is_trusted(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "e")
    linear(loss=ordinary.times, model=ordinary.Scaled([2.0])).save(path)
    with pytest.raises(PersistenceError, match=f"does not trust.*ordinary:times.*Hint.*{TRUSTED}=tests"):
        TorchEstimator.load(path)
    spark.conf.set(TRUSTED, "mine, tests.unit")
    try:
        loaded = TorchEstimator.load(path)
    finally:
        spark.conf.unset(TRUSTED)
    assert loaded.getLoss() is ordinary.times
    assert isinstance(loaded.getModel(), ordinary.Scaled)
