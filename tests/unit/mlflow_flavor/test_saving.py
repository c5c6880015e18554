"""What is in a saved MLflow model, what does not travel with it unasked, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from hvdspark import mlflow_flavor
from hvdspark.errors import ConfigurationError, DataError, PersistenceError
from hvdspark.mlflow_flavor import saving
from tests.unit.mlflow_flavor.fitted import KNOWN, rows, saved_before


def entry(path: Path) -> dict[str, Any]:
    flavor: dict[str, Any] = Model.load(str(path)).flavors["hvdspark"]
    return flavor


def test_signature_says_what_columns_hold(tmp_path: Path) -> None:
    mlflow_flavor.save_model(saved_before("deepfm"), str(tmp_path / "m"))
    signature = Model.load(str(tmp_path / "m")).signature
    assert [(column.name, str(column.type)) for column in signature.inputs.inputs] == [
        ("price", "DataType.double"),
        ("stock", "DataType.long"),
        ("user", "DataType.long"),
        ("page", "DataType.string"),
        ("tags", "Array(Any)"),
    ]
    assert [(column.name, str(column.type)) for column in signature.outputs.inputs] == [
        ("rawPrediction", "Array(double)"),
        ("probability", "Array(double)"),
        ("prediction", "DataType.double"),
    ]


def test_requirements_are_pinned_and_name_no_spark(tmp_path: Path) -> None:
    mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "m"), extra_pip_requirements=["tqdm==4.67.1"])
    lines = (tmp_path / "m" / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in lines} == {
        *("mlflow", "torch", "numpy", "pandas", "safetensors", "fsspec", "tqdm")
    }
    assert all("==" in line and "+" not in line for line in lines)
    (pip,) = (item["pip"] for item in yaml.safe_load((tmp_path / "m" / "conda.yaml").read_text())["dependencies"][2:])
    assert pip == lines


@pytest.mark.parametrize("kind", ["pandas", "records"])
def test_rows_are_in_it_only_where_they_were_given(tmp_path: Path, kind: str) -> None:
    mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "without"))
    assert not list((tmp_path / "without").glob("*.json"))
    given = rows()[["price", "member", "page"]].head(2)
    example = given if kind == "pandas" else given.to_dict("records")
    mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "with"), input_example=example)
    assert json.loads((tmp_path / "with" / "input_example.json").read_text())["columns"] == ["price", "member"]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "with"))
    assert len(loaded.predict(loaded.input_example)) == 2


@pytest.mark.parametrize("example", [rows()[["price"]], rows()[["price"]].to_dict("records"), {"price": 1.0}])
def test_an_example_without_a_column_is_named_and_leaves_nothing(tmp_path: Path, example: Any) -> None:
    with pytest.raises(DataError, match=r"missing: \['member'\].*in input_example.*Hint.*these have \['price'\]"):
        mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "m"), input_example=example)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_save_that_fails_in_its_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The disk is full when all but the last files are written."""
    if there:
        (tmp_path / "m").mkdir()
    environment = saving._write_environment

    def full(path: Path, *others: Any) -> None:
        environment(path, *others)
        assert (path / "MLmodel").exists(), "it is nearly complete"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write_environment", full)
    with pytest.raises(OSError, match="No space left"):
        mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "m"))
    assert list(tmp_path.iterdir()) == [tmp_path / "m"] * there
    assert not there or not list((tmp_path / "m").iterdir())


def test_a_directory_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    with pytest.raises(MlflowException, match="already exists and is not empty"):
        mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "m"))
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "mine"]


@pytest.mark.parametrize("example", [{"price": 1.0, "member": True}, {"price": [1.0], "member": [True]}])
def test_one_row_may_be_the_example(tmp_path: Path, example: Any) -> None:
    mlflow_flavor.save_model(saved_before("lr"), str(tmp_path / "m"), input_example=example)
    assert json.loads((tmp_path / "m" / "input_example.json").read_text())["data"] == [[1.0, True]]


def test_tables_are_copied_or_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trusted = {"trusted_packages": ["tests"]}
    mlflow_flavor.save_model(saved_before("tables"), str(tmp_path / "copied"), **trusted)
    with caplog.at_level(logging.WARNING):
        mlflow_flavor.save_model(saved_before("tables"), str(tmp_path / "left"), copy_tables="reference", **trusted)
    assert "only this host" in caplog.text
    files = {name: list((tmp_path / name / "model").rglob("buckets-*")) for name in ("copied", "left")}
    assert files["copied"]
    assert not files["left"]
    assert entry(tmp_path / "copied")["tables"] == "copied"
    assert entry(tmp_path / "left")["tables"].startswith("file:///")
    expected = [row[0] for row in KNOWN["predictions"]["tables"]]
    for name in files:
        found = mlflow.pyfunc.load_model(str(tmp_path / name)).predict(rows())
        assert found["prediction"].tolist() == pytest.approx(expected, abs=1e-6)


def test_large_tables_do_not_travel_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "MOST_COPIED_UNASKED", 100)
    with pytest.raises(ConfigurationError, match=r"are 6\.0 KiB, more than .*copied unasked.*True copies .*reference"):
        mlflow_flavor.save_model(saved_before("deepfm"), str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()
    mlflow_flavor.save_model(saved_before("deepfm"), str(tmp_path / "m"), copy_tables=True)
    with pytest.raises(ConfigurationError, match="unknown choice: 'no'"):
        mlflow_flavor.save_model(saved_before("deepfm"), str(tmp_path / "n"), copy_tables="no")  # type: ignore[arg-type]


def test_code_that_scoring_would_not_have_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"may not have: \['tests'\].*code_paths=.*trusted_packages=\['tests'\]"):
        mlflow_flavor.save_model(saved_before("tables"), str(tmp_path / "m"))


def test_what_is_no_fitted_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a fitted model of hvdspark: 'DataFrame'.*mlflow\.spark"):
        mlflow_flavor.save_model(pd.DataFrame(), str(tmp_path / "m"))  # type: ignore[arg-type]


def test_the_argument_of_mlflow_2_is_told_its_name_of_now() -> None:
    with pytest.raises(ConfigurationError, match="MLflow 3 calls it name: 'clicks'.*in artifact_path"):
        mlflow_flavor.log_model(saved_before("lr"), artifact_path="clicks")


def test_an_alias_needs_a_registered_model() -> None:
    with pytest.raises(ConfigurationError, match="an alias is of a registered model"):
        mlflow_flavor.log_model(saved_before("lr"), "m", registered_model_alias="champion")
