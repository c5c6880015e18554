"""Metadata that another version of hvdspark wrote: what is not known is named and left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from hvdspark.errors import CheckpointError
from hvdspark.estimators import CTRClassificationModel, TorchEstimator, TorchModel

pytestmark = pytest.mark.spark

SAVED = Path(__file__).parent.parent / "fixtures" / "models-0.1.0"


def changed(folder: Path, path: Path) -> None:
    """A copy of a saved object, with Params that no version has."""
    shutil.copytree(folder, path)
    (file,) = (path / "metadata").glob("part-*")
    metadata: dict[str, Any] = json.loads(file.read_text())
    metadata["paramMap"]["ofTomorrow"] = 3
    metadata["defaultParamMap"] |= {"ofTomorrow": 1, "alsoNew": "x"}
    file.write_text(json.dumps(metadata))
    for checksum in (path / "metadata").glob(".part-*.crc"):
        checksum.unlink()


@pytest.mark.parametrize(
    ("name", "cls"), [("torch-estimator", TorchEstimator), ("tables", TorchModel), ("lr", CTRClassificationModel)]
)
def test_unknown_params_are_named_and_ignored(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, cls: Any
) -> None:
    import tests.unit.artifact.saved_before  # noqa: F401  a class that is imported is one that a save may name

    changed(SAVED / name, tmp_path / "saved")
    with caplog.at_level("WARNING", "hvdspark"):
        loaded = cls.load(str(tmp_path / "saved"))
    (warning,) = [text for text in caplog.messages if "does not know" in text]
    assert loaded.uid in warning
    assert "saved by hvdspark" in warning
    assert "ignored: alsoNew, ofTomorrow. Set there: {'ofTomorrow': 3}" in warning
    assert not loaded.hasParam("ofTomorrow")
    assert loaded.getLabelCol() == "label", "all others are set"
    caplog.clear()
    cls.load(str(SAVED / name))
    assert not caplog.messages, "what is known is loaded without a word"


def test_stages_of_a_pipeline_are_no_exception(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(SAVED / "pipeline", tmp_path / "saved")
    (stage,) = (tmp_path / "saved" / "stages").glob("1_TorchEstimator*")
    shutil.move(stage, tmp_path / "stage")
    changed(tmp_path / "stage", stage)
    with caplog.at_level("WARNING", "hvdspark"):
        PipelineModel.load(str(tmp_path / "saved"))
    assert len([text for text in caplog.messages if "does not know" in text]) == 1


def test_a_newer_format_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    shutil.copytree(SAVED / "ctr-estimator", tmp_path / "saved")
    file = tmp_path / "saved" / "data" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2, "written_by": "hvdspark 9.0"}))
    from hvdspark.estimators import CTRClassifier

    with pytest.raises(CheckpointError, match="newer format: 2.*Hint: upgrade hvdspark: hvdspark 9.0 wrote it"):
        CTRClassifier.load(str(tmp_path / "saved"))
