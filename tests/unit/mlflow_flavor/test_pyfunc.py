"""What MLflow's pyfunc makes of pandas is what `transform` made of the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.types import DataType
from torch import Tensor, nn

from hvdspark import mlflow_flavor
from hvdspark.artifact.inputs import BYTES
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.specs import ColumnSpec
from tests.unit.mlflow_flavor.fitted import FOLDER, KNOWN, rows, saved_before, small_model

STAGES = sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "pipeline" / "stages").glob("[12]_*"))


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Any]:
    """The pyfunc of a model that is saved here."""

    def load(model: Any, **options: Any) -> Any:
        mlflow_flavor.save_model(model, str(tmp_path / "model"), trusted_packages=["tests"], **options)
        return mlflow.pyfunc.load_model(str(tmp_path / "model"))

    return load


class Sums(nn.Module):
    """Sums of an integer, an array of any length and a fixed one."""

    def forward(self, whole: Tensor, many: Any, two: Tensor) -> Tensor:
        lengths = many.offsets[1:] - many.offsets[:-1]
        row = torch.repeat_interleave(torch.arange(len(whole)), lengths)
        return whole + torch.zeros(len(whole)).index_add(0, row, many.values) + two.sum(1)


SUMS = [
    ColumnSpec("whole", "int64", "scalar"),
    ColumnSpec("many", "float32", "ragged"),
    ColumnSpec("two", "float32", "fixed", 2),
]
OF_SUMS = {"whole": "int", "many": "array<float>", "two": "vector"}


def sums(folder: Path, handle_invalid: str) -> Any:
    model = small_model("TorchModel", folder, Sums(), SUMS, types=OF_SUMS)
    return model.setHandleInvalid(handle_invalid)


@pytest.mark.parametrize("name", ["deepfm", "lr", "tables", *STAGES])
def test_the_predictions_are_those_of_transform(loaded: Callable[..., Any], name: str) -> None:
    found = loaded(saved_before(name)).predict(rows())
    known = KNOWN["predictions"]
    if name in ("deepfm", "lr"):
        assert list(found) == ["rawPrediction", "probability", "prediction"]
        expected = pd.DataFrame(known[name], columns=["prediction", "rawPrediction"])
    elif name == "tables":
        expected = pd.DataFrame({"prediction": [row[0] for row in known[name]]})
    else:
        of_stage = [row[:1] if name == STAGES[0] else row[1:] for row in known["pipeline"]]
        expected = pd.DataFrame(of_stage, columns=["p"] if name == STAGES[0] else ["prediction", "rawPrediction"])
    for column in expected:
        np.testing.assert_allclose(found[column].tolist(), expected[column].tolist(), rtol=0, atol=1e-6)


def test_skip_leaves_out_what_has_no_value(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(sums(tmp_path, "skip"))
    given = pd.DataFrame(
        {
            "whole": [1, 2, 3, None, 5, 6],
            "many": [[1.0], [], [float("nan")], [2.0], None, [1.0, 2.0]],
            "two": [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [None, 1.0]],
        },
        index=list("abcdef"),
    )
    found = model.predict(given)
    assert found["prediction"].to_dict() == {"a": 5.0, "b": 2.0}
    assert model.predict(given.iloc[2:3]).empty


def test_error_names_the_column_without_a_value(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(sums(tmp_path, "error"))
    given = pd.DataFrame({"whole": [1, 2], "many": [[1.0], [float("nan")]], "two": [[1.0, 2.0]] * 2})
    with pytest.raises(DataError, match="null or NaN in feature column 'many'"):
        model.predict(given)


def test_a_column_that_is_there_twice_is_named(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = loaded(sums(tmp_path, "error"), signature=False)
    given = pd.DataFrame({"whole": [1], "many": [[1.0]], "two": [[1.0, 2.0]]})
    with pytest.raises(DataError, match=r"several columns of that name: \['whole'\].*Hint"):
        model.predict(pd.concat([given, given[["whole"]]], axis=1))


def test_columns_of_other_names_where_setters_name_them(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = sums(tmp_path, "error")
    with pytest.raises(
        ConfigurationError, match=r"trained on 3 feature columns: \['a'\].*Hint.*'whole', 'many', 'two'"
    ):
        model.setFeatureCols(["a"]).portable()
    given = pd.DataFrame({"a": [1], "two": [[1.0]], "b": [[1.0, 2.0]]})
    assert loaded(model.setFeatureCols(["a", "two", "b"])).predict(given)["prediction"].tolist() == [5.0]


def test_columns_of_a_click_model_of_other_names(loaded: Callable[..., Any]) -> None:
    model = saved_before("deepfm")
    names = model.getCategoricalCols()
    with pytest.raises(ConfigurationError, match="trained on 3 columns of categories.*Hint"):
        model.copy().setCategoricalCols(names[:1]).portable()
    renamed = model.copy().setCategoricalCols([f"{name} 2" for name in names])
    found = loaded(renamed).predict(rows().rename(columns={name: f"{name} 2" for name in names}))
    expected = [row[0] for row in KNOWN["predictions"]["deepfm"]]
    assert found["prediction"].tolist() == expected


def test_null_is_a_category_of_its_own_with_keep(loaded: Callable[..., Any]) -> None:
    model = saved_before("deepfm").setHandleInvalid("keep")
    scored = loaded(model)
    frame = rows().head(3)
    nulls = frame.assign(price=[np.nan, 1.0, 2.0], user=[None, 1, 2], page=[None, "home", "x"])
    nulls["tags"] = [None, ["x", None], []]
    found = scored.predict(nulls)
    portable = model.portable()
    columns = {name: nulls[name].tolist() for name in ("price", "stock", "user", "page", "tags")}
    columns["user"] = [None, 1, 2]
    (logits,) = trained(model).predict(columns, keep=True)
    np.testing.assert_allclose([raw[1] for raw in found["rawPrediction"]], logits, rtol=0, atol=1e-6)
    assert [column.name for column in portable.scoring.columns] == list(found)


def trained(model: Any) -> Any:
    from hvdspark.artifact import TrainedModel

    return TrainedModel(model.module(), model.portable().inputs)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll"])
def test_several_classes(loaded: Callable[..., Any], tmp_path: Path, loss: str, width: int) -> None:
    module = nn.Sequential(nn.Linear(2, width), nn.LogSoftmax(1))
    model = small_model("TorchModel", tmp_path, module, SUMS[2:], types=OF_SUMS, width=width, loss=loss)
    model.setProbabilityCol("probability").setThreshold(0.9)
    given = torch.randn(9, 2)
    found = loaded(model).predict(pd.DataFrame({"two": given.tolist()}))
    assert list(found) == ["probability", "prediction"]
    expected = module(given).exp()
    np.testing.assert_allclose(found["probability"].tolist(), expected.detach().numpy(), atol=1e-6)
    assert found["prediction"].tolist() == expected.argmax(1).tolist()


def test_a_classifier_and_its_thresholds(loaded: Callable[..., Any], tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    types, width = OF_SUMS, 3
    model = small_model(
        "TorchClassificationModel", tmp_path, module, SUMS[2:], types=types, width=width, loss="cross_entropy"
    )
    model.setThresholds([0.2, 0.3, 0.5]).setRawPredictionCol("")
    given = torch.randn(9, 2)
    found = loaded(model).predict(pd.DataFrame({"two": given.tolist()}))
    assert list(found) == ["probability", "prediction"]
    probability = module(given).softmax(1).detach()
    np.testing.assert_allclose(found["probability"].tolist(), probability.numpy(), atol=1e-6)
    assert found["prediction"].tolist() == (probability / torch.tensor([0.2, 0.3, 0.5])).argmax(1).tolist()


def test_a_regressor(loaded: Callable[..., Any], tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    model = small_model("TorchRegressionModel", tmp_path, module, SUMS[2:], types=OF_SUMS, width=1, loss="mse")
    given = torch.randn(9, 2)
    found = loaded(model).predict(pd.DataFrame({"two": given.tolist()}))
    np.testing.assert_allclose(found["prediction"], module(given).squeeze(1).detach().numpy(), atol=1e-6)


def test_wide_sparse_vectors(loaded: Callable[..., Any], tmp_path: Path) -> None:
    wide = [ColumnSpec("v", "float32", "sparse", 5000)]
    module = nn.Linear(5000, 1)
    model = small_model("TorchModel", tmp_path, module, wide, types={"v": "vector"}).setHandleInvalid("skip")
    dense = torch.zeros(3, 5000)
    dense[0, 7], dense[1, 4999], dense[2, 0] = 2.0, -1.5, torch.nan
    some = {"size": 5000, "indices": [7], "values": [2.0]}
    found = loaded(model).predict(pd.DataFrame({"v": [some, dense[1].tolist(), dense[2].tolist()]}))
    np.testing.assert_allclose(found["prediction"], module(dense[:2]).squeeze(1).detach().numpy(), atol=1e-6)
    with pytest.raises(DataError, match=r"no sparse vector: \['size'\]"):
        mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame({"v": [{"size": 3}]}))


FILES = [ColumnSpec("png", BYTES, "ragged")]


class Sizes(nn.Module):
    """The sum of the bytes of each row."""

    def forward(self, files: Any) -> Tensor:
        lengths = files.offsets[1:] - files.offsets[:-1]
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return torch.zeros(len(lengths)).index_add(0, row, files.values.float())


def test_files(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("TorchModel", tmp_path, Sizes(), FILES, types={"png": "binary"})
    given = pd.DataFrame({"png": [bytearray(b"\x01\x02"), b"", b"\xff"]})  # Spark has bytearrays
    scored = loaded(model, input_example=given)
    assert scored.metadata.signature.inputs.input_types() == [DataType.binary]
    assert scored.predict(given)["prediction"].tolist() == [3.0, 0.0, 255.0]
    with pytest.raises(Exception, match="png"):
        scored.predict(pd.DataFrame({"png": [b"\x01", None]}))


def test_files_that_are_missing_are_skipped(loaded: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("TorchModel", tmp_path, Sizes(), FILES, types={"png": "binary"}).setHandleInvalid("skip")
    found = loaded(model).predict(pd.DataFrame({"png": [b"\x01", None, b""]}))
    assert found["prediction"].to_dict() == {0: 1.0, 2: 0.0}


def test_many_rows_are_scored_in_parts(
    loaded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(sums(tmp_path, "error"))
    given = pd.DataFrame({"whole": range(10), "many": [[1.0]] * 10, "two": [[1.0, 2.0]] * 10})
    whole = model.predict(given)
    monkeypatch.setattr("hvdspark.artifact.scored._ROWS", 3)
    pd.testing.assert_frame_equal(model.predict(given), whole)


def test_columns_of_pandas_own_types(loaded: Callable[..., Any]) -> None:
    scored = loaded(saved_before("lr"), signature=False)
    frame = rows()[["price", "member"]]
    expected = scored.predict(frame)
    others = frame.assign(price=frame["price"].astype("Float64"), member=frame["member"].astype("boolean"))
    pd.testing.assert_frame_equal(scored.predict(others), expected)
    with pytest.raises(DataError, match="a feature column is missing"):
        scored.predict(frame[["price"]])
